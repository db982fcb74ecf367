"""A family as a user writes it: one TOML file (README.md). export/chat.py makes a Spoken of it."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aegis_edge.errors import FamilyError, PolicyError
from aegis_edge.families.answers import Answers
from aegis_edge.families.spoken import Own
from aegis_edge.policy import Policy

BUILT_IN = Path(__file__).parent
_MORE = {"categories", "none", "controversial", "refuses", "complies", "end"}  # answers that may be left out
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """A turn for the checkpoint's chat template; `content` holds placeholders."""

    role: str
    content: str


@dataclass(frozen=True)
class Recipe:
    """A family before its text is known.

    prompt, exchange  text with control tokens written out, or messages for the checkpoint's chat template
    line, line_exchange, allowed, answers, own  as in Spoken
    lead       what the guard writes before its answer; left out where the text ends with it
    variables  further variables of the chat template; they may hold {category}
    policy     the policy that is compiled where none is given; None: the 23 categories
    source     the file it comes from and its text, so that errors can name a line
    """

    name: str
    prompt: str | tuple[Message, ...]
    exchange: str | tuple[Message, ...] | None
    line: str | None
    allowed: str | None
    answers: Answers
    lead: str = ""
    variables: Mapping[str, Any] = field(default_factory=dict)
    line_exchange: str | None = None
    own: tuple[Own, ...] = ()
    policy: Policy | None = None
    source: tuple[str, str] | None = None

    @classmethod
    def from_toml(cls, text: str, file: str = "family") -> Recipe:
        """Read TOML. Raises FamilyError naming file, line and key."""
        try:
            data = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise FamilyError(
                f"{file}: not valid TOML: {error}"
            ) from error  # it ends with "(at line L, ...)"
        try:
            return _read(data, (file, text))
        except FamilyError as error:
            raise located(error, (file, text)) from error

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Recipe:
        """Read a TOML file. Raises FamilyError naming file, line and key."""
        try:
            return cls.from_toml(Path(path).read_text("utf-8"), Path(path).name)
        except (OSError, UnicodeDecodeError) as error:
            raise FamilyError(f"{path}: can not be read: {error}") from error


def located(error: FamilyError, source: tuple[str, str] | None) -> FamilyError:
    """The error, its message led by file and line of the key that it begins with."""
    key = str(error).partition(":")[0]
    if source is None or not re.fullmatch(r"[\w.\[\]]+", key):
        return error
    line = line_of(source[1], key)
    where = f"{source[0]}: line {line}: " if line else f"{source[0]}: "
    return FamilyError(f"{where}{error}", hint=error.hint)


def line_of(text: str, key: str) -> int | None:
    """The 1-based line of a key ("answers.safe", "prompt[1].content") in valid TOML, else that of its table,
    else None."""
    lines = text.splitlines()
    table, _, leaf = key.rpartition(".")
    found = re.fullmatch(r"(\w+)\[(\d+)\]", table or leaf)
    headers: list[int] = []
    if found:
        headers = [i for i, line in enumerate(lines) if re.match(rf"\s*\[\[\s*{found[1]}\s*\]\]", line)]
        headers = headers[int(found[2]) :][:1]
    elif table:
        headers = [i for i, line in enumerate(lines) if re.match(rf"\s*\[\s*{re.escape(table)}\s*\]", line)][
            :1
        ]
    first = headers[0] + 1 if headers else 0
    # A line of text that merely looks like the key is passed over only where a table says where to look.
    for i in range(first, len(lines)):
        if headers and re.match(r"\s*\[\[?\s*\w+\s*\]\]?\s*$", lines[i]):
            break
        if re.match(rf"""\s*["']?{re.escape(leaf)}["']?\s*=""", lines[i]):
            return i + 1
        if not table and re.match(rf"\s*\[\[?\s*{re.escape(leaf)}\s*\]\]?\s*$", lines[i]):
            return i + 1
    return first or None


