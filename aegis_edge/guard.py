"""Guard: load an artefact, check conversations.

A check is two passes over the token tree. The first adds every conversation's nodes under the policy and
reads its turns; the second, for the unsafe ones alone, adds a leaf a category. The tree is then cut back to
the policy and used again.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aegis_edge.conversation import Conversation
from aegis_edge.decision import Calibration, CategoryScore, Decider, Rating, Verdict, read_calibration
from aegis_edge.encoding import ContentEncoder, ConversationEncoder, Encoded
from aegis_edge.errors import AegisError, ArtifactError, ContextError, InputError, PolicyError, ScorerError
from aegis_edge.families import get_family
from aegis_edge.families.plan import PROMPT, RESPONSE, Plan
from aegis_edge.policy import Policy
from aegis_edge.scoring import IdArray, LogitArray, Scorer, Segment, Tree

if TYPE_CHECKING:
    from aegis_edge.artifact import Artifact
    from aegis_edge.scoring.vocabulary import Vocabulary

# Tokens added in one pass, unless a single conversation has more. A pass this long is compute-bound: a longer
# one is no faster and takes more memory (in the 135M model a token's keys and values alone are 23 kB).
# Results do not depend on it.
CHUNK_TOKENS = 2048

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
    ) -> None:
        """From parts that belong together; `load` is the usual way.

        `root` None uses the policy the scorer was made for; int32 ids are computed afresh, which a custom
        policy needs.
        """
        if scorer.rows != len(plan.rows):
            raise ScorerError(f"the scorer's head has {scorer.rows} rows, the family reads {len(plan.rows)}")
        self.policy = policy
        self._scorer, self._root = scorer, root
        self._encoder = ConversationEncoder(encoder, plan, scorer.context)
        self._decider = Decider(plan, policy, calibration or read_calibration({}))
        self._leaf_tokens = sum(len(ids) for ids in plan.leaves)
        # A deque's pop and append are atomic: no lock that a fork could leave held.
        self._idle: deque[Tree] = deque(maxlen=os.cpu_count() or 1)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        threads: int | None = None,
        scorer: str = "cpu",
        policy: Policy | None = None,
        label_mass: bool = False,
    ) -> Guard:
        """Load an artefact folder made by `aegis-edge export`.

        path     None: $AEGIS_EDGE_GUARD, else the default guard in the user's cache
        threads  of the cpu scorer; None: as many as this process may use
        scorer   "cpu" (compiled), "reference" (PyTorch in fp32; needs the extra `export`), or "cuda" (Triton
                 kernels on an NVIDIA GPU; needs the extra `cuda`)
        policy   None: the artefact's own, whose keys and values are cached; another one is computed first
        label_mass  tell in every verdict which share of the full vocabulary's probability the labels hold;
                 reads the whole LM head in every check, and needs a guard whose labels are tokens of it

        Raises ArtifactError, PolicyError, ContextError or ScorerError.
        """
        from concurrent.futures import ThreadPoolExecutor

        from aegis_edge.artifact import Artifact

        if scorer not in SCORERS:
            raise ScorerError(f"unknown scorer {scorer!r}", hint=f"scorers: {', '.join(SCORERS)}")
        artifact = Artifact.open(find_guard() if path is None else path, verify=False)
        with ThreadPoolExecutor(1) as pool:  # hashing and unpacking, side by side, take half of the time
            verified = pool.submit(artifact.verify)
            try:
                vocabulary = artifact.vocabulary() if label_mass else None
                engine = open_scorer(artifact, scorer, threads, vocabulary)
                return cls.from_artifact(artifact, engine, policy)
            finally:
                verified.result()  # a damaged file is told as such, whatever else it led to

    @classmethod
    def from_artifact(cls, artifact: Artifact, scorer: Scorer, policy: Policy | None = None) -> Guard:
        """The guard of an opened artefact, over a scorer made from it."""
        manifest = artifact.manifest
        plan = Plan.from_json(manifest["family"]["plan"])
        if list(plan.rows) != manifest["head"]["rows"]:
            raise ArtifactError("aegis.json: the family's rows are not the head's")
        try:
            own = Policy.from_dict(manifest["policy"])
        except PolicyError as error:
            raise ArtifactError(f"aegis.json: policy: {error}") from error
        encoder = ContentEncoder.from_json(artifact.tokenizer_json())
        calibration = read_calibration(manifest["calibration"])
        if policy is None or [c.text for c in policy.categories] == [c.text for c in own.categories]:
            return cls(scorer, encoder, plan, policy or own, calibration)
        plan = get_family(manifest["family"]["name"]).compile(encoder, policy)
        return cls(scorer, encoder, plan, policy, calibration, root=np.array(plan.root, np.int32))

    def check(self, prompt: str | bytes, response: str | bytes | None = None) -> Verdict:
        """Judge a prompt, and the response to it where there is one.

        Raises InputError for what is not text, ContextError for what does not fit, ScorerError where scoring
        fails.
        """
        conversation = Conversation(prompt, response)  # type: ignore[arg-type]  # bytes become str in it
        return self._score([self._encoder.encode(conversation)])[0]

    def check_many(self, items: Iterable[object]) -> list[Verdict]:
        """Judge many conversations (prompts, (prompt, response) pairs or Conversations), in order.

        The verdicts are bit for bit those of `check`. Everything is read before anything is scored: one item
        that can not be checked raises, naming its position, and there are no partial results.
        """
        encoded = []
        for index, item in enumerate(items):
            try:
                encoded.append(self._encoder.encode(Conversation.of(item)))
            except (InputError, ContextError) as error:
                raise type(error)(f"conversation {index}: {error}", hint=error.hint) from error
        return [verdict for chunk in _chunks(encoded) for verdict in self._score(chunk)]

    def _score(self, chunk: Sequence[Encoded]) -> list[Verdict]:
        with self._tree() as tree:
            segments: list[Segment] = []
            firsts = []  # each conversation's nodes are numbered from here on, as they are from 0 alone
            for encoded in chunk:
                firsts.append(len(segments))
                segments += encoded.at(len(segments) + 1)
            logits, total = _extend(tree, segments), tree.log_sum_exp
            ratings, masses, row = [], [], 0
            for encoded in chunk:
                rows = slice(row, row + len(encoded.reads))
                ratings.append(self._decider.ratings(encoded.reads, logits[rows]))
                masses.append(
                    None if total is None else self._decider.mass(encoded.reads, logits[rows], total[rows])
                )
                row = rows.stop
            if self._decider.by_categories:
                turns = [
                    n + node for n, encoded in zip(firsts, chunk, strict=True) for node in encoded.judged
                ]
                claimed = self._judged_by_categories(ratings, self._leaves(tree, len(segments) + 1, turns))
            else:
                unsafe = [i for i, found in enumerate(ratings) if not all(r.safe for r in found.values())]
                leaves = self._leaves(tree, len(segments) + 1, [firsts[i] + chunk[i].last for i in unsafe])
                claims = {i: self._decider.categories(row) for i, row in zip(unsafe, leaves, strict=True)}
                claimed = [claims.get(i, ()) for i in range(len(chunk))]
        return [
            Verdict(
                all(rating.safe for rating in found.values()),
                found[PROMPT],
                found.get(RESPONSE),
                claimed[i],
                chunk[i].content,
                masses[i],
            )
            for i, found in enumerate(ratings)
        ]

    def _judged_by_categories(
        self, ratings: Sequence[dict[str, Rating]], rows: Iterator[LogitArray]
    ) -> list[tuple[CategoryScore, ...]]:
        """Each conversation's categories, its `ratings` changed to what they claim. rows: the leaves' logits
        under every rating's node."""
        claimed = []
        for found in ratings:
            best: dict[str, CategoryScore] = {}
            for question in found:
                found[question], claims = self._decider.by_policy(found[question], next(rows))
                for claim in claims:
                    if claim.name not in best or claim.probability > best[claim.name].probability:
                        best[claim.name] = claim
            claimed.append(tuple(sorted(best.values(), key=lambda claim: -claim.probability)))
        return claimed

    def _leaves(self, tree: Tree, nodes: int, parents: Sequence[int]) -> Iterator[LogitArray]:
        """Label logits [categories, rows] of the policy's leaves under each of `parents`."""
        at_once = max(1, CHUNK_TOKENS // max(1, self._leaf_tokens))
        for start in range(0, len(parents), at_once):
            batch = parents[start : start + at_once]
            logits = _extend(tree, [leaf for parent in batch for leaf in self._encoder.leaves(parent)])
            tree.truncate(nodes)
            yield from np.split(logits, len(batch))

    @contextmanager
    def _tree(self) -> Iterator[Tree]:
        """A tree that holds the policy alone. One whose use raised is dropped: its state is unknown."""
        try:
            tree = self._idle.pop()
        except IndexError:
            tree = self._scorer.tree(self._root)
        yield tree
        tree.truncate(1)
        self._idle.append(tree)


def cache_folder() -> Path:
    """This package's folder in the user's cache: in $XDG_CACHE_HOME, else where the platform keeps caches."""
    xdg = os.environ.get("XDG_CACHE_HOME")
    if xdg:
        cache = Path(xdg)
    elif sys.platform == "win32":
        cache = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        cache = Path.home() / "Library" / "Caches"
    else:
        cache = Path.home() / ".cache"
    return cache / "aegis-edge"


def default_guard_path() -> Path:
    """Where the default guard is looked for when $AEGIS_EDGE_GUARD names no other."""
    return cache_folder() / "guard"


def find_guard() -> Path:
    """The guard in use when none is named: $AEGIS_EDGE_GUARD, else the default one. Raises AegisError where
    there is none."""
    named = os.environ.get("AEGIS_EDGE_GUARD")
    path = Path(named) if named else default_guard_path()
    if not path.is_dir():
        where = (
            f"$AEGIS_EDGE_GUARD names {path}, which is no folder" if named else f"no default guard at {path}"
        )
        raise AegisError(where, hint=f"make one with: aegis-edge export --out {path}")
    return path


def open_scorer(
    artifact: Artifact, name: str, threads: int | None = None, vocabulary: Vocabulary | None = None
) -> Scorer:
    """An opened artefact's weights under one of SCORERS; arguments as in `Guard.load`. Raises ScorerError."""
    if name not in SCORERS:
        raise ScorerError(f"unknown scorer {name!r}", hint=f"scorers: {', '.join(SCORERS)}")
    if name == "cpu":
        from aegis_edge.scoring.cpu import CpuScorer

        root = np.array(Plan.from_json(artifact.manifest["family"]["plan"]).root, np.int32)
        return CpuScorer(artifact, root, artifact.policy_kv(), threads, vocabulary)
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


def _chunks(encoded: Sequence[Encoded]) -> Iterator[list[Encoded]]:
    """Runs of conversations of at most CHUNK_TOKENS together; a longer conversation is a run of its own."""
    chunk: list[Encoded] = []
    size = 0
    for one in encoded:
        if chunk and size + one.size > CHUNK_TOKENS:
            yield chunk
            chunk, size = [], 0
        chunk.append(one)
        size += one.size
    if chunk:
        yield chunk


def _extend(tree: Tree, segments: Sequence[Segment]) -> LogitArray:
    """`tree.extend`, held to a row a slot: with one missing, verdicts would move to other conversations."""
    logits = tree.extend(segments)
    slots = sum(len(segment.slots) for segment in segments)
    if len(logits) != slots:
        raise ScorerError(f"the scorer returned {len(logits)} rows of logits for {slots} slots")
    return logits
