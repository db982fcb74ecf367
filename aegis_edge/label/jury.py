"""A jury, described in TOML:

quorum = 2                         # votes that a label needs; left out: more than half of the judges

[[judges]]
name = "large"                     # letters, digits, . _ -; each judge's own
kind = "endpoint"
base_url = "https://host/v1"       # requests go to {base_url}/chat/completions
model = "some-model"
key_env = "LARGE_KEY"              # the variable that holds the key; left out: no key is sent
timeout = 60                       # s for a whole request, from connecting to the last byte
requests_per_minute = 120          # retries count; left out: no limit
concurrency = 4                    # requests at once
retries = 4                        # after the first try
backoff = 1.0                      # s before the first retry; doubled for each further one
max_wait = 300                     # s: a server that asks for a longer wait gets no retry
give_up_after = 20                 # rows in a row without reaching the judge; 0: never
parameters = { temperature = 0, max_tokens = 256 }    # put into the request as they are

[[judges]]
name = "guard"
kind = "guard"
path = "guard/"                    # beside this file; left out: the guard that `check` takes
threads = 2                        # left out: all that this process may use
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aegis_edge.label.errors import JuryError
from aegis_edge.label.votes import default_quorum

MAX_JUDGES = 64
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
# What a request must hold for its answer to be one judgement of one row.
_RESERVED = ("model", "messages", "stream", "n")


@dataclass(frozen=True)
class EndpointSettings:
    """A judge behind an OpenAI-compatible endpoint; the keys and units are those of the module's text."""

    name: str
    base_url: str
    model: str
    key_env: str | None = None
    timeout: float = 60.0
    requests_per_minute: float | None = None
    concurrency: int = 4
    retries: int = 4
    backoff: float = 1.0
    max_wait: float = 300.0
    give_up_after: int = 20
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0, "max_tokens": 256})

    def __post_init__(self) -> None:
        _check_url(self.base_url)
        _require(bool(self.model), "`model` is empty")
        _require(self.key_env != "", "`key_env` is empty")
        _require(0 < self.timeout <= 3600, "`timeout` is more than 0 and at most 3600 s")
        rate = self.requests_per_minute
        _require(rate is None or 0 < rate < math.inf, "`requests_per_minute` is more than 0")
        _require(1 <= self.concurrency <= 64, "`concurrency` is 1 to 64")
        _require(0 <= self.retries <= 20, "`retries` is 0 to 20")
        _require(0 <= self.backoff <= 60, "`backoff` is 0 to 60 s")
        _require(0 <= self.max_wait <= 86400, "`max_wait` is 0 to 86400 s")
        _require(self.give_up_after >= 0, "`give_up_after` is 0 (never) or more")
        taken = [key for key in self.parameters if key in _RESERVED]
        _require(not taken, f"`parameters` can not set {taken[0]!r}" if taken else "")


@dataclass(frozen=True)
class GuardSettings:
    """A local guard as a judge. `path` None: the guard that `check` takes without one."""

    name: str
    path: Path | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        _require(self.threads is None or 1 <= self.threads <= 1024, "`threads` is 1 to 1024")


@dataclass(frozen=True)
class JurySettings:
    """Judges in the order of the file, and the votes that a label needs."""

    judges: tuple[EndpointSettings | GuardSettings, ...]
    quorum: int


