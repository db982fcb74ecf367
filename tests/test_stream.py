from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import make_tiny_tokenizer
from marker_guard import MARKER, RandomGuardWeights, guard_of, marker_guard

from aegis_edge import AegisError, InputError, ScorerError, _native, growth, passes
from aegis_edge.encoding import ContentEncoder
from aegis_edge.errors import ContextError
from aegis_edge.families import get_family
from aegis_edge.policy import Category, Policy
from aegis_edge.stream import _GrowingIds
from aegis_edge.windows import Limits

CONTEXT = 512
ALPHABETS = (
    "The user asks and the assistant answers the question in the conversation. ",
    "今天天气很好，我们去公园散步。 ",
    "0123456789abcdef",
    "😀👩‍👩‍👧‍👦 é\u0301ﬁ\n\t'r",
)


def texts(count: int, seed: int) -> list[str]:
    """Texts of up to 200 characters: words, scripts, symbols, and mixtures of them."""
    rng = random.Random(seed)
    found = []
    for i in range(count):
        pieces = [rng.choice(ALPHABETS[i % 4 : i % 4 + 1] or ALPHABETS) for _ in range(rng.randint(0, 8))]
        text = "".join(piece[: rng.randint(1, len(piece))] for piece in pieces)
        found.append(text[: rng.randint(0, 200)])
    return found


def splits(text: str, rng: random.Random) -> list[str]:
    cuts = sorted(rng.randint(0, len(text)) for _ in range(rng.randint(0, 7)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@pytest.fixture(scope="module")
def weights(tiny_encoder):
    return RandomGuardWeights("w8a8", max(tiny_encoder.control_ids) + 1, CONTEXT)


@pytest.fixture(scope="module")
def guard(weights, tiny_encoder, tiny_plan, tiny_policy):
    return guard_of(weights, tiny_encoder, tiny_plan, tiny_policy)


@pytest.fixture(scope="module", params=["whole", "windows", "categories"])
def any_guard(request, weights, tiny_encoder, tiny_plan, tiny_policy):
    if request.param == "categories":
        policy = Policy(tiny_policy.categories, tiny_policy.thresholds)
        return guard_of(weights, tiny_encoder, tiny_plan, policy)
    limits = Limits(60) if request.param == "windows" else None
    return guard_of(weights, tiny_encoder, tiny_plan, tiny_policy, limits)


@pytest.fixture(scope="module")
def marked(tiny_encoder, tiny_plan, tiny_policy):
    return marker_guard(tiny_encoder, tiny_plan, tiny_policy, Limits(), CONTEXT)


# --- verdicts ---


def test_the_final_verdict_is_that_of_the_whole_text_for_every_split(guard):
    """1,000 splits of 50 texts."""
    rng = random.Random(1)
    for number, text in enumerate(texts(50, 1)):
        prompt = ALPHABETS[number % 4][: number % 30]
        whole = guard.check(prompt, text)
        for _ in range(20):
            with guard.stream(prompt) as stream:
                for chunk in splits(text, rng):
                    stream.feed(chunk)
            assert stream.close() == whole and stream.text == text


def test_every_verdict_is_that_of_the_text_so_far(any_guard):
    rng = random.Random(2)
    outcomes = set()
    for text in texts(8, 2):
        with any_guard.stream("lock? " * 12) as stream:
            assert stream.verdict == any_guard.check("lock? " * 12)
            for chunk in splits(text, rng):
                verdict = stream.feed(chunk)
                if stream.text:
                    assert verdict == any_guard.check("lock? " * 12, stream.text)
                    outcomes.add(verdict.response)
    assert len(outcomes) > 20


def test_character_by_character_through_many_windows(weights, tiny_encoder, tiny_plan, tiny_policy):
    guard = guard_of(weights, tiny_encoder, tiny_plan, tiny_policy, Limits(48))
    text = "lock 123 no. " * 15
    with guard.stream("lock?") as stream:
        for char in text:
            verdict = stream.feed(char)
            if len(stream.text) % 10 == 0:
                assert verdict == guard.check("lock?", stream.text)
    assert stream.close() == guard.check("lock?", text)
    assert stream.close().tokens_seen == len(tiny_encoder.ids("lock?")) + len(tiny_encoder.ids(text))


def exact(isa_scheme: str = "w8a8") -> bool:
    """Whether streamed and whole verdicts are the same bits, in a guard made without any fixture."""
    encoder = ContentEncoder(make_tiny_tokenizer())
    policy = Policy((Category.of("Violence"),), decided_by="verdict")
    plan = get_family("aegis-edge").compile(encoder, policy)
    weights = RandomGuardWeights(isa_scheme, max(encoder.control_ids) + 1, CONTEXT)
    guard, rng, same = guard_of(weights, encoder, plan, policy), random.Random(3), []
    for text in texts(12, 3):
        with guard.stream("lock?") as stream:
            for chunk in splits(text, rng):
                stream.feed(chunk)
        same.append(stream.close() == guard.check("lock?", text))
    return all(same)


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "bf16"])
def test_every_scheme_is_exact(scheme):
    assert exact(scheme)


