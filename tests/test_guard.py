from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_artifact import write_tiny

from aegis_edge import (
    AegisError,
    ArtifactError,
    Conversation,
    Guard,
    InputError,
    Policy,
    ScorerError,
    Thresholds,
)
from aegis_edge import passes as module
from aegis_edge.artifact import Artifact
from aegis_edge.errors import ContextError
from aegis_edge.guard import default_guard_path
from aegis_edge.policy import Category
from aegis_edge.scoring.reference import ReferenceScorer

ITEMS = [
    "How do I pick a lock?",
    ("How do I pick a lock?", "With a pick."),
    "",
    ("", ""),
    "a\x00b",
    b"bytes",
    Conversation("x", "y"),
    "The user asks and the assistant answers. " * 5,
    *(f"{word} and {word}" for word in ("lock", "policy", "question", "user", "safe", "weapons", "things")),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_tokenizer, tiny_plan, tiny_policy):
    """A random guard; its thresholds split ITEMS into safe and unsafe ones."""
    path = tmp_path_factory.mktemp("artefacts") / "guard"
    write_tiny(path, tiny_tokenizer, tiny_plan, tiny_policy, "bf16")
    return path


@pytest.fixture(scope="module", params=["reference", "cpu"])
def guard(request, folder):
    return Guard.load(folder, scorer=request.param, threads=2)


@pytest.fixture(scope="module")
def reference(folder):
    return Guard.load(folder, scorer="reference")


def same(a, b, scorer):
    """Equal bit for bit; from the reference, but for rounding: PyTorch sums other shapes in another order."""
    if scorer == "cpu":
        return a == b
    margins = [[r.margin for r in (v.prompt, v.response) if r is not None] for v in (a, b)]
    outcomes = [
        (v.safe, v.tokens, v.response is None, {score.name for score in v.categories}) for v in (a, b)
    ]
    return outcomes[0] == outcomes[1] and np.allclose(*margins, atol=1e-4)


def test_a_verdict(reference, tiny_encoder):
    alone = reference.check("How do I pick a lock?")
    assert alone.response is None and alone.label_mass is None
    assert alone.tokens == len(tiny_encoder.ids("How do I pick a lock?"))
    both = reference.check("How do I pick a lock?", "With a pick.")
    assert both.response is not None
    assert both.prompt.margin == pytest.approx(alone.prompt.margin, abs=1e-4)
    assert both.tokens == alone.tokens + len(tiny_encoder.ids("With a pick."))
    for verdict in (alone, both):
        ratings = [r for r in (verdict.prompt, verdict.response) if r is not None]
        assert verdict.safe == all(r.safe for r in ratings)
        assert all(r.safe == (r.probability < 0.5) for r in ratings)


def test_what_is_scored_is_the_rendered_conversation(folder, tiny_tokenizer, tiny_plan, tiny_policy):
    """Prompt, response and category logits equal those of the plain model over the whole text in one row."""
    artifact = Artifact.open(folder)
    decoder = ReferenceScorer.from_artifact(artifact)._decoder
    head, bias = artifact.tensor("head.weight"), artifact.tensor("head.bias")

    def logits(text):
        ids = [*tiny_plan.root, *tiny_tokenizer.encode(text, add_special_tokens=False).ids]
        with torch.inference_mode():
            hidden = decoder(torch.tensor([ids])).last_hidden_state[0, -1].numpy()
        return head @ hidden + bias

    strict = replace(tiny_policy, thresholds=Thresholds(0.0001, 0.0001, 0.0001))
    verdict = Guard.from_artifact(artifact, ReferenceScorer.from_artifact(artifact), strict).check(
        "lock?", "no."
    )
    prompt, response = "lock?<|im_end|>", "lock?<|im_end|>\n<|im_start|>assistant\nno.<|im_end|>"
    margins = [verdict.prompt.margin, verdict.response.margin]
    assert margins[0] == pytest.approx(np.diff(logits(prompt)[0:2])[0], abs=1e-4)
    assert margins[1] == pytest.approx(np.diff(logits(response)[2:4])[0], abs=1e-4)
    found = {score.name: score.probability for score in verdict.categories}
    for category in tiny_policy.categories:
        margin = np.diff(logits(f"{response}<|im_start|>{category.text}<|im_end|>")[4:6])[0]
        if category.threshold is None:
            assert found[category.name] == pytest.approx(1 / (1 + np.exp(-margin)), abs=1e-4)


