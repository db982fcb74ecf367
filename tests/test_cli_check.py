"""`aegis-edge check`: exit codes, streams and JSON lines, with a guard that finds "bad" unsafe."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aegis_edge.cli import run
from aegis_edge.conversation import Conversation, Dialogue
from aegis_edge.decision import CategoryScore, Rating, Verdict, Window
from aegis_edge.errors import ContextError
from aegis_edge.guard import Guard


def _rate(text: str) -> Rating:
    unsafe = "bad" in text
    return Rating(not unsafe, 0.9 if unsafe else 0.1, 2.0 if unsafe else -2.0)


class StubGuard:
    """Judges by a word; texts of more than 20 characters do not fit."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def check(self, prompt: str | bytes, response: str | bytes | None = None) -> Verdict:
        talk = Conversation(prompt, response)  # type: ignore[arg-type]
        if len(talk.prompt) > 20:
            raise ContextError("too long", hint="check it in parts")
        ratings = [_rate(text) for text in (talk.prompt, talk.response) if text is not None]
        safe = all(rating.safe for rating in ratings)
        found = () if safe else (CategoryScore("Violence", "S1", 0.8),)
        return Verdict(
            safe, ratings[0], ratings[1] if response is not None else None, found, len(talk.prompt)
        )

    def check_many(self, items: list[Conversation | Dialogue]) -> list[Verdict]:
        self.batches.append(len(items))
        return [self.check_one(item) for item in items]

    def check_one(self, item: Conversation | Dialogue) -> Verdict:
        if isinstance(item, Conversation):
            return self.check(item.prompt, item.response)
        return replace(self.check(item.turns[-1].content), turn=len(item.turns) - 1)


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> StubGuard:
    stub = StubGuard()
    monkeypatch.setattr(Guard, "load", lambda *_, **__: stub)
    return stub


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Any:
    def provide(data: bytes) -> None:
        read, write = os.pipe()
        with os.fdopen(write, "wb") as pipe:
            pipe.write(data)
        monkeypatch.setattr(sys, "stdin", os.fdopen(read, encoding="utf-8"))

    return provide


