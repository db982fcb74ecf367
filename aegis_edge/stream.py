"""A response judged while it is written.

Every verdict is that of `guard.check` on the prompt and the text so far, whatever chunks it came in: bit for
bit in the compiled runtime, but for rounding elsewhere. The text is tokenised anew from its last settled
word, ids that the tree holds already are kept (`growth.py`), and only the rest is computed.
"""

from __future__ import annotations

import asyncio
import codecs
import re
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager

import numpy as np

from aegis_edge.conversation import Conversation
from aegis_edge.decision import Outcome, Verdict
from aegis_edge.encoding import ContentEncoder, Encoded
from aegis_edge.errors import AegisError, InputError, UnsafeError
from aegis_edge.families.plan import RESPONSE
from aegis_edge.growth import Growth, common
from aegis_edge.passes import CHUNK_TOKENS, Passes
from aegis_edge.reading import Part, Reader
from aegis_edge.scoring import IdArray

Key = tuple[tuple[bytes, int, tuple[int, ...]], ...]


class Stream:
    """A prompt and its growing response. Not thread-safe: one feeder at a time.

    verdict        on all that was judged so far; at first on the prompt alone
    text           all that was fed, but for bytes of a character that is not whole yet
    text_released  what may be shown: the longest beginning that was judged, and safe each time. It stays
                   where it is once a verdict was unsafe, whatever later ones say

    Use it in `with`, or call `close`. Where feeding raised, there is no verdict any more.
    """

    def __init__(self, reader: Reader, passes: Passes, prompt: str | bytes, every: int = 1) -> None:
        """Judges the prompt. `every`: least number of new tokens worth a verdict; text that waits for more is
        not released. Raises as `Guard.check` does."""
        if every < 1:
            raise AegisError(f"a verdict every {every} tokens; 1 is the least")
        self._reader, self._passes, self._every = reader, passes, every
        self._conversation = Conversation(prompt)  # type: ignore[arg-type]  # bytes become str in it
        self.text, self.text_released = "", ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._prompts: dict[str, IdArray] = {}
        self._raw, self._view = _GrowingIds(reader.content), _GrowingIds(reader.content)
        self._outcomes: dict[Key, Outcome] = {}
        self._judged = np.zeros(0, np.int32)  # ids of the response
        self._state = "open"
        self._tree = ExitStack()
        self._growth = Growth(passes, self._tree.enter_context(passes.tree()))
        self.verdict = self._judge(self._conversation)
        self._is_released = self.verdict.safe

    def feed(self, chunk: str | bytes) -> Verdict:
        """Add to the response: the verdict on all so far, or the last one while fewer than `every` tokens are
        new. Raises as `Guard.check` does."""
        self._require("open")
        with self._or_fail():
            self.text += self._decoded(chunk)
            self._conversation = Conversation(self._conversation.prompt, self.text)
            ids = self._raw.ids(self._joined())
            if len(ids) - common(ids, self._judged) >= self._every:
                self._update(ids)
        return self.verdict

    def close(self) -> Verdict:
        """The verdict on the whole, that of `check(prompt, text)`; further calls give it again."""
        if self._state != "closed":
            self._require("open")
            with self._or_fail():
                self._decoder.decode(b"", final=True)
                self._conversation = Conversation(self._conversation.prompt, self.text)
                self._update(self._judged, is_last=True)
                self._tree.close()
            self._state = "closed"
        return self.verdict

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._fail()
        elif self._state == "open":
            self.close()

    def _update(self, ids: IdArray, is_last: bool = False) -> None:
        self.verdict = self._judge(self._conversation, is_last)
        self._judged = ids
        self._is_released &= self.verdict.safe
        if self._is_released:
            self.text_released = self.text

    def _judge(self, conversation: Conversation, is_last: bool = False) -> Verdict:
        # The last time all is tokenised at once: the final verdict does not rest on what was settled.
        script = self._reader.read(conversation, None if is_last else self._ids)
        keys = [_key(part.encoded) for part in script.parts]
        new = {key: part for key, part in zip(keys, script.parts, strict=True) if key not in self._outcomes}
        # Windows that grow no more are of no use in the tree: they are judged apart.
        apart = [k for k, part in new.items() if part.encoded.size > CHUNK_TOKENS and not _may_grow(part)]
        for key, outcome in zip(apart, self._passes.judge([new[k].encoded for k in apart]), strict=True):
            self._outcomes[key] = outcome
        rest = [key for key in new if key not in self._outcomes]
        if rest:
            outcomes = self._growth.judge([new[key].encoded for key in rest])
            self._outcomes |= dict(zip(rest, outcomes, strict=True))
        self._outcomes = {key: self._outcomes[key] for key in keys}
        return self._reader.verdict(script, [self._outcomes[key] for key in keys])

    def _ids(self, text: str) -> IdArray:
        if self._conversation.response is None:  # the prompt, and views of it: they stay
            self._prompts[text] = self._reader.content.encode(text)
        if text in self._prompts:
            return self._prompts[text]
        return (self._raw if text == self._joined() else self._view).ids(text)

    def _joined(self) -> str:
        return self._reader.joined(RESPONSE, self.text)

    def _decoded(self, chunk: str | bytes) -> str:
        if isinstance(chunk, bytes):
            return self._decoder.decode(chunk)
        if not isinstance(chunk, str):
            raise InputError(f"response: expected text, found {type(chunk).__name__}")
        self._decoder.decode(b"", final=True)  # raises where a character in bytes has begun
        return chunk

    def _require(self, state: str) -> None:
        if self._state != state:
            raise AegisError(
                f"the stream is {self._state}", hint="make another one with guard.stream(prompt)"
            )

    @contextmanager
    def _or_fail(self) -> Iterator[None]:
        try:
            yield
        except UnicodeDecodeError as error:
            self._fail()
            raise InputError(f"response: not valid UTF-8 ({error.reason})") from error
        except BaseException:
            self._fail()
            raise

    def _fail(self) -> None:
        if self._state == "open":
            self._state = "broken off"
            self._tree.pop_all()  # the tree's state is unknown: it is not handed back