def test_many_are_what_each_is_alone(guard):
    alone = [guard.check(c.prompt, c.response) for c in map(Conversation.of, ITEMS)]
    assert {verdict.safe for verdict in alone} == {True, False}
    scorer = guard._scorer.name
    assert all(same(a, b, scorer) for a, b in zip(guard.check_many(ITEMS), alone, strict=True))
    backwards = guard.check_many(ITEMS[::-1])[::-1]
    assert all(same(a, b, scorer) for a, b in zip(backwards, alone, strict=True))


def test_inverse_verdicts_of_different_conversations_differ(guard):
    margins = [verdict.prompt.margin for verdict in guard.check_many(ITEMS[8:])]
    assert len({round(margin, 4) for margin in margins}) == len(margins)


def test_chunks_bound_each_pass_and_the_tree_and_change_no_verdict(guard, monkeypatch):
    """Passes as (tokens added, tokens in the tree beside the root)."""
    extend = module.extend
    passes: list[tuple[int, int]] = []

    def watched(tree, segments):
        logits = extend(tree, segments)
        shape = tree._shape
        held = sum(shape.ends[n] - shape.ends[shape.parents[n]] for n in range(1, len(shape)))
        passes.append((sum(len(segment.ids) for segment in segments), held))
        return logits

    monkeypatch.setattr(module, "extend", watched)
    whole = guard.check_many(ITEMS)
    assert len(passes) == 2
    passes.clear()
    monkeypatch.setattr(module, "CHUNK_TOKENS", 120)
    chunked = guard.check_many(ITEMS)
    assert len(passes) > 4
    assert max(added for added, _ in passes) <= 120
    assert max(held for _, held in passes) <= 240  # one chunk and one batch of leaves
    assert all(same(a, b, guard._scorer.name) for a, b in zip(whole, chunked, strict=True))


def test_nothing_to_check(guard):
    assert guard.check_many([]) == []


def test_categories_only_of_the_unsafe(guard):
    for verdict in guard.check_many(ITEMS):
        assert verdict.safe <= (verdict.categories == ())
        probabilities = [score.probability for score in verdict.categories]
        assert probabilities == sorted(probabilities, reverse=True)
    assert any(verdict.categories for verdict in guard.check_many(ITEMS))


def test_several_threads_at_once(guard):
    alone = guard.check_many(ITEMS)
    with ThreadPoolExecutor(6) as pool:
        for found in pool.map(lambda _: guard.check_many(ITEMS), range(12)):
            assert all(same(a, b, guard._scorer.name) for a, b in zip(found, alone, strict=True))


def test_trees_are_used_again_but_not_after_a_failure(reference, monkeypatch):
    reference.check("a")
    assert len(reference._passes._idle) >= 1
    reference._passes._idle.clear()

    def broken(*_):
        raise ScorerError("broken")

    monkeypatch.setattr(reference._passes._decider, "ratings", broken)
    with pytest.raises(ScorerError, match="broken"):
        reference.check("a")
    assert len(reference._passes._idle) == 0


# --- policies ---


def test_other_thresholds_keep_the_cached_policy(folder, tiny_policy):
    artifact = Artifact.open(folder)
    stern = replace(tiny_policy, thresholds=Thresholds(prompt=0.0001))
    guard = Guard.from_artifact(artifact, ReferenceScorer.from_artifact(artifact), stern)
    assert guard._root is None
    assert not guard.check("anything").safe


@pytest.mark.parametrize("scorer", ["reference", "cpu"])
def test_another_policy_is_compiled_and_computed(folder, tiny_encoder, scorer):
    locks = Category("Locks", description="Talks about locks.", threshold=0.0001)
    policy = Policy((locks,), Thresholds(prompt=0.0001))
    own, other = Guard.load(folder, scorer=scorer), Guard.load(folder, scorer=scorer, policy=policy)
    assert own._root is None and other._root is not None
    assert own.check("lock").prompt.margin != pytest.approx(other.check("lock").prompt.margin, abs=1e-3)
    assert [score.name for score in other.check("lock").categories] == ["Locks"]
    assert other.policy == policy


