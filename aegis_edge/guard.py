"""Guard: load an artefact, check conversations.

A conversation becomes a script of parts (`reading.py`), the parts are judged in packed passes over a token
tree (`passes.py`), and what was found in them is one verdict.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from aegis_edge.conversation import Conversation, Dialogue, conversation_of
from aegis_edge.decision import Calibration, Decider, Verdict, read_calibration
from aegis_edge.encoding import ContentEncoder, ConversationEncoder
from aegis_edge.errors import ContextError, InputError, ScorerError
from aegis_edge.families.answers import NEMOGUARD, Answers
from aegis_edge.families.plan import Plan
from aegis_edge.fitting import Fitted, fit
from aegis_edge.passes import Passes
from aegis_edge.places import cache_folder, default_guard_path, find_guard
from aegis_edge.policy import Policy
from aegis_edge.reading import Reader, Script
from aegis_edge.scoring import IdArray, Scorer
from aegis_edge.stream import Stream, aguarded, guarded
from aegis_edge.windows import MAX_TOKENS, Limits

if TYPE_CHECKING:
    from aegis_edge.artifact import Artifact
    from aegis_edge.scoring.vocabulary import Vocabulary

__all__ = ["SCORERS", "Guard", "cache_folder", "default_guard_path", "find_guard", "open_scorer"]

SCORERS = ("cpu", "reference", "cuda")


class Guard:
    """A loaded guard. Safe to use from several threads; each running check has a token tree of its own.

    A check gives a Verdict or raises: AegisError and its subclasses for what a user can meet, never "safe"
    for a failure.
    """

    def __init__(
        self,
        scorer: Scorer,
        encoder: ContentEncoder,
        plan: Plan,
        policy: Policy,
        calibration: Mapping[str, Calibration] | None = None,
        *,
        root: IdArray | None = None,
        limits: Limits | None = None,
        answers: Answers = NEMOGUARD,
    ) -> None:
        """From parts that belong together; `load` is the usual way.

        `root` None uses the policy the scorer was made for; int32 ids are computed afresh, which a custom
        policy needs. `limits`: what is done with long texts. `answers`: the family's native output.
        """
        if scorer.rows != len(plan.rows):
            raise ScorerError(f"the scorer's head has {scorer.rows} rows, the family reads {len(plan.rows)}")
        self.policy = policy
        self._answers = answers
        self._scorer, self._root = scorer, root
        self._encoder = ConversationEncoder(encoder, plan, scorer.context)
        self._reader = Reader(self._encoder, limits or Limits())
        decider = Decider(plan, policy, calibration or read_calibration({}))
        leaves = [plan.leaves, *(listing.leaves for listing in plan.lists.values())]
        tokens = max(sum(map(len, asked)) for asked in leaves)
        self._passes = Passes(scorer, root, self._encoder, decider, tokens)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        threads: int | None = None,
        scorer: str = "cpu",
        policy: Policy | None = None,
        label_mass: bool = False,
        *,
        window: int | None = None,
        max_tokens: int = MAX_TOKENS,
        refuse_long: bool = False,
        keep_policy: bool = True,
    ) -> Guard:
        """Load an artefact folder made by `aegis-edge export`.

        path     None: $AEGIS_EDGE_GUARD, else the default guard in the user's cache
        threads  of the cpu scorer; None: as many as this process may use
        scorer   "cpu" (compiled), "reference" (PyTorch in fp32; needs the extra `export`), or "cuda" (Triton
                 kernels on an NVIDIA GPU; needs the extra `cuda`)
        policy   None: the artefact's own, whose keys and values are cached; another one is computed first
        label_mass  tell in every verdict which share of the full vocabulary's probability the labels hold;
                 reads the whole LM head in every check, and needs a guard whose labels are tokens of it
        window   most tokens judged at once, longer text is split into overlapping windows; None: the context
        max_tokens  of one conversation; what has more raises ContextError
        refuse_long  raise ContextError for what does not fit one window instead of splitting it
        keep_policy  keep another policy's keys and values on disk, beside the artefact or in the user's
                 cache, for the next time (`kept.py`); the cpu scorer's alone

        Raises ArtifactError, PolicyError, ContextError or ScorerError.
        """
        from concurrent.futures import ThreadPoolExecutor

        from aegis_edge.artifact import Artifact

        if scorer not in SCORERS:
            raise ScorerError(f"unknown scorer {scorer!r}", hint=f"scorers: {', '.join(SCORERS)}")
        limits = Limits(window, max_tokens, refuse_long)
        artifact = Artifact.open(find_guard() if path is None else path, verify=False)
        with ThreadPoolExecutor(1) as pool:
            verified = pool.submit(artifact.verify)
            try:
                # The tokenizer first: its parser keeps the GIL, which hashing does not need but packing does.
                fitted = fit(artifact, policy)
                vocabulary = artifact.vocabulary() if label_mass else None
                engine = open_scorer(fitted.artifact, scorer, threads, vocabulary, keep_policy)
                return cls._of(fitted, engine, limits)
            finally:
                verified.result()  # a damaged file is told as such, whatever else it led to

    @classmethod
    def from_artifact(
        cls,
        artifact: Artifact,
        scorer: Scorer,
        policy: Policy | None = None,
        limits: Limits | None = None,
    ) -> Guard:
        """The guard of an opened artefact, over a scorer made from it.

        Raises ScorerError for a policy whose category list needs label rows that the scorer has not: `load`
        takes it.
        """
        return cls._of(fit(artifact, policy), scorer, limits)

    @classmethod
    def _of(cls, fitted: Fitted, scorer: Scorer, limits: Limits | None) -> Guard:
        root = None if fitted.is_own else np.array(fitted.plan.root, np.int32)
        calibration = read_calibration(fitted.artifact.manifest["calibration"])
        return cls(
            scorer,
            fitted.encoder,
            fitted.plan,
            fitted.policy,
            calibration,
            root=root,
            limits=limits,
            answers=fitted.answers,
        )

    def check(self, prompt: str | bytes, response: str | bytes | None = None) -> Verdict:
        """Judge a prompt, and the response to it where there is one.

        Text that does not fit the context is judged in windows. Raises InputError for what is not text,
        ContextError for more tokens than the budget, ScorerError where scoring fails.
        """
        conversation = Conversation(prompt, response)  # type: ignore[arg-type]  # bytes become str in it
        return self._verdicts([self._reader.read(conversation)])[0]

    def check_turns(self, messages: Iterable[object]) -> Verdict:
        """Judge every turn of a dialogue, messages {"role": ..., "content": ...}; see `Dialogue`.

        `prompt` is the rating of the worst turn that is not the assistant's, `response` that of the worst one
        that is. Raises as `check` does.
        """
        return self._verdicts([self._reader.read(Dialogue.of(messages))])[0]

    def check_many(self, items: Iterable[object]) -> list[Verdict]:
        """Judge many conversations, in order: prompts, (prompt, response) pairs, Conversations, Dialogues or
        lists of messages.

        The verdicts are bit for bit those of `check`. Everything is read before anything is scored: one item
        that can not be checked raises, naming its position, and there are no partial results.
        """
        scripts = []
        for index, item in enumerate(items):
            try:
                scripts.append(self._reader.read(conversation_of(item)))
            except (InputError, ContextError) as error:
                raise type(error)(f"conversation {index}: {error}", hint=error.hint) from error
        return self._verdicts(scripts)

    def as_text(self, verdict: Verdict) -> str:
        """A verdict as the family's own model writes it, for what parses that: NemoGuard's JSON, or what the
        family's file says. The default family, which writes nothing, is given NemoGuard's."""
        return self._answers.text(verdict)

    def stream(self, prompt: str | bytes, every: int = 1) -> Stream:
        """Judge a response while it is written: `with guard.stream(prompt) as s: v = s.feed(chunk)`.

        `every`: least number of new tokens worth a verdict. Raises as `check` does.
        """
        return Stream(self._reader, self._passes, prompt, every)

    def guarded(self, prompt: str | bytes, pieces: Iterable[str | bytes], every: int = 16) -> Iterator[str]:
        """Hand on a response piece by piece, what was judged safe alone; raises UnsafeError where it is not.

        A piece comes out once `every` tokens more were judged, or at the end.
        """
        return guarded(lambda: self.stream(prompt, every), pieces)

    def aguarded(
        self, prompt: str | bytes, pieces: AsyncIterable[str | bytes], every: int = 16
    ) -> AsyncIterator[str]:
        """`guarded` over an asynchronous source; the event loop is not held up."""
        return aguarded(lambda: self.stream(prompt, every), pieces)

    def _verdicts(self, scripts: Sequence[Script]) -> list[Verdict]:
        outcomes = iter(self._passes.judge([part.encoded for script in scripts for part in script.parts]))
        return [self._reader.verdict(script, list(islice(outcomes, len(script.parts)))) for script in scripts]


def open_scorer(
    artifact: Artifact,
    name: str,
    threads: int | None = None,
    vocabulary: Vocabulary | None = None,
    keep_policy: bool = False,
) -> Scorer:
    """An opened artefact's weights under one of SCORERS; arguments as in `Guard.load`. Raises ScorerError."""
    if name not in SCORERS:
        raise ScorerError(f"unknown scorer {name!r}", hint=f"scorers: {', '.join(SCORERS)}")
    if name == "cpu":
        from aegis_edge.scoring.cpu import CpuScorer

        root = np.array(Plan.from_json(artifact.manifest["family"]["plan"]).root, np.int32)
        if not keep_policy:
            return CpuScorer(artifact, root, artifact.policy_kv(), threads, vocabulary)
        from aegis_edge.kept import Kept

        return CpuScorer(artifact, root, artifact.policy_kv(), threads, vocabulary, Kept(artifact))
    try:
        if name == "cuda":
            from aegis_edge.scoring.cuda import CudaScorer

            return CudaScorer.from_artifact(artifact, vocabulary=vocabulary)
        from aegis_edge.scoring.reference import ReferenceScorer

        return ReferenceScorer.from_artifact(artifact, vocabulary=vocabulary)
    except ModuleNotFoundError as error:
        extra = "cuda" if name == "cuda" else "export"
        raise ScorerError(
            f"the {name} scorer needs {(error.name or '').partition('.')[0]}, which is not installed",
            hint=f"pip install 'aegis-edge[{extra}]'",
        ) from error
