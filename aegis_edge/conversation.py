"""What is checked: a prompt, and the response to it where there is one."""

from __future__ import annotations

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
