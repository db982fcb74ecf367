"""Text to measure with: the project's own harmless prompts, cut to exact numbers of tokens."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from aegis_edge.cli.check import MAX_BYTES
from aegis_edge.cli.lines import read_lines
from aegis_edge.conversation import Conversation, Dialogue
from aegis_edge.data.generate import generate
from aegis_edge.encoding import ContentEncoder
from aegis_edge.errors import InputError

# Another seed than training's: none of these was trained on as it stands.
SEED = 20_000


def of_length(encoder: ContentEncoder, tokens: int, seed: int = SEED) -> str:
    """A text of exactly `tokens` tokens made of generated prompts. Raises InputError where none is found."""
    source = generate(max(64, tokens), seed)
    words = " ".join(text for _, text in source).split()
    for start in range(len(words)):
        for text in _growing(words[start:]):
            count = len(encoder.ids(text))
            if count == tokens:
                return text
            if count > tokens:
                break
    raise InputError(f"no text of {tokens} tokens could be made with this guard's tokenizer")


def _growing(words: list[str]) -> Iterator[str]:
    # Few words have more than two tokens: starting close below the length saves most of the encoding.
    for count in range(1, len(words) + 1):
        yield " ".join(words[:count])


def mixed(encoder: ContentEncoder, count: int = 64, shortest: int = 10, longest: int = 60) -> list[str]:
    """`count` prompts of `shortest` to `longest` tokens, lengths spread evenly, in random order."""
    lengths = [shortest + (longest - shortest) * i // max(1, count - 1) for i in range(count)]
    random.Random(SEED).shuffle(lengths)
    return [of_length(encoder, length, SEED + i) for i, length in enumerate(lengths)]


def sample(count: int, seed: int = SEED) -> list[Conversation]:
    """`count` different generated prompts, for comparing verdicts."""
    return [Conversation(text) for _, text in generate(count, seed)]


def read(path: Path, count: int) -> list[Conversation]:
    """The first `count` conversations of a file of JSON lines such as `aegis-edge check --file` takes."""
    found: list[Conversation] = []
    try:
        with path.open("rb") as file:
            for line in islice(read_lines(file, MAX_BYTES), count):
                if line.conversation is None:
                    raise InputError(f"{path}, line {line.number}: {line.error}")
                if isinstance(line.conversation, Dialogue):
                    raise InputError(
                        f"{path}, line {line.number}: a dialogue; prompts and responses are timed"
                    )
                found.append(line.conversation)
    except OSError as error:
        raise InputError(f"{path}: can not be read: {error.strerror}") from error
    return found