@pytest.mark.parametrize("isa", _native.available_isas())
def test_every_instruction_set_is_exact(isa):
    code = "import sys, test_stream; sys.exit(not test_stream.exact())"
    environment = {**os.environ, "AEGIS_EDGE_ISA": isa, "PYTHONPATH": str(Path(__file__).parent)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_inverse_nodes_cut_elsewhere_than_at_blocks_are_not_exact(monkeypatch):
    monkeypatch.setattr(growth, "BLOCK", 7)
    monkeypatch.setattr(growth, "ROOM", 7)
    assert not exact()


def test_inverse_a_node_that_keeps_a_token_too_many_is_not_exact(monkeypatch):
    right = growth.common
    monkeypatch.setattr(growth, "common", lambda a, b: min(right(a, b) + 1, len(a), len(b)))
    assert not exact()


def test_only_what_is_new_is_computed(guard, monkeypatch):
    """New tokens cost themselves and the verdict."""
    added: list[int] = []
    extend = growth.extend

    def counted(tree, segments):
        added.append(sum(len(segment.ids) for segment in segments))
        return extend(tree, segments)

    monkeypatch.setattr(growth, "extend", counted)
    with guard.stream("lock?") as stream:
        stream.feed("!?" * 100)
        for _ in range(6):
            stream.feed("!?" * 8)
    assert added[1] >= 200 and len(added) == 8  # the prompt, the first chunk, six more; closing costs nothing
    assert added[2:] == [16 + 1] * 6
    added.clear()
    with guard.stream("lock?") as stream:  # a normalised view beside the text is kept as well
        stream.feed("!?" * 100)
        stream.feed("")
    assert len(added) == 2


def test_chunks_of_bytes_may_be_cut_within_a_character(guard):
    text = "é😀今天 ok"
    data = text.encode()
    with guard.stream(b"lock?") as stream:
        for i in range(len(data)):
            stream.feed(data[i : i + 1])
        assert stream.text == text
    assert stream.verdict == guard.check("lock?", text)


def test_a_letter_that_merges_into_the_last_token_is_judged(guard, tiny_encoder):
    assert len(tiny_encoder.ids("loc")) >= len(tiny_encoder.ids("lock"))
    with guard.stream("lock?") as stream:
        stream.feed("loc")
        assert stream.feed("k") == guard.check("lock?", "lock") != guard.check("lock?", "loc")


# --- what is released ---


def test_text_is_released_once_it_was_judged_safe(marked):
    with marked.stream("lock?") as stream:
        assert stream.text_released == ""
        stream.feed("one two ")
        assert stream.text_released == "one two "
        assert not stream.feed("three" + MARKER).safe
        assert stream.text_released == "one two " and stream.text == "one two three" + MARKER
        stream.feed(" four")
        assert stream.text_released == "one two "
    assert stream.text_released == "one two " and not stream.close().safe


def test_text_that_waits_for_a_verdict_is_not_released(marked):
    with marked.stream("lock?", every=5) as stream:
        first = stream.verdict
        assert stream.feed("!?!") is first and stream.text_released == ""
        assert stream.feed("!?").response is not None
        assert stream.text_released == "!?!!?"
        stream.feed(MARKER)
        assert stream.verdict.safe and stream.text_released == "!?!!?"
    assert not stream.verdict.safe and stream.text_released == "!?!!?"


def test_nothing_is_released_to_an_unsafe_prompt(marked):
    with marked.stream("lock?" + MARKER) as stream:
        assert not stream.verdict.safe
        stream.feed("fine")
        assert stream.text_released == ""


# --- refusals: where feeding fails there is no verdict ---


def test_a_stream_that_failed_has_no_verdict_and_its_tree_is_dropped(guard, monkeypatch):
    guard._passes._idle.clear()
    stream = guard.stream("lock?")

    def broken(*_):
        raise ScorerError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(growth, "extend", broken)
        with pytest.raises(ScorerError, match="broken"):
            stream.feed("a")
    for call in (lambda: stream.feed("b"), stream.close):
        with pytest.raises(AegisError, match="the stream is broken off"):
            call()
    assert len(guard._passes._idle) == 0
    with guard.stream("lock?") as other:
        other.feed("a")
    assert len(guard._passes._idle) == 1


def test_a_closed_stream_takes_nothing(guard):
    with guard.stream("lock?") as stream:
        stream.feed("a")
    assert stream.close() is stream.verdict
    with pytest.raises(AegisError, match="the stream is closed"):
        stream.feed("b")


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([b"\xff"], "response: not valid UTF-8"),
        ([b"\xf0\x9f", "a"], "response: not valid UTF-8"),
        ([b"\xf0\x9f"], "response: not valid UTF-8"),
        (["\ud800"], "response: not valid Unicode: lone surrogate"),
        ([7], "response: expected text, found int"),
    ],
)
def test_what_is_no_text_is_refused(guard, chunks, message):
    with pytest.raises(InputError, match=message), guard.stream("lock?") as stream:
        for chunk in chunks:
            stream.feed(chunk)


