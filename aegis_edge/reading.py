"""What a conversation is read as: whole where it fits, in windows where it does not; and the verdict on it.

dialogue       every turn, in exchanges of a prompt and the response to it
prompt alone   windows of the prompt
with response  windows of the prompt, judged alone, and windows of the response, each under the prompt, or
               under its end where it takes more than half of a window
second view    the same again, of what Unicode hides made plain, where that differs
verdict        every question's highest risk, every category's highest probability
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from aegis_edge.conversation import ASSISTANT, Conversation, Dialogue
from aegis_edge.decision import Outcome, Rating, Verdict, Window, merged
from aegis_edge.encoding import ConversationEncoder, Encoded, too_long
from aegis_edge.errors import ContextError, ScorerError
from aegis_edge.families.plan import PROMPT, RESPONSE
from aegis_edge.scoring import IdArray
from aegis_edge.views import view_of
from aegis_edge.windows import LEAST_WINDOW, Limits, spans


@dataclass(frozen=True, eq=False)
class Source:
    """A text that is read. of: "prompt" or "response"; ids: int32 [n], all of it; turn: of a dialogue;
    is_view: not as it was handed in."""

    of: str
    text: str
    ids: IdArray
    turn: int | None = None
    is_view: bool = False


@dataclass(frozen=True)
class Span:
    """The tokens `start` to `end` of a source."""

    source: Source
    start: int
    end: int


@dataclass(frozen=True)
class Part:
    """What is judged at once. `about`: what each question is asked of."""

    encoded: Encoded
    about: Mapping[str, Span]


@dataclass(frozen=True)
class Script:
    """A conversation as it is read: its texts, the parts that hold every token of them, and the names of what
    Unicode hides."""

    sources: tuple[Source, ...]
    parts: tuple[Part, ...]
    anomalies: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens of the texts that were handed in."""
        return sum(len(source.ids) for source in self.sources if not source.is_view)


