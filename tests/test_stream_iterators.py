"""`guarded` and `aguarded`: any source of text, stopped before what is unsafe."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator

import pytest
from marker_guard import MARKER, marker_guard

from aegis_edge import UnsafeError
from aegis_edge.windows import Limits


@pytest.fixture(scope="module")
def marked(tiny_encoder, tiny_plan, tiny_policy):
    return marker_guard(tiny_encoder, tiny_plan, tiny_policy, Limits(), 512)


class Source:
    """Pieces one by one; remembers how many were taken and whether it was closed."""

    def __init__(self, pieces: list[str]) -> None:
        self._pieces, self.taken, self.closed = pieces, 0, False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self.taken == len(self._pieces):
            raise StopIteration
        self.taken += 1
        return self._pieces[self.taken - 1]

    def close(self) -> None:
        self.closed = True

    def __aiter__(self):
        return self

    async def __anext__(self) -> str:
        try:
            return next(self)
        except StopIteration:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        self.closed = True


def collect(guard, prompt: str, source: Source, kind: str, **options) -> tuple[str, UnsafeError | None]:
    """(what came out, what stopped it)."""
    out: list[str] = []

    async def drain() -> None:
        async for piece in guard.aguarded(prompt, source, **options):
            out.append(piece)

    try:
        if kind == "sync":
            for piece in guard.guarded(prompt, source, **options):
                out.append(piece)
        else:
            asyncio.run(drain())
    except UnsafeError as error:
        return "".join(out), error
    return "".join(out), None


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_safe_stream_comes_out_whole(marked, kind):
    source = Source(["one ", "two ", "", "three"])
    assert collect(marked, "lock?", source, kind) == ("one two three", None)
    assert source.closed
    assert collect(marked, "lock?", Source([]), kind) == ("", None)


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("every", [1, 16])
def test_an_unsafe_stream_is_stopped_before_what_is_unsafe(marked, kind, every):
    source = Source(["one " * 9, "two", MARKER, *["never taken"] * 99])
    out, error = collect(marked, "lock?", source, kind, every=every)
    assert error is not None and str(error) == "the response was found unsafe"
    assert error.verdict == pickle.loads(pickle.dumps(error)).verdict and not error.verdict.safe
    assert out.startswith("one ") and MARKER not in out and source.closed
    assert source.taken == 3 if every == 1 else source.taken < 20
    # At the very end as well, where nothing comes after it.
    out, error = collect(marked, "lock?", Source(["one ", MARKER]), kind, every=every)
    assert error is not None and MARKER not in out


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_an_unsafe_prompt_is_stopped_before_the_source_is_asked(marked, kind):
    source = Source(["one"])
    out, error = collect(marked, MARKER, source, kind)
    assert (out, str(error), source.taken, source.closed) == ("", "the prompt was found unsafe", 0, True)


def test_a_reader_that_leaves_closes_the_source(marked):
    source = Source(["one ", "two"])
    pieces = marked.guarded("lock?", source, every=1)
    assert next(pieces) == "one "
    pieces.close()
    assert source.closed
