"""What is timed: checks of so many tokens after such a root."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aegis_edge.bench import prompts
from aegis_edge.encoding import ContentEncoder
from aegis_edge.families.plan import Plan
from aegis_edge.scoring import IdArray

LENGTHS = (16, 32, 64, 128, 256, 512)
LONG_POLICY = 400
BATCH = 64


@dataclass(frozen=True, eq=False)
class Scenario:
    """group: "policy", "bare" or "other", for tables. name: unique in its group. texts: prompts of one call.
    tokens: of all of them together. root: int32 [P], None for the guard's own policy. policy: P."""

    group: str
    name: str
    texts: tuple[str, ...]
    tokens: int
    root: IdArray | None
    policy: int


def scenarios(
    encoder: ContentEncoder, plan: Plan, lengths: Sequence[int] = LENGTHS, batch: int = BATCH
) -> list[Scenario]:
    """One check of each length under the guard's own policy and under none, one short check after a long
    policy, and a batch."""
    own = len(plan.root)
    texts = {n: prompts.of_length(encoder, n) for n in {*lengths, min(lengths)}}
    short = min(lengths)
    many = tuple(prompts.mixed(encoder, batch))
    return [
        *(Scenario("policy", f"{n} tokens", (texts[n],), n, None, own) for n in lengths),
        Scenario(
            "other",
            f"{short} tokens, {LONG_POLICY}-token policy",
            (texts[short],),
            short,
            long_root(encoder, plan, LONG_POLICY),
            LONG_POLICY,
        ),
        # The first id alone: the whole forward pass, with nothing before it worth caching.
        *(
            Scenario("bare", f"{n} tokens, no policy", (texts[n],), n, np.array(plan.root[:1], np.int32), 1)
            for n in lengths
        ),
        Scenario(
            "other",
            f"batch of {batch}, 10 to 60 tokens",
            many,
            sum(len(encoder.ids(text)) for text in many),
            None,
            own,
        ),
    ]


def long_root(encoder: ContentEncoder, plan: Plan, tokens: int) -> IdArray:
    """The policy's root cut or filled up with text to exactly `tokens`; it ends as the policy does."""
    end = plan.root[-8:]
    filler = (
        encoder.ids(prompts.of_length(encoder, max(1, tokens - len(plan.root))))
        if tokens > len(plan.root)
        else ()
    )
    body = (*plan.root[:-8], *filler)[: tokens - len(end)]
    return np.array((*body, *end), np.int32)