def _rows(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_exit_code_is_the_verdict(guard: StubGuard, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "fine"]) == 0
    assert capsys.readouterr().out.startswith("safe\n")
    assert run(["check", "bad"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("unsafe\n") and "0.900" in out and "Violence (S1) 0.800" in out
    assert run(["check", "fine", "--response", "bad"]) == 1


def test_json_has_the_python_names(guard: StubGuard, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "bad", "--response", "fine", "--json"]) == 1
    (row,) = _rows(capsys.readouterr().out)
    assert row["safe"] is False and row["prompt"]["probability"] == 0.9 and row["response"]["safe"] is True
    assert row["categories"] == [{"name": "Violence", "code": "S1", "probability": 0.8}]
    assert row["tokens_seen"] == row["tokens_total"] == row["tokens"] == 3 and row["window"] is None


def test_limits_reach_the_guard(
    guard: StubGuard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(Guard, "load", lambda *_, **options: seen.append(options) or guard)
    assert run(["check", "fine"]) == 0
    assert run(["check", "fine", "--window", "64", "--max-tokens", "99", "--refuse-long"]) == 0
    assert seen == [
        {"window": None, "max_tokens": 65536, "refuse_long": False},
        {"window": 64, "max_tokens": 99, "refuse_long": True},
    ]


def test_the_window_that_decided_is_told(
    guard: StubGuard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict = replace(guard.check("fine"), window=Window("prompt", 10, 50, (31, 160)))
    monkeypatch.setattr(guard, "check", lambda *_: verdict)
    assert run(["check", "fine"]) == 0
    assert "window      tokens 10 to 50 of the prompt" in capsys.readouterr().out
    assert run(["check", "fine", "--json"]) == 0
    (row,) = _rows(capsys.readouterr().out)
    assert row["window"] == {"of": "prompt", "start": 10, "end": 50, "characters": [31, 160]}


def test_failures_are_code_3_with_a_hint(guard: StubGuard, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "x" * 21]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: too long\nhint: check it in parts\n"


def test_an_unexpected_exception_is_no_verdict(
    guard: StubGuard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(guard, "check", lambda *_: 1 / 0)
    assert run(["check", "fine"]) == 3
    assert "error: ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize("data, code", [(b"bad\n", 1), (b"fine\r\n", 0), (b"\n", 0), (b"", 3), (b"\xff", 3)])
def test_standard_input_is_one_text(guard: StubGuard, stdin: Any, data: bytes, code: int) -> None:
    stdin(data)
    assert run(["check"]) == code


def test_one_line_end_is_taken_off_standard_input(
    guard: StubGuard, stdin: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin(b"four\n\n")
    assert run(["check", "-", "--json"]) == 0
    assert _rows(capsys.readouterr().out)[0]["tokens"] == len("four\n")


def test_lines_come_out_in_order_with_their_ids(
    guard: StubGuard, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text(
        '"fine"\n\n{"prompt": "fine", "response": "bad", "id": [7]}\n{"prompt": "bad", "label": 1}'
    )
    assert run(["check", "--file", str(file)]) == 1
    captured = capsys.readouterr()
    rows = _rows(captured.out)
    assert [(row["line"], row.get("id"), row["safe"]) for row in rows] == [
        (1, None, True),
        (3, [7], False),
        (4, None, False),
    ]
    assert "3 checked" in captured.err and "1 safe, 2 unsafe, 0 failed" in captured.err


def test_a_line_of_messages(guard: StubGuard, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "in.jsonl"
    messages = [{"role": "user", "content": "fine"}, {"role": "assistant", "content": "bad"}]
    file.write_text(json.dumps({"messages": messages, "id": 1}) + '\n"fine"')
    assert run(["check", "--file", str(file)]) == 1
    assert [(row["safe"], row["turn"]) for row in _rows(capsys.readouterr().out)] == [
        (False, 1),
        (True, None),
    ]


BAD_LINES = {
    "no JSON": b"{",
    "not UTF-8": b'"\xff"',
    "a number": b"7",
    "no prompt": b'{"text": "fine"}',
    "prompt of another type": b'{"prompt": ["fine"]}',
    "two prompts": b'{"prompt": "fine", "prompt": "bad"}',
    "a lone surrogate": b'{"prompt": "\\ud800", "id": "\\ud800"}',
    "NaN": b'{"prompt": "fine", "id": NaN}',
    "too deep": b"[" * 100_000,
    "a number of thousands of digits": b'{"prompt": "fine", "id": ' + b"9" * 5000 + b"}",
    "messages of another type": b'{"messages": "fine"}',
    "messages and a prompt": b'{"messages": [{"role": "user", "content": "a"}], "prompt": "b"}',
    "no messages": b'{"messages": []}',
    "a message without content": b'{"messages": [{"role": "user"}]}',
    "does not fit": b'"' + b"x" * 21 + b'"',
}


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES)
def test_an_unreadable_line_is_an_error_of_that_line(
    guard: StubGuard, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: bytes
) -> None:
    file = tmp_path / "in.jsonl"
    file.write_bytes(b'"fine"\n' + line + b'\n"bad"\n')
    assert run(["check", "--file", str(file)]) == 3
    captured = capsys.readouterr()
    first, failed, last = _rows(captured.out)
    assert first["safe"] is True and last["safe"] is False
    assert failed["line"] == 2 and "safe" not in failed and failed["error"]["message"]
    assert "error: line 2: " in captured.err


def test_a_line_beyond_the_limit_is_refused_and_skipped(
    guard: StubGuard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("aegis_edge.cli.check.MAX_BYTES", 50)
    file = tmp_path / "in.jsonl"
    file.write_bytes(b'"' + b"x" * 500 + b'"\n"fine"')
    assert run(["check", "--file", str(file)]) == 3
    failed, good = _rows(capsys.readouterr().out)
    assert "longer than" in failed["error"]["message"] and good == good | {"line": 2, "safe": True}


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_nothing_to_check_is_not_safe(guard: StubGuard, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "in.jsonl"
    file.write_bytes(content)
    assert run(["check", "--file", str(file)]) == 3


@pytest.mark.parametrize("name", ["missing.jsonl", "."])
def test_a_file_that_can_not_be_read(guard: StubGuard, tmp_path: Path, name: str) -> None:
    assert run(["check", "--file", str(tmp_path / name)]) == 3


def test_a_long_file_is_checked_in_batches(guard: StubGuard, tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text('"fine"\n' * 300)
    assert run(["check", "--file", str(file)]) == 0
    assert sum(guard.batches) == 300 and max(guard.batches) <= 64


def test_a_slow_writer_is_answered_line_by_line() -> None:
    """The first line's result is there before the second line is written."""
    script = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); from test_cli_check import StubGuard\n"
        "from aegis_edge.guard import Guard; from aegis_edge.cli import main\n"
        "Guard.load = lambda *_, **__: StubGuard()\n"
        "main(['check', '--file', '-'])"
    )
    command = [sys.executable, "-c", script, str(Path(__file__).parent)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    for number, text in enumerate(("fine", "bad"), 1):
        process.stdin.write(f'"{text}"\n')
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["line"] == number
    process.stdin.close()
    assert process.wait(timeout=60) == 1
    process.stdout.close()


def test_a_reader_that_leaves_is_a_failure(
    guard: StubGuard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "out"
    with file.open("w") as stdout:

        class Gone(io.TextIOWrapper):
            def write(self, text: str) -> int:
                raise BrokenPipeError

        monkeypatch.setattr(sys, "stdout", Gone(os.fdopen(os.dup(stdout.fileno()), "wb")))
        assert run(["check", "fine"]) == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ["fine", "--file", "x"],
        ["--file", "x", "--response", "y"],
        ["--threads", "0", "x"],
        ["--scorer", "gpu", "x"],
        ["--window", "15", "x"],
        ["--max-tokens", "0", "x"],
        ["a", "b"],
        ["--unknown"],
    ],
)
def test_usage_errors_are_code_2(
    guard: StubGuard, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["check", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ")
    assert "hint: aegis-edge check --help" in captured.err


def test_no_guard_gives_a_hint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("AEGIS_EDGE_GUARD", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert run(["check", "fine"]) == 3
    assert "hint: make one with: aegis-edge export" in capsys.readouterr().err
