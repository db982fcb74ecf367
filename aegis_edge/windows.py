"""Long texts: how much is taken, and where a text is cut into windows.

The ids are cut, not the text: no character can fall between two windows, and every token is in one at least.
"""

from __future__ import annotations

from dataclasses import dataclass

from aegis_edge.errors import AegisError

MAX_TOKENS = 1 << 16  # of one conversation: half a minute of two cores with the 135M model
MOST_OVERLAP = 256
LEAST_WINDOW = 16


@dataclass(frozen=True)
class Limits:
    """What a guard does with long texts.

    window       most tokens of content judged at once; None: as many as the context holds
    max_tokens   of one conversation; more raise ContextError. What they cost grows in proportion
    refuse_long  raise ContextError for what does not fit one window, instead of splitting it
    """

    window: int | None = None
    max_tokens: int = MAX_TOKENS
    refuse_long: bool = False

    def __post_init__(self) -> None:
        if self.window is not None and self.window < LEAST_WINDOW:
            raise AegisError(f"a window of {self.window} tokens; {LEAST_WINDOW} are the least")
        if self.max_tokens < 1:
            raise AegisError(f"a budget of {self.max_tokens} tokens; 1 is the least")


def overlap(size: int) -> int:
    """Tokens that two neighbours of `size` tokens share: a quarter, 256 at most.

    What is no longer than this, wherever it stands, lies whole in one window.
    """
    return min(size // 4, MOST_OVERLAP)


def spans(tokens: int, size: int) -> list[tuple[int, int]]:
    """(start, end) of the windows over `tokens` >= 0 tokens, each of `size` >= 1 but the last, which is
    longer than the overlap. They begin at fixed places, so that those of a growing text stay where they are.
    """
    step = size - overlap(size)
    count = 1 + max(0, -(-(tokens - size) // step))
    return [(i * step, min(tokens, i * step + size)) for i in range(count)]
