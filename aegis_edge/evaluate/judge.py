"""An artefact under a scorer: guards of any policy over one set of weights, and their answers to records."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from aegis_edge.artifact import Artifact
from aegis_edge.conversation import Conversation
from aegis_edge.data.records import Record
from aegis_edge.decision import Rating, Verdict, read_calibration
from aegis_edge.encoding import ContentEncoder, ConversationEncoder
from aegis_edge.errors import ContextError
from aegis_edge.families import family_of
from aegis_edge.families.plan import Plan
from aegis_edge.guard import Guard, open_scorer
from aegis_edge.policy import Policy
from aegis_edge.scoring import Scorer
from aegis_edge.windows import Limits

Long = Literal["skip", "cut", "windows"]
PACK = 64  # records handed over at once: enough for packed passes, few enough for a progress bar


class Checker(Protocol):
    """What answers need of a guard under one policy."""

    def fits(self, conversation: Conversation) -> bool:
        """Whether the conversation fits the context beside the policy."""
        ...

    def check_many(self, items: Sequence[Conversation]) -> list[Verdict]: ...


@dataclass(frozen=True)
class Answer:
    """A guard's answer to a record.

    prompt, response  the ratings; None for a response that was not asked about
    named             codes of the categories it names
    cut               the text was too long and only its beginning was judged
    """

    prompt: Rating
    response: Rating | None
    named: frozenset[str]
    cut: bool


class Judge:
    """An opened artefact over one scorer."""

    def __init__(self, artifact: Artifact, scorer: Scorer, name: str, limits: Limits | None = None) -> None:
        self.name = name
        self._artifact, self._scorer, self._limits = artifact, scorer, limits
        self._encoder = ContentEncoder.from_json(artifact.tokenizer_json())
        self._own = Guard.from_artifact(artifact, scorer, limits=limits)
        self.policy = self._own.policy

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        scorer: str = "cpu",
        threads: int | None = None,
        window: int | None = None,
    ) -> Judge:
        """Open an artefact folder; scorer, threads and window as in `Guard.load`. Raises AegisError."""
        artifact = Artifact.open(folder)
        name = os.path.basename(os.path.normpath(folder))
        return cls(artifact, open_scorer(artifact, scorer, threads), f"{name}, {scorer}", Limits(window))

    def about(self) -> dict[str, Any]:
        """JSON-ready: name, scorer, quantisation, size of the policy, thresholds."""
        manifest = self._artifact.manifest
        return {
            "name": self.name,
            "scorer": self._scorer.name,
            "scheme": manifest["quantization"]["scheme"],
            "categories": len(self.policy.categories),
            "policy_sha256": self.policy.sha256,
            "thresholds": self.policy.to_dict()["thresholds"],
            "calibration": manifest["calibration"],
        }

    def under(self, policy: Policy | None = None) -> Checker:
        """The guard under a policy; None: its own. Another one costs a pass over its text when first used."""
        manifest = self._artifact.manifest
        guard, plan = self._own, Plan.from_json(manifest["family"]["plan"])
        if policy is not None:
            plan = family_of(manifest["family"]).compile(self._encoder, policy)
            calibration = read_calibration(manifest["calibration"])
            root = np.array(plan.root, np.int32)
            guard = Guard(
                self._scorer, self._encoder, plan, policy, calibration, root=root, limits=self._limits
            )
        return _Checker(guard, ConversationEncoder(self._encoder, plan, self._scorer.context))


@dataclass(frozen=True)
class _Checker:
    guard: Guard
    encoder: ConversationEncoder

    def fits(self, conversation: Conversation) -> bool:
        try:
            self.encoder.encode(conversation)
        except ContextError:
            return False
        return True

    def check_many(self, items: Sequence[Conversation]) -> list[Verdict]:
        return self.guard.check_many(items)


def answers(
    checker: Checker,
    records: Sequence[Record],
    long: Long = "skip",
    done: Callable[[int], None] = lambda count: None,
) -> list[Answer | None]:
    """Answers in the records' order; None where a text does not fit and is skipped.

    A response is only asked about where it is labelled: no verdict on a prompt depends on it. `done` is told
    how many records more are done. Raises AegisError where scoring fails.
    """
    found: list[Answer | None] = []
    for start in range(0, len(records), PACK):
        pack = [_fitted(checker, record, long) for record in records[start : start + PACK]]
        verdicts = iter(checker.check_many([fitted[0] for fitted in pack if fitted is not None]))
        found += [None if fitted is None else _answer(next(verdicts), fitted[1]) for fitted in pack]
        done(len(pack))
    return found


def _answer(verdict: Verdict, cut: bool) -> Answer:
    named = frozenset(score.code for score in verdict.categories if score.code is not None)
    return Answer(verdict.prompt, verdict.response, named, cut)


def _fitted(checker: Checker, record: Record, long: Long) -> tuple[Conversation, bool] | None:
    """(what is judged, whether it was cut), None where the record is skipped."""
    response = record.response if record.response_unsafe is not None else None
    whole = Conversation(record.prompt, response)
    if long == "windows" or checker.fits(whole):
        return whole, False
    if long == "skip":
        return None
    # The end is cut: of the response where the prompt leaves room for some of it, else of the prompt, which
    # is then judged alone.
    if response is not None:
        size = _longest(response, lambda part: checker.fits(Conversation(record.prompt, part)))
        if size:
            return Conversation(record.prompt, response[:size]), True
    size = _longest(record.prompt, lambda part: checker.fits(Conversation(part)))
    return (Conversation(record.prompt[:size]), True) if size else None


def _longest(text: str, fits: Callable[[str], bool]) -> int:
    """Characters of the longest beginning of `text` that fits, by halving; 0 where none does."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if fits(text[:middle]):
            low = middle
        else:
            high = middle - 1
    return low
