"""Where a check's time goes: tokenise, encode, scorer, decide. The same steps as Guard.check, timed one by
one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import pairwise

from aegis_edge.bench.guards import ALWAYS, NEVER, Text
from aegis_edge.conversation import Conversation
from aegis_edge.encoding import ConversationEncoder
from aegis_edge.scoring import Scorer

SLOW = 2.0  # seconds: such a call is timed once
STAGES = ("tokenise", "encode", "scorer", "decide")


def stages(text: Text, scorer: Scorer, prompt: str, calls: int) -> dict[str, float]:
    """Median seconds of each stage over `calls` warm checks, and of whole checks: "total" (one pass) and
    "unsafe" (two passes: what is unsafe is asked for its categories too)."""
    encoder = ConversationEncoder(text.encoder, text.plan, scorer.context)
    decider = text.decider()
    tree = scorer.tree()
    found: dict[str, list[float]] = {name: [] for name in STAGES}
    for call in range(calls + 1):  # the first warms up
        times = [time.perf_counter()]
        text.encoder.encode(prompt)
        times.append(time.perf_counter())
        encoded = encoder.encode(Conversation(prompt))
        times.append(time.perf_counter())
        logits = tree.extend(encoded.at(1))
        times.append(time.perf_counter())
        decider.ratings(encoded.reads, logits)
        times.append(time.perf_counter())
        tree.truncate(1)
        tokenise, encode, score, decide = (b - a for a, b in pairwise(times))
        if call:
            # Encoding tokenises once more: what is left is laying out the nodes.
            for name, value in zip(
                STAGES, (tokenise, max(0.0, encode - tokenise), score, decide), strict=True
            ):
                found[name].append(value)
    medians = {name: statistics.median(values) for name, values in found.items()}
    for name, thresholds in (("total", NEVER), ("unsafe", ALWAYS)):
        guard = text.guard(scorer, thresholds)
        medians[name] = _median(lambda guard=guard: guard.check(prompt), calls)  # type: ignore[misc]
    return medians


def _median(call: Callable[[], object], calls: int) -> float:
    """Median seconds of `calls` after a first one, which is all there is where it takes seconds: a scorer
    without a tree runs the whole prompt again for each of the 23 categories."""
    times: list[float] = []
    while len(times) <= calls:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
        if times[0] > SLOW:
            return times[0]
    return statistics.median(times[1:])