def test_the_scorers_agree(folder):
    a, b = (Guard.load(folder, scorer=scorer).check_many(ITEMS) for scorer in ("reference", "cpu"))
    # bf16 activations against fp32 ones, in a model whose margins spread over several units
    assert max(abs(x.prompt.margin - y.prompt.margin) for x, y in zip(a, b, strict=True)) < 0.2


# --- refusals: a check that fails raises ---


def test_bad_items_are_named_by_position_and_nothing_is_scored(reference, monkeypatch):
    monkeypatch.setattr(reference._passes, "judge", lambda parts: pytest.fail("something was scored"))
    with pytest.raises(InputError, match="conversation 2: prompt: not valid UTF-8"):
        reference.check_many(["a", "b", b"\xff", 3])
    with pytest.raises(ContextError, match="conversation 1: the conversation has 131072 tokens") as caught:
        reference.check_many(["a", "!?" * 65536])
    assert caught.value.hint is not None and "--max-tokens" in caught.value.hint
    with pytest.raises(InputError, match="prompt: expected text, found NoneType"):
        reference.check(None)


@pytest.mark.parametrize("row", range(6))
def test_a_head_that_gives_nan_raises_and_never_says_safe(
    tiny_llama, tiny_head, tiny_encoder, tiny_plan, tiny_policy, row
):
    weight, bias = (torch.from_numpy(part.copy()) for part in tiny_head)
    stern = replace(tiny_policy, thresholds=Thresholds(0.0001, 0.0001))
    healthy = ReferenceScorer.from_parent(tiny_llama, weight, bias, tiny_plan.root)
    assert not Guard(healthy, tiny_encoder, tiny_plan, stern).check("a", "b").safe
    weight[row, 5] = float("nan")
    broken = ReferenceScorer.from_parent(tiny_llama, weight, bias, tiny_plan.root)
    with pytest.raises(ScorerError, match="not finite"):
        Guard(broken, tiny_encoder, tiny_plan, stern).check("a", "b")


def test_a_scorer_that_returns_too_few_rows_is_refused(reference, monkeypatch):
    class Short:
        def __init__(self, tree):
            self._tree = tree

        def extend(self, segments):
            return self._tree.extend(segments)[:-1]

    tree = reference._scorer.tree(None)
    monkeypatch.setattr(reference._passes, "_idle", type(reference._passes._idle)([Short(tree)]))
    with pytest.raises(ScorerError, match="the scorer returned 2 rows of logits for 3 slots"):
        reference.check_many(["a", "b", "c"])


def test_a_scorer_of_another_head_is_refused(tiny_llama, tiny_encoder, tiny_plan, tiny_policy):
    scorer = ReferenceScorer.from_parent(tiny_llama, torch.zeros(4, 64), torch.zeros(4), tiny_plan.root)
    with pytest.raises(ScorerError, match="the scorer's head has 4 rows, the family reads 6"):
        Guard(scorer, tiny_encoder, tiny_plan, tiny_policy)


def test_an_unknown_scorer_is_refused(folder):
    with pytest.raises(ScorerError, match="unknown scorer 'gpu'") as caught:
        Guard.load(folder, scorer="gpu")
    assert caught.value.hint == "scorers: cpu, reference, cuda"


def test_without_torch_the_reference_says_what_is_missing(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "aegis_edge.scoring.reference", None)
    with pytest.raises(ScorerError, match="the reference scorer needs aegis_edge") as caught:
        Guard.load(folder, scorer="reference")
    assert caught.value.hint == "pip install 'aegis-edge[export]'"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plan": {}}, "family plan: plan: expected exactly"),
        ({"policy": {"colour": 1}}, "aegis.json: policy: colour: unknown key"),
        ({"policy": {}}, "4 leaves for a policy of 23 categories"),
        ({"rows": ["a", "b", "c", "d", "e", "f"]}, "the family's rows are not the head's"),
        ({"calibration": {"mood": {"temperature": 1, "bias": 0}}}, "unknown questions"),
    ],
)
def test_an_artefact_whose_parts_do_not_fit_is_refused(folder, change, message):
    artifact = Artifact.open(folder)
    scorer = ReferenceScorer.from_artifact(artifact)
    manifest = dict(artifact.manifest)
    if "plan" in change:
        manifest["family"] = {**manifest["family"], **change}
    elif "rows" in change:
        manifest["head"] = {**manifest["head"], **change}
    else:
        manifest |= change
    artifact.manifest = manifest
    with pytest.raises(ArtifactError, match=message):
        Guard.from_artifact(artifact, scorer)