def guarded(open_stream: Callable[[], Stream], pieces: Iterable[str | bytes]) -> Iterator[str]:
    """The pieces' text, each part of it once it was judged safe.

    Raises UnsafeError where the prompt is unsafe, before a piece is taken, and where the response is, in
    place of what is unsafe; the source is then closed. What can not be judged raises as in `Guard.check`.
    """
    shown = 0
    with ExitStack() as cleanup:
        if hasattr(pieces, "close"):
            cleanup.callback(pieces.close)
        stream = cleanup.enter_context(open_stream())
        _require_safe(stream)
        for piece in pieces:
            stream.feed(piece)
            _require_safe(stream)
            if len(stream.text_released) > shown:
                yield stream.text_released[shown:]
                shown = len(stream.text_released)
        stream.close()
        _require_safe(stream)
        if len(stream.text_released) > shown:
            yield stream.text_released[shown:]


async def aguarded(
    open_stream: Callable[[], Stream], pieces: AsyncIterable[str | bytes]
) -> AsyncIterator[str]:
    """`guarded` over an asynchronous source. Passes run in a thread: the event loop goes on meanwhile."""
    shown = 0
    async with AsyncExitStack() as cleanup:
        if hasattr(pieces, "aclose"):
            cleanup.push_async_callback(pieces.aclose)
        stream = cleanup.enter_context(await asyncio.to_thread(open_stream))
        _require_safe(stream)
        async for piece in pieces:
            await asyncio.to_thread(stream.feed, piece)
            _require_safe(stream)
            if len(stream.text_released) > shown:
                yield stream.text_released[shown:]
                shown = len(stream.text_released)
        await asyncio.to_thread(stream.close)
        _require_safe(stream)
        if len(stream.text_released) > shown:
            yield stream.text_released[shown:]


class _GrowingIds:
    """Ids of a text that grows. What lies before a space between two letters is settled: tokenisers part
    words there (where one does not, the ids do not add up, and nothing is settled)."""

    MARGIN, MOST = 64, 256  # characters that are never settled, and after which it is tried
    _WORD_END = re.compile(r"(?<=[^\W\d_]) (?=[^\W\d_])")

    def __init__(self, encoder: ContentEncoder) -> None:
        self._encoder = encoder
        self._settled, self._settled_ids = "", np.zeros(0, np.int32)
        self._last: tuple[str, IdArray] | None = None

    def ids(self, text: str) -> IdArray:
        """int32 [n]: those of the whole text."""
        if self._last is None or self._last[0] != text:
            self._last = text, self._found(text)
        return self._last[1]

    def _found(self, text: str) -> IdArray:
        if not text.startswith(self._settled):
            self._settled, self._settled_ids = "", np.zeros(0, np.int32)
        tail = text[len(self._settled) :]
        ids = self._encoder.encode(tail)
        found = np.concatenate([self._settled_ids, ids])
        if len(tail) > self.MOST:
            ends = [match.start() for match in self._WORD_END.finditer(tail, 0, len(tail) - self.MARGIN)]
            if ends:
                before, after = self._encoder.encode(tail[: ends[-1]]), self._encoder.encode(tail[ends[-1] :])
                if np.array_equal(np.concatenate([before, after]), ids):
                    self._settled += tail[: ends[-1]]
                    self._settled_ids = np.concatenate([self._settled_ids, before])
        return found


def _may_grow(part: Part) -> bool:
    """Whether a part ends where its last text ends."""
    span = list(part.about.values())[-1]
    return span.end == len(span.source.ids)


def _key(encoded: Encoded) -> Key:
    return tuple((segment.ids.tobytes(), segment.parent, segment.slots) for segment in encoded.segments)


def _require_safe(stream: Stream) -> None:
    if not stream.verdict.safe:
        what = "response" if stream.verdict.prompt.safe else "prompt"
        raise UnsafeError(f"the {what} was found unsafe", verdict=stream.verdict)
