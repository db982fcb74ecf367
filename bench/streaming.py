"""What it costs to go on: a chunk of 16 tokens fed to a conversation of 1,000, beside a check of 16 tokens.

python -m aegis_edge.bench.streaming GUARD [THREADS]

The two are timed in turns, so that a machine that slows down slows both. A chunk should cost at most 1.5
times a check of as many tokens; the command exits with 1 where the medians say otherwise.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from aegis_edge import Guard, machine
from aegis_edge.artifact import Artifact
from aegis_edge.bench.guards import NEVER, Text
from aegis_edge.bench.prompts import of_length
from aegis_edge.guard import open_scorer

CHUNK, CONVERSATION, ROUNDS, LIMIT = 16, 1000, 40, 1.5
CHUNKS = 4  # of a stream: then another one begins, so that a conversation of 1,000 tokens stays one


@dataclass(frozen=True)
class Growth:
    """Medians in seconds: of a check of CHUNK tokens, and of a chunk as long fed to a conversation of
    `tokens` at most."""

    check: float
    chunk: float
    tokens: int

    @property
    def ratio(self) -> float:
        return self.chunk / self.check


def measure(guard: Guard, text: Text, conversation: int = CONVERSATION, rounds: int = ROUNDS) -> Growth:
    """Times both `rounds` times, in turns; no verdict needs a second pass where the guard's thresholds are
    NEVER. A conversation of `conversation` tokens grows by CHUNKS chunks, the first of which is no round."""
    prompt = of_length(text.encoder, CHUNK)
    words = of_length(text.encoder, conversation + (CHUNKS + 1) * CHUNK).split(" ")
    checks: list[float] = []
    chunks: list[float] = []
    tokens = 0
    while len(chunks) < rounds:
        with guard.stream(prompt) as stream:
            at = _words(text, words, 0, conversation - len(text.encoder.ids(prompt)))
            stream.feed(_piece(words, 0, at))
            for number in range(CHUNKS):
                start, at = at, _words(text, words, at, CHUNK)
                piece = _piece(words, start, at)
                seconds = _seconds(guard.check, prompt), _seconds(stream.feed, piece)
                if number and len(chunks) < rounds:
                    checks.append(seconds[0])
                    chunks.append(seconds[1])
            tokens = max(tokens, stream.verdict.tokens)
    return Growth(statistics.median(checks), statistics.median(chunks), tokens)


def _words(text: Text, words: list[str], start: int, tokens: int) -> int:
    """Where the words from `start` on that make at least so many tokens end."""
    low, high = start + 1, len(words)
    while low < high:
        middle = (low + high) // 2
        if len(text.encoder.ids(_piece(words, start, middle))) < tokens:
            low = middle + 1
        else:
            high = middle
    return low


def _piece(words: list[str], start: int, end: int) -> str:
    return "".join(f" {word}" for word in words[start:end])


def _seconds(call: Callable[[str], object], text: str) -> float:
    start = time.perf_counter()
    call(text)
    return time.perf_counter() - start


def main(folder: str, threads: int | None = None) -> int:
    """Print the medians; 0 where a chunk costs at most LIMIT checks."""
    artifact = Artifact.open(folder)
    text = Text(artifact)
    found = measure(text.guard(open_scorer(artifact, "cpu", threads), NEVER), text)
    about = machine.describe()
    print(f"{about['cpu']}, {about['isa']}, {threads or about['threads']} threads; medians of {ROUNDS}")
    print(f"check of {CHUNK} tokens                        {1e3 * found.check:7.2f} ms")
    print(f"{CHUNK} tokens fed to {CONVERSATION} to {found.tokens}          {1e3 * found.chunk:7.2f} ms")
    print(f"ratio {found.ratio:.2f}, limit {LIMIT}")
    return int(found.ratio > LIMIT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(int, sys.argv[2:3])))