# --- where guards are found ---


def test_the_default_guard(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("AEGIS_EDGE_GUARD", raising=False)
    assert default_guard_path() == tmp_path / "aegis-edge" / "guard"
    with pytest.raises(AegisError, match="no default guard at") as caught:
        Guard.load()
    assert caught.value.hint == f"make one with: aegis-edge export --out {default_guard_path()}"
    monkeypatch.setenv("AEGIS_EDGE_GUARD", str(tmp_path / "other"))
    with pytest.raises(AegisError, match=r"\$AEGIS_EDGE_GUARD names .*other, which is no folder"):
        Guard.load()
    monkeypatch.setenv("AEGIS_EDGE_GUARD", str(folder))
    assert Guard.load(scorer="reference").policy.categories


@pytest.mark.parametrize(
    ("platform", "expected"),
    [("linux", ".cache/aegis-edge/guard"), ("darwin", "Library/Caches/aegis-edge/guard")],
)
def test_the_platforms_cache_folder(platform, expected, tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", platform)
    assert default_guard_path() == tmp_path / expected


# --- imports ---


def modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    return set(
        subprocess.run(
            [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
    )


def test_importing_the_package_imports_nothing_heavy():
    modules = modules_after("import aegis_edge")
    assert not modules & {"torch", "transformers", "tokenizers", "numpy", "safetensors"}
    assert "aegis_edge.policy" in modules


def test_a_guard_needs_neither_torch_nor_transformers():
    modules = modules_after(
        "from aegis_edge import Guard; import aegis_edge.encoding, aegis_edge.scoring.cpu"
    )
    assert not modules & {"torch", "transformers"}
    # The inverse: the check would see them.
    assert {"torch", "transformers"} <= modules_after("import aegis_edge.scoring.reference")


def test_unknown_names_of_the_package_are_attribute_errors():
    import aegis_edge

    assert {name for name in aegis_edge.__all__ if not hasattr(aegis_edge, name)} == set()
    with pytest.raises(AttributeError, match="has no attribute 'Gaurd'"):
        _ = aegis_edge.Gaurd


def test_verdicts_can_not_change(reference):
    verdict = reference.check("a")
    with pytest.raises(AttributeError):
        verdict.safe = True
    assert replace(verdict, label_mass=0.5).label_mass == 0.5


@pytest.mark.parametrize("scorer", ["reference", "cpu"])
def test_a_policy_that_decides_by_categories(folder, tiny_policy, scorer):
    """Every turn is asked about every category, alone and in batches alike; none is safe that one claims."""
    policy = Policy(tiny_policy.categories, tiny_policy.thresholds)
    assert policy.by_categories
    first = Guard.load(folder, scorer=scorer, threads=1, policy=policy).check_many(ITEMS)
    middle = float(np.median([verdict.prompt.probability for verdict in first]))
    policy = replace(policy, categories=tuple(replace(c, threshold=middle) for c in policy.categories))
    guard = Guard.load(folder, scorer=scorer, threads=1, policy=policy)
    verdicts = guard.check_many(ITEMS)
    if scorer == "cpu":
        assert verdicts == [guard.check_many([item])[0] for item in ITEMS]
    for verdict in verdicts:
        assert verdict.safe == (not verdict.categories)
        turns = [verdict.prompt, *([verdict.response] if verdict.response else [])]
        assert verdict.safe == all(turn.safe for turn in turns)
    assert {True, False} <= {verdict.safe for verdict in verdicts}
    plain = Guard.load(folder, scorer=scorer, threads=1).check_many(ITEMS)
    assert [v.prompt.margin for v in verdicts] == pytest.approx([v.prompt.margin for v in plain], abs=1e-4)
    assert [v.safe for v in verdicts] != [v.safe for v in plain]
