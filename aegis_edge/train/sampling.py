"""Which examples a step trains on: sources in stated shares, policies varied, labels following the policy."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from aegis_edge.data.canttalk import DISTRACTORS
from aegis_edge.data.canttalk import SOURCE as TURNS
from aegis_edge.data.mapping import ALL_CODES
from aegis_edge.data.records import DataError, Record, Topic
from aegis_edge.data.topics import SOURCE
from aegis_edge.train.packing import Example
from aegis_edge.train.policies import ABOUT_TOPICS, TOPICAL, Policy, default_policy, draw_policy, under
from aegis_edge.train.typed import typed

# Shares of examples (they need not sum to one; a source's share is split over its rows' label kinds as
# given). Requests weigh more than comments; templated sets (sap200, gptfuzz, mlc) and noisy ones (davidson,
# aart, harmfulqa: see the data's README) weigh less than their size; harmless ones are together about half.
SHARES: dict[str, dict[str, float]] = {
    "unsafe": {
        "aegis2_train_xref": 9.0, "aegis2_dv_sft": 1.5, "aart": 2.5, "catqa_en": 1.6, "harmfulqa": 1.5,
        "adversarialqa": 1.2, "salad_mcq_queries": 3.0, "sap200": 1.5, "figstep_safebench": 0.9,
        "forbidden_questions": 0.6, "med_safety_train": 1.2, "advbench": 0.1, "trustllm_misuse": 1.8,
        "surge_toxicity": 1.2, "edos": 2.2, "davidson": 2.5, "hatemoji_train": 1.0,
        "toxigen_demonstrations": 0.5, "jbb_artifacts": 2.0, "mlc": 5.0, "joined": 3.0,
        "buried": 2.5, "threads": 4.0, "transcripts": 2.5, "contrasts": 1.5, "refused": 1.5,
        "framed": 3.0, "quoted": 2.0,
    },
    "safe": {
        "davidson": 1.0, "hatemoji_train": 1.0, "edos": 2.6, "toxigen_demonstrations": 0.6,
        "surge_toxicity": 1.2, "mlc": 4.0, "benign_caia_sensitive": 5.0, "benign_coconot_pref": 3.0,
        "benign_cyberseceval_frr": 2.0, "benign_gpteacher_roleplay": 3.0, "benign_self_instruct": 1.2,
        "benign_gsm8k_train": 1.0, "generated": 5.0, "alarming": 7.0, "joined": 3.0, "threads": 4.0,
        "transcripts": 2.5, "topics": 2.0, "canttalk": 1.0, "canttalk_distractors": 0.5,
        "written": 7.0, "refused": 0.7, "buried": 2.5, "people": 4.0,
        "framed": 2.5, "framed_harmless": 4.0, "quoted": 2.0,
    },
    "response_unsafe": {"diasafety_train": 6.5, "gptfuzz_train": 1.0, "safetext": 0.8},
    "response_safe": {"diasafety_train": 6.5, "gptfuzz_train": 1.0, "safetext": 0.8},
}  # fmt: skip
# Whether these sources call a text unsafe follows policies of advice or campaigning few share: not trained as
# verdicts.
DOUBTFUL: frozenset[str] = frozenset(
    {"Legal Opinion", "Financial Advice", "Health Consultation", "Political Lobbying"}
    | {"Tailored Financial Advice", "Political Campaigning"}
)
# Put together from other texts: they teach, and nobody asks how sure one should be of them. Among what a
# guard is calibrated on they would be a third of the harmful texts, nearly all with low margins, and move
# every probability up.
PUT_TOGETHER = frozenset(
    {"joined", "buried", "threads", "transcripts", "framed", "framed_harmless", "quoted"}
)
KEEP_HARMLESS_RESPONSE = 0.25  # of harmless pairs; the rest trains the prompt alone, which is much cheaper
LEAVES_UNSAFE, LEAVES_SAFE = 0.5, 0.1  # of examples with known categories
# Of the examples about topics, where the policy names published ones: distractors of these topics, and users'
# turns on them; the rest are users' turns of any dialogue. Distractors are what such a policy is there for:
# they share the topic's words and are off it all the same.
DISTRACTED, ON_TOPIC = 0.4, 0.4
OWN, OWN_SHARE = "own", 10.0  # sources without a share above: the user's own files, together in each bucket

Key = tuple[str, str, str]  # bucket, source (without the parts of mlc), rarest category that is certain


def family_of(source: str) -> str:
    return "mlc" if source.startswith("mlc_") else source


def bucket_of(record: Record) -> str | None:
    """unsafe, safe, response_unsafe, response_safe; None for rows not trained on."""
    label = record.raw_category
    if any(str(x) in DOUBTFUL for x in (label if isinstance(label, list) else [label])):
        return None
    if record.unsafe is not None:
        return "unsafe" if record.unsafe else "safe"
    if record.response_unsafe is not None:
        return "response_unsafe" if record.response_unsafe else "response_safe"
    return None


def wants_leaves(record: Record, response: str | None, policy: Policy, rng: random.Random) -> bool:
    """Whether an example asks about categories: half of those with known categories, few harmless ones.

    Under a policy about topics every prompt about one does: such a policy is decided by its leaves.
    """
    if record.source in ABOUT_TOPICS:
        return policy.topical or rng.random() < LEAVES_SAFE
    if not (record.unsafe or record.response_unsafe):
        return rng.random() < LEAVES_SAFE
    # After a harmless answer to a harmful prompt the leaves' meaning is disputed: leave them out.
    disputed = response is not None and bool(record.unsafe) and not record.response_unsafe
    known = record.categories.certain or len(record.categories.possible) < len(ALL_CODES)
    return bool(known) and not disputed and rng.random() < LEAVES_UNSAFE


def to_example(record: Record, policy: Policy, rng: random.Random) -> Example | None:
    """One draw of an example from a record; None where nothing is certain under the policy."""
    unsafe = under(policy, record, record.unsafe)
    response, response_unsafe = record.response, under(policy, record, record.response_unsafe)
    harmless = record.unsafe is False and not record.response_unsafe
    if response is not None and record.unsafe is not None and not record.response_unsafe:
        keep = KEEP_HARMLESS_RESPONSE if harmless else 0.6
        if rng.random() >= keep:
            response, response_unsafe = None, None
    # Under a policy about published topics a dialogue's text is asked about topics alone, and a leaf may be
    # certain where the verdict under the whole policy is not.
    dialogue = policy.published and record.source in (TURNS, DISTRACTORS)
    if unsafe is None and response_unsafe is None and not dialogue:
        return None
    leaves: list[tuple[str, bool]] = []
    if wants_leaves(record, response, policy, rng):
        worst = bool(record.unsafe) or bool(record.response_unsafe)
        lines = [line for line in policy.lines if line.topic or not dialogue]
        covered = [(line.text, line.covers(record, worst)) for line in lines]
        for holds, most in ((True, 2), (False, 2 if worst or record.source in ABOUT_TOPICS else 1)):
            fitting = [text for text, covers in covered if covers is holds]
            leaves += [(text, holds) for text in rng.sample(fitting, min(most, len(fitting)))]
    if unsafe is None and response_unsafe is None and not leaves:
        return None
    rng.shuffle(leaves)
    return Example(record.prompt, response, unsafe, response_unsafe, tuple(leaves), record.source)


class Sampler:
    """Draws examples in SHARES; every pool is walked in shuffled passes. `state` is all there is to
    resume.
    """

    def __init__(
        self,
        records: Sequence[Record],
        seed: int = 0,
        topics: Sequence[Topic] = (),
        without: Sequence[str] = (),
    ) -> None:
        """`topics`: the project's own that policies may be about; they may be about those of the records'
        dialogues too. `without`: hazards kept out, with their records."""
        self._topics, self._without = {t.name: t for t in topics}, tuple(without)
        self._published: dict[str, Topic] = {}  # dialogues that share a scenario are of one topic
        self._pools: dict[Key, list[Record]] = defaultdict(list)
        kept = [r for r in records if not r.categories.certain & set(without)]
        counts = Counter((r.source, code) for r in kept for code in r.categories.certain)
        for record in kept:
            bucket, family = bucket_of(record), family_of(record.source)
            rarest = min((counts[record.source, c], c) for c in record.categories.certain or [""])[1]
            if record.source == SOURCE:
                self._pools[SOURCE, record.raw_category, ""].append(record)
            elif record.source in ABOUT_TOPICS:
                topic: Topic = record.raw_category
                self._published.setdefault(topic.name, topic)
                self._pools[record.source, topic.name, ""].append(record)
            if bucket and family in SHARES[bucket]:
                self._pools[bucket, family, rarest].append(record)
            elif bucket and not any(family in s for s in SHARES.values()):
                self._pools[bucket, OWN, rarest].append(record)
        self._keys = sorted(key for key in self._pools if key[0] not in ABOUT_TOPICS)
        # Within a source, the root of a category's rows: rare ones more often, without wearing them out.
        roots = [len(self._pools[key]) ** 0.5 for key in self._keys]
        whole: dict[tuple[str, str], float] = defaultdict(float)
        for key, root in zip(self._keys, roots, strict=True):
            whole[key[:2]] += root
        self._weights = [
            SHARES[k[0]].get(k[1], OWN_SHARE) * root / whole[k[:2]]
            for k, root in zip(self._keys, roots, strict=True)
        ]
        self._seed = seed
        self.state: dict[str, int] = {}
        self._orders: dict[tuple[str, str, str, int], list[int]] = {}
        if not self._keys:
            raise DataError("no rows to draw from", hint="rows need a `prompt_label` or `response_label`")

    def _next(self, key: Key) -> Record:
        name = "/".join(key)
        drawn = self.state.get(name, 0)
        self.state[name] = drawn + 1
        pool = self._pools[key]
        turn, place = divmod(drawn, len(pool))
        if (*key, turn) not in self._orders:
            order = list(range(len(pool)))
            random.Random(f"{self._seed}/{name}/{turn}").shuffle(order)
            self._orders = {k: v for k, v in self._orders.items() if k[:3] != key} | {(*key, turn): order}
        return pool[self._orders[*key, turn][place]]

    def _about(self, named: Sequence[str], policy: Policy, rng: random.Random) -> Key:
        """The pool to draw from for a policy about the topics `named`."""
        if not policy.published:
            return SOURCE, rng.choice(named if rng.random() < 0.5 else list(self._topics)), ""
        roll = rng.random()
        kind = DISTRACTORS if roll < DISTRACTED else TURNS
        names = named if roll < DISTRACTED + ON_TOPIC else list(self._published)
        # Of some dialogues nothing of a kind may be left to train on; of one kind or the other there is.
        keys = [(kind, name, "") for name in names if (kind, name, "") in self._pools]
        return rng.choice(keys or sorted(key for key in self._pools if key[0] in (TURNS, DISTRACTORS)))

    def step(self, number: int, count: int, vary: bool = True) -> tuple[Policy, list[Example]]:
        """The examples of optimiser step `number`: a function of seed, number and `state` only."""
        rng = random.Random(f"{self._seed}/step/{number}")
        topics = list(self._topics.values())
        policy = default_policy(self._without)
        if vary:
            policy = draw_policy(rng, topics, self._without, list(self._published.values()))
        named = sorted({line.topic for line in policy.lines if line.topic})
        out: list[Example] = []
        while len(out) < count:
            topical = named and rng.random() < TOPICAL
            key = self._about(named, policy, rng) if topical else rng.choices(self._keys, self._weights)[0]
            record = self._next(key)
            example = to_example(record, policy, rng)
            if example is not None:
                out.append(replace(example, prompt=typed(example.prompt, rng)) if vary else example)
        return policy, out


def split(
    records: Iterable[Record], held_out: dict[str, float], share: float, seed: int
) -> tuple[list[Record], list[Record]]:
    """(train, validation): `share` of every source, or `held_out[source]` of it, drawn by a hash of the
    prompt.

    Hashing the prompt keeps all rows of one prompt on one side.
    """
    train: list[Record] = []
    validation: list[Record] = []
    for record in records:
        lucky = random.Random(f"{seed}/{record.prompt}").random() < held_out.get(record.source, share)
        (validation if lucky else train).append(record)
    return train, validation