def test_a_stream_past_the_budget_is_an_error(weights, tiny_encoder, tiny_plan, tiny_policy):
    guard = guard_of(weights, tiny_encoder, tiny_plan, tiny_policy, Limits(32, max_tokens=50))
    with (
        pytest.raises(ContextError, match="the conversation has 51 tokens; the budget is 50"),
        guard.stream("!") as stream,
    ):
        stream.feed("!?" * 20)
        stream.feed("!?" * 5)
    with pytest.raises(AegisError, match="a verdict every 0 tokens; 1 is the least"):
        guard.stream("a", every=0)


# --- ids of a growing text ---


def test_ids_of_a_growing_text_are_those_of_the_whole(tiny_encoder, base_encoder):
    for encoder in (tiny_encoder, base_encoder):
        for alphabet in ALPHABETS:
            growing, text = _GrowingIds(encoder), ""
            for _ in range(120):
                text += alphabet[: random.Random(len(text)).randint(1, len(alphabet))]
                assert np.array_equal(growing.ids(text), encoder.encode(text))
            assert bool(growing._settled) == (alphabet is ALPHABETS[0])
        assert np.array_equal(growing.ids("another"), encoder.encode("another"))


def test_the_final_verdict_does_not_rest_on_what_was_settled(guard, monkeypatch):
    """Inverse: ids that are wrong while the text grows change the verdicts so far, and not the last one."""
    right = _GrowingIds.ids
    monkeypatch.setattr(_GrowingIds, "ids", lambda self, text: right(self, text)[::-1].copy())
    with guard.stream("lock?") as stream:
        assert stream.feed("With a pick, or a key.") != guard.check("lock?", stream.text)
    assert stream.close() == guard.check("lock?", stream.text)


def test_passes_stay_bounded_when_much_arrives_at_once(
    weights, tiny_encoder, tiny_plan, tiny_policy, monkeypatch
):
    monkeypatch.setattr("aegis_edge.stream.CHUNK_TOKENS", 32)
    monkeypatch.setattr(passes, "CHUNK_TOKENS", 32)
    guard = guard_of(weights, tiny_encoder, tiny_plan, tiny_policy, Limits(40))
    added: list[int] = []
    extend = growth.extend
    monkeypatch.setattr(
        growth,
        "extend",
        lambda t, segments: added.append(sum(len(s.ids) for s in segments)) or extend(t, segments),
    )
    with guard.stream("lock?") as stream:
        assert stream.feed("!?" * 200) == guard.check("lock?", "!?" * 200)
    assert max(added) < 100