def read_jury(path: Path) -> JurySettings:
    """Read a TOML file. Raises JuryError naming file, judge and key."""
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise JuryError(f"{path}: can not be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise JuryError(f"{path}: not valid TOML: {error}") from error
    except RecursionError as error:
        raise JuryError(f"{path}: not valid TOML: nested too deeply") from error
    try:
        return to_jury(data, path.parent)
    except JuryError as error:
        raise JuryError(f"{path}: {error}", hint=error.hint) from error


def to_jury(data: Mapping[str, Any], folder: Path) -> JurySettings:
    """Settings from what the TOML file says; paths in it are relative to `folder`. Raises JuryError."""
    _known(data, ("judges", "quorum"), "the file")
    tables = data.get("judges")
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise JuryError("no judges", hint="write a table [[judges]] for each")
    _require(len(tables) <= MAX_JUDGES, f"more than {MAX_JUDGES} judges")
    judges: list[EndpointSettings | GuardSettings] = []
    for number, table in enumerate(tables, 1):
        name = table.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise JuryError(f"judge {number}: `name` is 1 to 64 letters, digits, dots, dashes, underscores")
        if name in {judge.name for judge in judges}:
            raise JuryError(f"two judges are named {name!r}", hint="a judge's votes are kept by its name")
        try:
            judges.append(_judge(table, folder))
        except JuryError as error:
            raise JuryError(f"judge {name!r}: {error}", hint=error.hint) from error
    quorum = data.get("quorum", default_quorum(len(judges)))
    if type(quorum) is not int or not 1 <= quorum <= len(judges):
        raise JuryError(f"`quorum` is 1 to {len(judges)}, the number of judges; found {quorum!r}")
    return JurySettings(tuple(judges), quorum)


def _judge(table: Mapping[str, Any], folder: Path) -> EndpointSettings | GuardSettings:
    kind, rest = table.get("kind"), {key: value for key, value in table.items() if key != "kind"}
    if kind == "endpoint":
        _known(rest, [f.name for f in fields(EndpointSettings)], "an endpoint")
        return EndpointSettings(**_typed(rest, _ENDPOINT_TYPES, ("base_url", "model")))
    if kind == "guard":
        _known(rest, [f.name for f in fields(GuardSettings)], "a guard")
        values = _typed(rest, {"name": str, "path": str, "threads": int}, ())
        if "path" in values:
            values["path"] = folder / values["path"]
        return GuardSettings(**values)
    raise JuryError(f"`kind` is endpoint or guard; found {kind!r}")


_ENDPOINT_TYPES: dict[str, type] = {
    "name": str,
    "base_url": str,
    "model": str,
    "key_env": str,
    "timeout": float,
    "requests_per_minute": float,
    "concurrency": int,
    "retries": int,
    "backoff": float,
    "max_wait": float,
    "give_up_after": int,
    "parameters": dict,
}
_WORDS = {str: "text", int: "a whole number", float: "a number", dict: "a table"}


def _typed(table: Mapping[str, Any], types: Mapping[str, type], required: tuple[str, ...]) -> dict[str, Any]:
    for key in required:
        _require(key in table, f"`{key}` is missing")
    values = dict(table)
    for key, value in values.items():
        wanted = types[key]
        if wanted is float and type(value) is int:
            values[key] = value = float(value)
        # Exactly the type: True is an int to Python.
        _require(type(value) is wanted, f"`{key}` is {_WORDS[wanted]}; found {value!r}")
        _require(
            wanted is not dict or _is_json(value), f"`{key}` holds what JSON can not: a date, nan or inf"
        )
    return values


def _is_json(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_json, value.values()))
    if isinstance(value, list):
        return all(map(_is_json, value))
    return isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value))


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
        host.encode("idna")
    except ValueError as error:  # a port beyond 65535, a label of 70 characters
        raise JuryError(f"`base_url` is no URL: {error}") from error
    plain = url.isascii() and url.isprintable() and " " not in url
    _require(
        parts.scheme in ("http", "https") and bool(host) and plain, "`base_url` is http://... or https://..."
    )
    _require(parts.username is None, "`base_url` holds a user or a password: use `key_env`")
    _require(not (parts.query or parts.fragment), "`base_url` ends with the path: no ? and no #")


def _known(table: Mapping[str, Any], keys: Any, what: str) -> None:
    from difflib import get_close_matches

    for key in table:
        if key not in keys:
            near = get_close_matches(key, keys, n=1)
            raise JuryError(
                f"unknown key {key!r} for {what}", hint=f"did you mean {near[0]!r}?" if near else None
            )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise JuryError(message)