class Reader:
    """Conversations to scripts, and what was found in their parts to verdicts. Safe to use from several
    threads."""

    def __init__(self, encoder: ConversationEncoder, limits: Limits) -> None:
        self._encoder, self._limits = encoder, limits
        self.content, self.joined = encoder.content, encoder.joined

    def read(
        self, conversation: Conversation | Dialogue, ids: Callable[[str], IdArray] | None = None
    ) -> Script:
        """`ids` encodes the texts (joined, see `joined`) in place of the encoder, to the same ids. Raises
        ContextError past the budget, and where long texts are refused, for those; InputError for a response
        to a guard that judges prompts alone."""
        texts, exchanges = _texts(conversation)
        encode = ids or self.content.encode
        sources = self._sources(texts, encode)
        parts = [part for exchange in exchanges for part in self._split(*(sources[i] for i in exchange))]
        seen = [view_of(text) for _, text, _ in texts]
        names = tuple(dict.fromkeys(name for _, found in seen for name in found))
        if names:
            changed = [(of, view, turn) for (of, _, turn), (view, _) in zip(texts, seen, strict=True)]
            views = self._sources(changed, encode, is_view=True)
            for exchange in exchanges:
                if any(seen[i][1] for i in exchange):
                    parts += self._split(*(views[i] for i in exchange))
            sources += views
        return Script(tuple(sources), tuple(parts), names)

    def _sources(
        self,
        texts: Sequence[tuple[str, str, int | None]],
        encode: Callable[[str], IdArray],
        is_view: bool = False,
    ) -> list[Source]:
        """Texts encoded, where they keep to the budget together."""
        limit = self._limits.max_tokens
        if least := max(self.content.least(text, limit) for _, text, _ in texts):
            raise _past_budget(f"at least {least}", limit)
        sources = [Source(of, text, encode(self.joined(of, text)), turn, is_view) for of, text, turn in texts]
        tokens = sum(len(source.ids) for source in sources)
        if tokens > limit:
            raise _past_budget(str(tokens), limit)
        return sources

    def verdict(self, script: Script, outcomes: Sequence[Outcome]) -> Verdict:
        """The verdict on a script, from what was found in each of its parts. Raises ScorerError where a token
        is in no part."""
        worst: dict[str, Rating] = {}
        decisive: tuple[Rating, Span] | None = None
        for part, outcome in zip(script.parts, outcomes, strict=True):
            for question, rating in outcome.ratings.items():
                if question not in worst or _risk(rating) > _risk(worst[question]):
                    worst[question] = rating
                if decisive is None or _risk(rating) > _risk(decisive[0]):
                    decisive = rating, part.about[question]
        seen = sum(_seen(source, script.parts) for source in script.sources if not source.is_view)
        if seen != script.tokens or decisive is None:
            raise ScorerError(f"{seen} of {script.tokens} tokens were scored; no verdict can be given")
        refusals = [outcome.refusal for outcome in outcomes if outcome.refusal is not None]
        masses = [outcome.label_mass for outcome in outcomes if outcome.label_mass is not None]
        return Verdict(
            all(rating.safe for rating in worst.values()),
            worst[PROMPT],
            worst.get(RESPONSE),
            merged(claim for outcome in outcomes for claim in outcome.categories),
            script.tokens,
            min(masses, default=None),
            self._window(decisive[1]),
            decisive[1].source.turn,
            ", ".join(script.anomalies) or None,
            max(refusals, default=None),
        )

    def _split(self, prompt: Source, response: Source | None = None) -> list[Part]:
        """The parts of one exchange."""
        size = self._size(response is not None)
        whole = {PROMPT: Span(prompt, 0, len(prompt.ids))}
        if response is not None:
            whole[RESPONSE] = Span(response, 0, len(response.ids))
        tokens = sum(span.end for span in whole.values())
        if tokens <= size:
            return [self._part(whole)]
        if self._limits.refuse_long or size < LEAST_WINDOW:
            raise too_long(str(tokens), size)
        alone = spans(len(prompt.ids), self._size(False))
        parts = [self._part({PROMPT: Span(prompt, start, end)}) for start, end in alone]
        if response is not None:
            start = max(0, len(prompt.ids) - size // 2) if len(prompt.ids) > size // 2 else 0
            context = Span(prompt, start, len(prompt.ids))
            for start, end in spans(len(response.ids), size - (context.end - context.start)):
                parts.append(self._part({PROMPT: context, RESPONSE: Span(response, start, end)}))
        return parts

    def _part(self, about: Mapping[str, Span]) -> Part:
        ids = {
            question: self._encoder.cut(question, span.source.ids, span.start, span.end)
            for question, span in about.items()
        }
        return Part(self._encoder.lay_out(ids[PROMPT], ids.get(RESPONSE)), about)

    def _size(self, has_response: bool) -> int:
        limit = self._encoder.limit(has_response)
        return limit if self._limits.window is None else min(limit, self._limits.window)

    def _window(self, span: Span) -> Window | None:
        source, start, end = span.source, span.start, span.end
        if end - start == len(source.ids):
            return None
        characters = None if source.is_view else self._encoder.characters(source.of, source.text, start, end)
        return Window(source.of, start, end, characters)


def _texts(
    conversation: Conversation | Dialogue,
) -> tuple[list[tuple[str, str, int | None]], list[tuple[int, ...]]]:
    """Texts as (prompt or response, text, turn), and the exchanges they make: numbers of a prompt, and of a
    response where there is one."""
    if isinstance(conversation, Conversation):
        if conversation.response is None:
            return [(PROMPT, conversation.prompt, None)], [(0,)]
        return [(PROMPT, conversation.prompt, None), (RESPONSE, conversation.response, None)], [(0, 1)]
    texts: list[tuple[str, str, int | None]] = [
        (RESPONSE if turn.role == ASSISTANT else PROMPT, turn.content, index)
        for index, turn in enumerate(conversation.turns)
    ]
    exchanges: list[tuple[int, ...]] = []
    for prompt, response in conversation.exchanges():
        if prompt is None:
            prompt = len(texts)
            texts.append((PROMPT, "", response))
        exchanges.append((prompt,) if response is None else (prompt, response))
    return texts, exchanges


def _risk(rating: Rating) -> tuple[bool, float]:
    return not rating.safe, rating.probability


def _seen(source: Source, parts: Sequence[Part]) -> int:
    """Tokens of a source that are in some part."""
    seen = 0
    for start, end in sorted(
        (span.start, span.end) for part in parts for span in part.about.values() if span.source is source
    ):
        seen = seen if start > seen else max(seen, end)  # behind a gap nothing counts
    return seen


def _past_budget(tokens: str, limit: int) -> ContextError:
    return ContextError(
        f"the conversation has {tokens} tokens; the budget is {limit}",
        hint="raise max_tokens (--max-tokens), or check it in parts; it is never cut silently",
    )
