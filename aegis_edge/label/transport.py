"""One HTTP request with a deadline for all of it, over urllib (which knows proxies).

A socket's own timeout starts anew with every byte, so a server that drips would hold a thread for ever:
here the connection is shut when the time is over. Redirects are not followed: the key would go with them.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

MAX_BODY = 4 << 20  # bytes; a chat completion of a few hundred tokens has a few kB


@dataclass(frozen=True)
class Reply:
    """An HTTP answer of any status. Header names are looked up without case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class TransportError(Exception):
    """No answer came: the cause to count by, and a message without anything of the request's headers."""

    def __init__(self, cause: Literal["timeout", "connection"], message: str) -> None:
        super().__init__(message)
        self.cause: Literal["timeout", "connection"] = cause


def post(url: str, headers: Mapping[str, str], body: bytes, timeout: float) -> Reply:
    """POST `body`; `timeout` s for everything. Raises TransportError."""
    deadline = _Deadline(timeout)
    opener = urllib.request.OpenerDirector()  # bare: no redirects, and every status is an answer
    for handler in (urllib.request.ProxyHandler(), _Http(deadline), _Https(deadline)):
        opener.add_handler(handler)
    request = urllib.request.Request(url, body, dict(headers), method="POST")
    try:
        with opener.open(request, timeout=timeout) as response:
            data = response.read(MAX_BODY + 1)
            # read(n) does not tell a body that ended early from one that is whole.
            if len(data) <= MAX_BODY and response.length:
                raise http.client.IncompleteRead(data, response.length)
            if deadline.expired:
                raise TimeoutError
    except (OSError, http.client.HTTPException) as error:
        raise _failure(error, deadline.expired, timeout) from error
    finally:
        deadline.cancel()
    if len(data) > MAX_BODY:
        raise TransportError("connection", f"the answer is longer than {MAX_BODY >> 20} MiB")
    return Reply(response.status, response.headers, data)


class _Deadline:
    """Shuts the watched connection when the time is over."""

    def __init__(self, seconds: float) -> None:
        self.expired = False
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True
        self._timer.start()

    def watch(self, connected: socket.socket) -> None:
        with self._lock:
            self._socket = connected
            if self.expired:
                raise TimeoutError

    def cancel(self) -> None:
        self._timer.cancel()
        with self._lock:
            self._socket = None

    def _expire(self) -> None:
        with self._lock:
            self.expired = True
            if self._socket is not None:
                # Not the method of an SSLSocket, which would take the TLS state from under the reader.
                with contextlib.suppress(OSError):  # closed meanwhile
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class _Connection(http.client.HTTPConnection):
    def __init__(self, host: str, *, deadline: _Deadline, **kwargs: Any) -> None:
        super().__init__(host, **kwargs)
        self._deadline = deadline

    def connect(self) -> None:
        super().connect()
        self._deadline.watch(self.sock)


class _SecureConnection(http.client.HTTPSConnection):
    def __init__(self, host: str, *, deadline: _Deadline, **kwargs: Any) -> None:
        super().__init__(host, **kwargs)
        self._deadline = deadline

    def connect(self) -> None:
        super().connect()
        self._deadline.watch(self.sock)


class _Http(urllib.request.HTTPHandler):
    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, req, deadline=self._deadline)  # type: ignore[arg-type]


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_SecureConnection, req, deadline=self._deadline, context=_certificates())  # type: ignore[arg-type]


@cache
def _certificates() -> ssl.SSLContext:
    return ssl.create_default_context()  # tens of ms: once


def _failure(error: Exception, expired: bool, timeout: float) -> TransportError:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if expired or isinstance(cause, TimeoutError):
        return TransportError("timeout", f"no answer within {timeout:g} s")
    if isinstance(cause, http.client.RemoteDisconnected):
        return TransportError("connection", "the server hung up without an answer")
    if isinstance(cause, http.client.IncompleteRead):
        return TransportError("connection", "the server hung up within its answer")
    what = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return TransportError("connection", f"the request failed: {what}")
