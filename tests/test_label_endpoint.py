"""A judge behind HTTP, against a real server that fails in every way: it abstains, or it is asked again."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
import threading
import time
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from label_server import (
    Act,
    Asked,
    Server,
    completion,
    drip,
    hang,
    hang_up,
    hang_up_within,
    make_row,
    send,
)

from aegis_edge.label import transport
from aegis_edge.label.endpoint import AGAIN, MAX_BACKOFF, STOPPED, EndpointJudge, backoff, retry_after
from aegis_edge.label.jury import EndpointSettings
from aegis_edge.label.pace import Pace
from aegis_edge.label.transport import Reply
from aegis_edge.label.votes import UNREACHABLE, Abstention, Opinion, Vote


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def judge_at(url: str, environment: dict[str, str] | None = None, **settings: Any) -> EndpointJudge:
    settings = {"timeout": 5.0, "retries": 0, "backoff": 0.01, **settings}
    return EndpointJudge(EndpointSettings("a", url, "m", **settings), environment or {})


def ask(judge: EndpointJudge) -> Opinion:
    return judge.judge(make_row(), threading.Event())


def test_what_is_sent() -> None:
    with Server(lambda asked: "safe") as server:
        judge = judge_at(server.url + "/", {"KEY": " token\n"}, key_env="KEY", parameters={"seed": 7})
        assert ask(judge) == Vote("safe")
        assert ask(judge_at(server.url)) == Vote("safe")
    first, second = server.asked
    assert first.path == "/v1/chat/completions" and first.headers["Authorization"] == "Bearer token"
    assert first.headers["Content-Type"] == "application/json"
    assert first.body.keys() == {"model", "messages", "seed"}
    assert first.row == {
        "prompt": "Prompt number 1.",
        "prompt_label": "safe",
        "response": "Response number 1.",
    }
    assert "Authorization" not in second.headers
    assert second.body["temperature"] == 0 and second.body["max_tokens"] == 256


FAILURES: dict[str, tuple[str | Act, str, str]] = {
    "500": (send(500), "http", "HTTP status 500"),
    "500 with a label": (send(500, completion("safe")), "http", "HTTP status 500"),
    "401": (send(401), "http", "HTTP status 401"),
    "redirect": (send(302, Location="http://127.0.0.1:1/v1"), "http", "HTTP status 302"),
    "no content": (send(204), "http", "HTTP status 204"),
    "hangs": (hang(1.5), "timeout", "no answer within 0.3 s"),
    "drips": (drip, "timeout", "no answer within 0.3 s"),
    "hangs up": (hang_up, "connection", "the server hung up without an answer"),
    "hangs up within": (hang_up_within, "connection", "the server hung up within its answer"),
    "no HTTP": (
        lambda handler: handler.wfile.write(b"safe\r\n\r\n"),
        "connection",
        "the request failed: safe",
    ),
    "endless": (send(200, b" " * ((4 << 20) + 1)), "connection", "the answer is longer than 4 MiB"),
    "empty body": (send(200), "empty", "the server sent an empty body"),
    "empty answer": ("", "empty", "the judge said nothing"),
    "no JSON": (send(200, b"<html>safe</html>"), "nonsense", "the server sent no JSON"),
    "nonsense": ("It is safe, I think.", "nonsense", "neither a label nor JSON"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failing_judge_never_casts_a_vote(name: str) -> None:
    act, cause, reason = FAILURES[name]
    with Server(lambda asked: act) as server:
        opinion = ask(judge_at(server.url, timeout=0.3 if cause == "timeout" else 5.0))
    assert isinstance(opinion, Abstention), "a judge that failed cast a vote"
    assert opinion.cause == cause and reason in opinion.reason


def test_nobody_there() -> None:
    with Server(lambda asked: "safe") as server:
        url = server.url
    opinion = ask(judge_at(url))
    assert isinstance(opinion, Abstention) and opinion.cause == "connection"
    assert opinion.reason == "the request failed: Connection refused"


def test_a_name_that_does_not_resolve() -> None:
    opinion = ask(judge_at("http://judge.invalid/v1"))
    assert isinstance(opinion, Abstention) and opinion.cause in UNREACHABLE


def test_it_is_asked_again_until_it_answers() -> None:
    failures: list[str | Act] = [send(500), send(503), hang_up, send(429), hang_up_within, "unsafe"]
    with Server(lambda asked: failures[asked.number - 1]) as server:
        assert ask(judge_at(server.url, retries=5)) == Vote("unsafe")
        assert len(server.asked) == 6


@pytest.mark.parametrize("status", sorted(AGAIN))
def test_statuses_that_are_tried_again(status: int) -> None:
    with Server(lambda asked: send(status)) as server:
        opinion = ask(judge_at(server.url, retries=2))
        assert opinion == Abstention("http", f"HTTP status {status} (3 tries)") and len(server.asked) == 3


@pytest.mark.parametrize("act", [send(400), send(401), send(404), send(422), "nonsense", ""])
def test_what_would_not_change_is_not_tried_again(act: str | Act) -> None:
    with Server(lambda asked: act) as server:
        assert isinstance(ask(judge_at(server.url, retries=3)), Abstention) and len(server.asked) == 1


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_obeyed(status: int) -> None:
    def behave(asked: Asked) -> str | Act:
        return send(status, Retry_After="1") if asked.number == 1 else "safe"

    with Server(behave) as server:
        assert ask(judge_at(server.url, retries=1)) == Vote("safe")
        first, second = server.asked
        assert second.time - first.time >= 1.0


def test_retry_after_holds_all_threads_of_the_judge() -> None:
    begun = time.monotonic()
    with Server(lambda asked: send(429, Retry_After="1") if asked.number == 1 else "safe") as server:
        judge = judge_at(server.url, retries=0)
        assert isinstance(ask(judge), Abstention)
        assert judge.judge(make_row(2, prompt="Another."), threading.Event()) == Abstention(
            "http", "HTTP status 429"
        )
        assert server.asked[1].time - begun >= 1.0


def test_a_wait_longer_than_the_limit_is_an_abstention() -> None:
    with Server(lambda asked: send(429, Retry_After="3600")) as server:
        opinion = ask(judge_at(server.url, retries=3))
    assert opinion == Abstention(
        "http", "HTTP status 429, to be asked again in 3600 s, which is more than `max_wait`"
    )
    assert len(server.asked) == 1


def test_retry_after_as_it_may_be_written() -> None:
    now = datetime(2024, 5, 1, 12, 0, 0, tzinfo=UTC)

    def read(text: str | None) -> float | None:
        return retry_after(Reply(429, {} if text is None else {"Retry-After": text}, b""), now)

    assert read("7") == 7 and read(" 0 ") == 0
    assert read(format_datetime(now.replace(second=30), usegmt=True)) == 30
    assert read("Wed, 01 May 2024 12:00:05 -0000") == 5  # without a zone: UTC
    assert read("Wed, 01 May 2024 11:00:00 GMT") == 0  # over already
    for text in (None, "", "soon", "-1", "1.5", "9" * 400, "١"):
        assert read(text) is None


def test_backoff_doubles_within_its_bounds() -> None:
    for attempt in range(30):
        waits = [backoff(1.0, attempt) for _ in range(50)]
        most = min(MAX_BACKOFF, 2.0**attempt)
        assert most / 2 <= min(waits) and max(waits) <= most and len(set(waits)) > 1


def test_pace_spaces_requests_of_all_threads() -> None:
    with Server(lambda asked: "safe") as server:
        judge = judge_at(server.url, requests_per_minute=1200)  # one in 50 ms
        threads = [threading.Thread(target=ask, args=(judge,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        times = sorted(asked.time for asked in server.asked)
    assert len(times) == 6 and times[-1] - times[0] >= 5 * 0.05 - 0.03


def test_retries_count_for_the_pace() -> None:
    with Server(lambda asked: send(500)) as server:
        ask(judge_at(server.url, requests_per_minute=600, retries=3, backoff=0.0))
        assert server.asked[-1].time - server.asked[0].time >= 0.27


def test_a_stop_ends_every_wait() -> None:
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    pace, begun = Pace(None), time.monotonic()
    pace.hold(60)
    pace.hold(1)  # does not shorten it
    assert not pace.wait(stop) and time.monotonic() - begun < 5
    with Server(lambda asked: send(500)) as server:
        later = threading.Event()
        threading.Timer(0.2, later.set).start()
        judge = judge_at(server.url, retries=5, backoff=60.0)
        assert judge.judge(make_row(), later) == STOPPED and time.monotonic() - begun < 10


def test_proxies_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(lambda asked: "safe") as server:
        monkeypatch.setenv("http_proxy", server.url.removesuffix("/v1"))
        assert ask(judge_at("http://judge.invalid/v1")) == Vote("safe")
        assert server.asked[0].path == "http://judge.invalid/v1/chat/completions"


def test_the_key_is_in_no_reason() -> None:
    for act in (send(401), hang_up, "nonsense", send(200, b"token?")):
        with Server(lambda asked, act=act: act) as server:
            opinion = ask(judge_at(server.url, {"KEY": "key-of-mine"}, key_env="KEY"))
        assert "key-of-mine" not in json.dumps(opinion.__dict__)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    options = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path), "-out", f"{path}.crt"]
    subprocess.run([*command.split(), *options], check=True, capture_output=True)
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


def test_tls(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    acts: list[str | Act] = ["safe", drip, hang(1.5), hang_up]
    with Server(lambda asked: acts[len(server.asked) - 1]) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.http.socket = context.wrap_socket(server.http.socket, server_side=True)
        judge = judge_at(server.url.replace("http:", "https:"), timeout=0.5)
        transport._certificates.cache_clear()
        stranger = ask(judge)  # its certificate is not trusted
        monkeypatch.setenv("SSL_CERT_FILE", os.fspath(certificate))
        transport._certificates.cache_clear()
        found = [ask(judge) for _ in acts]
        transport._certificates.cache_clear()
    assert isinstance(stranger, Abstention) and "certificate" in stranger.reason.lower()
    assert found[0] == Vote("safe")
    causes = [opinion.cause for opinion in found[1:] if isinstance(opinion, Abstention)]
    assert causes == ["timeout", "timeout", "connection"]