def _read(data: Mapping[str, Any], source: tuple[str, str]) -> Recipe:
    known = {"name", "prompt", "exchange", "category", "category_exchange", "allowed", "categories",
             "answers", "lead", "variables"}  # fmt: skip
    _check_keys(data, known, "")
    answers = data.get("answers")
    if not isinstance(answers, Mapping):
        raise FamilyError("answers: a table is missing")
    _check_keys(answers, set(Answers.__dataclass_fields__), "answers.")
    variables = data.get("variables", {})
    if not isinstance(variables, Mapping):
        raise FamilyError("variables: expected a table")
    exchange = data.get("exchange")
    return Recipe(
        _string(data, "name", ""),
        _asked(data.get("prompt"), "prompt"),
        None if exchange is None else _asked(exchange, "exchange"),
        _string(data, "category", "") if "category" in data else None,
        _string(data, "allowed", "") if "allowed" in data else None,
        Answers(
            _string(answers, "safe", "answers."),
            _string(answers, "unsafe", "answers."),
            _string(answers, "prompt", "answers."),
            _string(answers, "exchange", "answers.") if "exchange" in answers else None,
            **{key: _string(answers, key, "answers.") for key in _MORE & answers.keys()},
        ),
        _string(data, "lead", "") if "lead" in data else "",
        dict(variables),
        _string(data, "category_exchange", "") if "category_exchange" in data else None,
        _own(data) if "category" not in data else (),
        _policy(data) if "category" in data else None,
        source,
    )


def _policy(data: Mapping[str, Any]) -> Policy | None:
    """The categories that are asked about where no policy is given."""
    if "categories" not in data:
        return None
    try:
        return Policy.from_dict({"categories": data["categories"]})
    except PolicyError as error:
        raise FamilyError(str(error), hint=error.hint) from error


def _own(data: Mapping[str, Any]) -> tuple[Own, ...]:
    """The categories of a policy that the checkpoint's template brings."""
    found: list[Own] = []
    entries = data.get("categories", [])
    if not isinstance(entries, list):
        raise FamilyError("categories: expected tables [[categories]]")
    for index, entry in enumerate(entries):
        where = f"categories[{index}]"
        if not isinstance(entry, Mapping):
            raise FamilyError(f"{where}: expected a table")
        _check_keys(entry, {"name", "code", "of"}, f"{where}.")
        of = entry.get("of")
        if of not in (None, "prompt", "response"):
            raise FamilyError(f"{where}.of: {of!r} is neither prompt nor response")
        code = _string(entry, "code", f"{where}.") if "code" in entry else None
        found.append(Own(_string(entry, "name", f"{where}."), code, of))
        if found[-1].name in {own.name for own in found[:-1]}:
            raise FamilyError(f"{where}.name: {found[-1].name!r} stands twice")
    return tuple(found)


def _asked(value: Any, key: str) -> str | tuple[Message, ...]:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise FamilyError(f"{key}: expected text, or messages [[{key}]]")
    messages = []
    for index, message in enumerate(value):
        where = f"{key}[{index}]"
        if not isinstance(message, Mapping):
            raise FamilyError(f"{where}: expected a table")
        _check_keys(message, {"role", "content"}, f"{where}.")
        role = _string(message, "role", f"{where}.")
        if role not in _ROLES:
            raise FamilyError(f"{where}.role: {role!r} is none of {', '.join(_ROLES)}")
        messages.append(Message(role, _string(message, "content", f"{where}.")))
    return tuple(messages)


def _check_keys(table: Mapping[str, Any], known: Iterable[str], prefix: str) -> None:
    for key in table:
        if key not in known:
            raise FamilyError(f"{prefix}{key}: unknown key", hint=f"known here: {', '.join(sorted(known))}")


def _string(table: Mapping[str, Any], key: str, prefix: str) -> str:
    if key not in table:
        raise FamilyError(f"{prefix}{key}: is missing")
    if not isinstance(table[key], str):
        raise FamilyError(f"{prefix}{key}: expected text")
    return str(table[key])
