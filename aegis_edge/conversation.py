"""What is checked: a prompt, and the response to it where there is one; or a dialogue of many turns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from aegis_edge.errors import InputError


@dataclass(frozen=True)
class Conversation:
    """Text handed in for checking, normalised to `str` and otherwise left as it is, never stripped or cut.

    `bytes` are decoded as strict UTF-8. Text that UTF-8 can not express (lone surrogates) and everything that
    is not text raises InputError. Empty text and NUL are text. An empty response is a response; None is none.
    """

    prompt: str
    response: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", _text(self.prompt, "prompt"))
        if self.response is not None:
            object.__setattr__(self, "response", _text(self.response, "response"))

    @classmethod
    def of(cls, item: object) -> Conversation:
        """From a prompt (str or bytes), a (prompt, response) pair, or a Conversation. Raises InputError."""
        if isinstance(item, Conversation):
            return item
        if isinstance(item, (str, bytes)):
            return cls(item)  # type: ignore[arg-type]  # bytes become str in __post_init__
        if isinstance(item, (tuple, list)) and len(item) == 2:
            return cls(*item)
        raise InputError(
            f"expected text, a (prompt, response) pair or a Conversation, found {_describe(item)}",
            hint="a prompt without a response is plain text, or a pair whose second part is None",
        )


ASSISTANT = "assistant"
ROLES = ("system", "developer", "user", "tool", ASSISTANT)


@dataclass(frozen=True)
class Turn:
    """What one party of a dialogue said. `role`: one of ROLES; `content`: as a Conversation's prompt."""

    role: str
    content: str


@dataclass(frozen=True)
class Dialogue:
    """Turns in order, one at least.

    Every turn is judged: those of the assistant as responses to the user's turn before them (to an empty
    prompt where there is none), all others as prompts. What a turn means only together with earlier
    exchanges is not seen.
    """

    turns: tuple[Turn, ...]

    @classmethod
    def of(cls, messages: Iterable[object]) -> Dialogue:
        """From messages {"role": ..., "content": ...}, "name" allowed; raises InputError for anything else,
        so that nothing in a message goes unjudged."""
        turns = []
        for index, message in enumerate(messages):
            if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
                raise InputError(f'turn {index}: expected {{"role": ..., "content": ...}}')
            if others := sorted(map(str, message.keys() - {"role", "content", "name"})):
                raise InputError(
                    f"turn {index}: {', '.join(others)}: a guard judges text alone",
                    hint="put what should be judged into the content, and leave the rest out",
                )
            if message["role"] not in ROLES:
                raise InputError(
                    f"turn {index}: unknown role {message['role']!r}", hint=f"roles: {', '.join(ROLES)}"
                )
            turns.append(Turn(message["role"], _text(message["content"], f"turn {index}")))
        if not turns:
            raise InputError("a dialogue without turns")
        return cls(tuple(turns))

    def exchanges(self) -> list[tuple[int | None, int | None]]:
        """(turn judged as prompt, turn judged as response to it), in order; together they name all turns."""
        found: list[tuple[int | None, int | None]] = []
        user: int | None = None
        for index, turn in enumerate(self.turns):
            if turn.role != ASSISTANT:
                found.append((index, None))
                user = index if turn.role == "user" else user
            elif found and found[-1] == (user, None):
                found[-1] = (user, index)
            else:
                found.append((user, index))
        return found


def conversation_of(item: object) -> Conversation | Dialogue:
    """What `Conversation.of` takes, or a Dialogue, or a list of messages. Raises InputError."""
    if isinstance(item, Dialogue):
        return item
    if isinstance(item, (list, tuple)) and item and isinstance(item[0], Mapping):
        return Dialogue.of(item)
    return Conversation.of(item)


def _text(value: object, part: str) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{part}: not valid UTF-8 (byte 0x{value[error.start]:02x} at offset {error.start})",
                hint='decode it with its own encoding first, or with errors="replace"',
            ) from error
    if not isinstance(value, str):
        raise InputError(f"{part}: expected text, found {_describe(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{part}: not valid Unicode: lone surrogate U+{ord(value[error.start]):04X} at {error.start}",
            hint="the text was decoded wrongly or cut within a character; repair it before checking",
        ) from error
    return value


def _describe(value: object) -> str:
    size = f" of {len(value)}" if isinstance(value, (tuple, list)) else ""
    return f"{type(value).__name__}{size}"
