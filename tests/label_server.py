"""An OpenAI-compatible endpoint for tests of `label`, which misbehaves as it is told; and files for it."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from aegis_edge.cli import run
from aegis_edge.label.rows import Row


@dataclass
class Asked:
    """One request as the server saw it. `number` counts this model's requests on this row from 1."""

    path: str
    headers: Any
    body: dict[str, Any]
    number: int = 0
    time: float = field(default_factory=time.monotonic)

    @property
    def model(self) -> str:
        return self.body["model"]

    @property
    def row(self) -> dict[str, Any]:
        return json.loads(self.body["messages"][1]["content"])


Act = Callable[[BaseHTTPRequestHandler], None]
Behaviour = Callable[[Asked], "str | Act"]


def completion(content: Any, **choice: Any) -> bytes:
    message = {"role": "assistant", "content": content, **choice.pop("message", {})}
    return json.dumps(
        {"choices": [{"index": 0, "message": message, "finish_reason": "stop", **choice}]}
    ).encode()


def send(status: int, body: bytes = b"", **headers: str) -> Act:
    def act(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return act


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def hang_up_within(handler: BaseHTTPRequestHandler) -> None:
    """Half of an answer. What is there of it is a whole JSON object that says safe."""
    body = completion('{"label": "safe"}')
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (2 * len(body)) + body)
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)


def hang(seconds: float) -> Act:
    def act(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(seconds)

    return act


def drip(handler: BaseHTTPRequestHandler) -> None:
    """A byte every 50 ms, for ever: no single wait is long."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    try:
        while True:
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)
    except OSError:
        pass


class Server:
    """Serves until the block ends. `behave` says what to do about each request; a text is a judge's words."""

    def __init__(self, behave: Behaviour) -> None:
        self.behave, self.asked = behave, list[Asked]()
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                act = outer._take(Asked(self.path, self.headers, body))
                self.close_connection = True
                (send(200, completion(act)) if isinstance(act, str) else act)(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that have gone
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def _take(self, asked: Asked) -> str | Act:
        with self._lock:
            asked.number = 1 + sum(
                (other.model, other.row) == (asked.model, asked.row) for other in self.asked
            )
            self.asked.append(asked)
        return self.behave(asked)

    def __enter__(self) -> Server:
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()


def make_row(number: int = 1, **fields: Any) -> Row:
    """A row without a response label; text that means nothing."""
    return Row(
        **{
            "id": f"row-{number}",
            "reconstruction_id_if_redacted": None,
            "prompt": f"Prompt number {number}.",
            "response": f"Response number {number}.",
            "prompt_label": "safe",
            "response_label": None,
            "violated_categories": "",
            "prompt_label_source": "human",
            "response_label_source": None,
            **fields,
        }
    )


def write_rows(path: Path, rows: Iterator[Row] | list[Row]) -> Path:
    path.write_text("".join(json.dumps(row.to_json()) + "\n" for row in rows))
    return path


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_jury(
    path: Path, url: str, *models: str, more: str = "", top: str = "", timeout: float = 1.0
) -> Path:
    judges = "".join(
        f'[[judges]]\nname = "{model}"\nkind = "endpoint"\nbase_url = "{url}"\nmodel = "{model}"\n'
        f"timeout = {timeout}\nretries = 1\nbackoff = 0.01\n{more}\n"
        for model in models
    )
    path.write_text(top + judges)
    return path


def arguments(tmp_path: Path, *more: str) -> list[str]:
    paths = {"--data": "rows.jsonl", "--jury": "jury.toml", "--out": "labelled.jsonl"}
    return ["label", *(f"{option}={tmp_path / name}" for option, name in paths.items()), *more]


def label(tmp_path: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    """Run it; its summary."""
    capsys.readouterr()
    assert run(arguments(tmp_path, "--json", *more)) == 0
    return json.loads(capsys.readouterr().out)


def by_plan(plan: dict[str, dict[str, str | Act]]) -> Any:
    """Each model's words, or misdeed, by the number in the response; "*" for all others."""

    def behave(asked: Asked) -> str | Act:
        number = asked.row["response"].removeprefix("Response number ").removesuffix(".")
        return plan[asked.model].get(number, plan[asked.model]["*"])

    return behave
