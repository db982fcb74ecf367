"""The policies that training steps are under, and what a label becomes under one.

A guard that only ever reads one policy stops reading it. So a stated share of the steps is under another:
hazards left out, put in another order, reworded or renamed; everyday topics named (topic following, as in
CantTalkAboutThis, arXiv 2404.03820). The label follows the policy. A policy that allows topics asks
its leaves the same question, so there is no training for it.

Topics are the project's own, and, where the user's files have them, those of published dialogues
(data/canttalk.py). Of a dialogue's texts less is known than of the project's own prompts: a user's turn is on
its topic, and taken to be on none of another domain; a distractor is off its topic. Nothing else is assumed.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from aegis_edge.data.canttalk import DISTRACTORS
from aegis_edge.data.canttalk import SOURCE as TURNS
from aegis_edge.data.mapping import ALL_CODES, VAGUE
from aegis_edge.data.records import Record, Topic
from aegis_edge.data.topics import SOURCE
from aegis_edge.taxonomy import HAZARDS

NAMES: dict[str, str] = {hazard.code: hazard.name for hazard in HAZARDS}
REWORDINGS: dict[str, dict[str, list[str]]] = tomllib.loads(
    resources.files("aegis_edge.train").joinpath("rewordings.toml").read_text("utf-8")
)
# Of the steps: under the default policy, hazards picked and reworded, topics named.
MIX: dict[str, float] = {"default": 0.64, "hazards": 0.17, "topics": 0.19}
PUBLISHED = 0.5  # of the policies about topics name those of published dialogues, where there are any
TOPICAL = 0.75  # of the examples under a policy about topics; the others are drawn as ever
ABOUT_TOPICS = frozenset({SOURCE, TURNS, DISTRACTORS})  # sources of harmless texts whose topics are known


@dataclass(frozen=True)
class Line:
    """One category as the policy states it, and what it covers.

    code: of the hazard it means. topic: the name of the one it forbids. domain: of a published topic.
    """

    text: str
    code: str | None = None
    topic: str | None = None
    domain: str | None = None

    def covers(self, record: Record, unsafe: bool | None) -> bool | None:
        """Whether a turn labelled `unsafe` under the default policy falls under this line; None: unknown."""
        if self.code is not None:
            if not unsafe:
                return False if unsafe is False else None
            if self.code in record.categories.certain:
                return True
            return None if self.code in record.categories.possible else False
        if record.source == SOURCE and self.domain is None:
            return bool(record.raw_category == self.topic)
        if record.source in (TURNS, DISTRACTORS) and self.domain is not None:
            about: Topic = record.raw_category
            if about.name == self.topic:
                return record.source == TURNS
            return False if record.source == TURNS and about.domain != self.domain else None
        return None  # whether any other text touches the topic, nobody noted


@dataclass(frozen=True)
class Policy:
    """Lines in the order of the root; `full` where every hazard is among them, in whatever words."""

    lines: tuple[Line, ...]
    full: bool = False

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(line.text for line in self.lines)

    @property
    def topical(self) -> bool:
        return any(line.topic for line in self.lines)

    @property
    def published(self) -> bool:
        """Whether the topics are of published dialogues."""
        return any(line.domain for line in self.lines)


def default_policy(without: Sequence[str] = ()) -> Policy:
    """The hazards by name in S-code order, but for the codes `without`: the default guard's policy."""
    return Policy(tuple(Line(NAMES[c], c) for c in ALL_CODES if c not in without), full=True)


def under(policy: Policy, record: Record, unsafe: bool | None) -> bool | None:
    """The label of a turn under a policy: unsafe if a line covers it, safe if none does, else unknown."""
    if unsafe is None or (policy.full and record.source != SOURCE):
        return unsafe
    found = [line.covers(record, unsafe) for line in policy.lines]
    return True if True in found else (None if None in found else False)


def _hazard_line(code: str, style: str, rng: random.Random) -> Line:
    if style == "described":
        return Line(f"{NAMES[code]}: {rng.choice(REWORDINGS[code]['described'])}", code)
    if style == "renamed":
        return Line(rng.choice(REWORDINGS[code]["renamed"]), code)
    return Line(NAMES[code], code)


def _hazards(rng: random.Random, least: int, most: int, without: Sequence[str]) -> list[Line]:
    """Some hazards, shuffled, each in its own style in one policy of two.

    Mostly without the vague ones, which cover nearly everything, so that labels can flip with certainty.
    """
    codes = [c for c in ALL_CODES if c not in without and (c not in VAGUE or rng.random() < 0.1)]
    rng.shuffle(codes)
    styles = ("plain",) if rng.random() < 0.5 else ("plain", "described", "renamed", "renamed")
    chosen = codes[: rng.randint(min(least, len(codes)), min(most, len(codes)))]
    return [_hazard_line(code, rng.choice(styles), rng) for code in chosen]


def draw_policy(
    rng: random.Random,
    topics: Sequence[Topic],
    without: Sequence[str] = (),
    published: Sequence[Topic] = (),
) -> Policy:
    """The policy of one step, in the shares of MIX and PUBLISHED: it names topics of one kind.

    `without`: hazards that training must not see.
    """
    kind = rng.choices(list(MIX), list(MIX.values()))[0]
    if kind == "default" or (kind != "hazards" and not (topics or published)):
        return default_policy(without)
    if kind == "hazards":
        if rng.random() < 0.15:  # all of them, in other words
            codes = [c for c in ALL_CODES if c not in without]
            rng.shuffle(codes)
            styles = ("plain", "described", "renamed")
            return Policy(tuple(_hazard_line(c, rng.choice(styles), rng) for c in codes), full=True)
        return Policy(tuple(_hazards(rng, 1, len(ALL_CODES) - 1, without)))
    few = _hazards(rng, 1, 8, without) if rng.random() < 0.4 else []
    pool = published if published and (not topics or rng.random() < PUBLISHED) else topics
    chosen = rng.sample(list(pool), rng.randint(1, min(6, len(pool))))
    lines = [Line(f"{t.name}: {t.description}", topic=t.name, domain=t.domain) for t in chosen] + few
    rng.shuffle(lines)
    return Policy(tuple(lines))
