"""The benchmark: its arithmetic, its fairness, and one whole run over a tiny guard."""

from __future__ import annotations

import json
import re
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from markupsafe import escape
from tiny_artifact import write_tiny
from tokenizers import Tokenizer

from aegis_edge import machine
from aegis_edge.artifact import Artifact
from aegis_edge.bench import fidelity, gemm, isolated, limits, parent, prompts, report, tables
from aegis_edge.bench.contender import Contender, Source
from aegis_edge.bench.guards import Text
from aegis_edge.bench.paths import PathScorer
from aegis_edge.bench.run import Progress, Settings, run
from aegis_edge.bench.scenarios import long_root
from aegis_edge.bench.scorers import find
from aegis_edge.bench.scorers.llama_cpp import LlamaCpp, LlamaCppScorer
from aegis_edge.bench.scorers.reference import Torch
from aegis_edge.bench.timing import Series, interleave, percentile
from aegis_edge.conversation import Conversation
from aegis_edge.decision import Rating
from aegis_edge.encoding import ContentEncoder
from aegis_edge.errors import InputError, ScorerError
from aegis_edge.families import Plan
from aegis_edge.policy import Policy
from aegis_edge.scoring import Segment


@pytest.fixture(scope="module")
def source(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer, tiny_plan: Plan, tiny_policy: Policy
) -> Source:
    """A tiny w8a8 guard, and as its parent the same weights in fp32."""
    top = tmp_path_factory.mktemp("bench")
    decoder = write_tiny(top / "guard", tiny_tokenizer, tiny_plan, tiny_policy)
    (top / "parent").mkdir()
    parent.save(decoder, top / "parent")
    artifact = Artifact.open(top / "guard")
    weight, bias = artifact.tensor("head.weight"), artifact.tensor("head.bias")
    np.savez(top / "parent" / "head.npz", weight=weight, bias=bias)
    return Source(top / "guard", top / "parent", top)


def _segment(ids: list[int], at: int, *slots: int) -> Segment:
    return Segment(np.array(ids, np.int32), at, slots)


@pytest.mark.parametrize("cached", [False, True])
def test_sequences_score_like_the_tree(source: Source, cached: bool) -> None:
    """A tree of ragged siblings and nested slots, and a second pass that hangs from the first."""
    right = parent.reference(source).tree()
    sequences = PathScorer("torch", Torch(source.parent, "fp32", cached), source).tree()
    first = [
        _segment([5, 6, 7, 8], 0, 3),
        _segment([9], 1, 0),
        _segment([30, 31, 32], 2, 2, 0),
        _segment([11, 12], 0, 1),
        _segment([40, 41, 42, 43, 44, 45, 46], 0),
        _segment([2], 5, 0),
    ]
    for tree in (right, sequences):
        assert tree.extend([_segment([3], 0)]).shape == (0, 6)
        tree.truncate(1)
    np.testing.assert_allclose(sequences.extend(first), right.extend(first), atol=2e-4)
    second = [_segment([50, 51], 3, 1), _segment([52], 6, 0)]
    np.testing.assert_allclose(sequences.extend(second), right.extend(second), atol=2e-4)


def test_llama_cpp_keeps_the_policy_and_computes_a_prompt_again() -> None:
    """A repeated check must not be timed as one token. What is handed to the package counts."""

    class Llama:
        def __init__(self) -> None:
            self.input_ids, self.n_tokens, self.run = np.zeros(64, np.intc), 0, list[int]()
            self._ctx = SimpleNamespace(get_logits=lambda: [0.5, 1.5])

        def eval(self, ids: list[int]) -> None:
            self.input_ids[self.n_tokens : self.n_tokens + len(ids)] = ids
            self.n_tokens += len(ids)
            self.run.append(len(ids))

    engine = LlamaCpp.__new__(LlamaCpp)
    engine._llama, engine.policies = Llama(), set()
    scorer = LlamaCppScorer(engine, [0, 1], [0.0, 0.0], np.array([1, 2, 3], np.int32), 64, 64)
    segments = [_segment([7, 8], 0), _segment([9], 1, 0), _segment([10, 11], 1, 1)]
    for tree in (scorer.tree(), scorer.tree(), scorer.tree(np.array([1], np.int32)), scorer.tree()):
        assert tree.extend(segments).tolist() == [[0.5, 1.5]] * 2
    # The policy and a leaf, the other leaf; without the policy; under another one; under the first again.
    assert engine._llama.run == [6, 2, 3, 2, 3, 2, 5, 2]


def test_prompts_have_exactly_the_tokens_asked_for(tiny_encoder: ContentEncoder) -> None:
    for tokens in (10, 16, 61):
        assert len(tiny_encoder.ids(prompts.of_length(tiny_encoder, tokens))) == tokens
    many = prompts.mixed(tiny_encoder, 6)
    lengths = [len(tiny_encoder.ids(text)) for text in many]
    assert sorted(lengths) == [10, 20, 30, 40, 50, 60] and len(set(many)) == 6


def test_prompts_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('"one"\n{"prompt": "two", "response": "three", "label": 1}\n"four"\n')
    assert [(c.prompt, c.response) for c in prompts.read(file, 2)] == [("one", None), ("two", "three")]
    file.write_text('"one"\n{"text": "two"}\n')
    with pytest.raises(InputError, match="line 2"):
        prompts.read(file, 2)
    file.write_text('{"messages": [{"role": "user", "content": "one"}]}\n')
    with pytest.raises(InputError, match="line 1: a dialogue"):
        prompts.read(file, 2)
    with pytest.raises(InputError, match="can not be read"):
        prompts.read(tmp_path / "none", 2)


def test_a_long_root_ends_as_the_policy_does(tiny_encoder: ContentEncoder, tiny_plan: Plan) -> None:
    for tokens in (20, 300):
        root = long_root(tiny_encoder, tiny_plan, tokens)
        assert len(root) == tokens and root.dtype == np.int32
        assert tuple(root[-8:]) == tiny_plan.root[-8:] and root[0] == tiny_plan.root[0]


def test_nearest_rank_percentiles() -> None:
    assert [percentile([3, 1, 2, 4], share) for share in (0.5, 0.75, 0.9, 0.99, 0.01)] == [2, 3, 4, 4, 1]
    assert percentile([7], 0.5) == 7


def test_everybody_takes_turns_and_begins_once() -> None:
    calls: list[str] = []
    series = [Series(name, lambda name=name: calls.append(name)) for name in "abc"]
    turns: list[int] = []
    interleave(series, 3, lambda: turns.append(len(calls)))
    order = [calls[0], *(b for a, b in pairwise(calls) if a != b)]
    assert "".join(order) == "abcbcacab"
    assert len(turns) == 9
    # The first call of a turn warms up and is not counted.
    assert all(len(one.samples) == calls.count(one.name) - 3 for one in series)


def test_a_budget_ends_the_turns_of_the_slow() -> None:
    slow = Series("slow", lambda: time.sleep(0.02), budget=0.0)
    interleave([slow], 50)
    assert 3 <= len(slow.samples) < 50


def test_fidelity_counts_flips_near_and_far() -> None:
    def rating(probability: float, margin: float) -> Rating:
        return Rating(probability < 0.5, probability, margin)

    right = [rating(0.1, -2.0), rating(0.9, 2.0), rating(0.6, 0.4), rating(0.2, -1.4)]
    other = [rating(0.6, 0.5), rating(0.8, 1.5), rating(0.4, -0.4), rating(0.2, -1.4)]
    found = fidelity.compare(right, other)
    assert (found.verdicts, found.flips, found.far_flips, found.worst) == (4, 0.5, 1, 2.5)
    assert found.margin_error == pytest.approx((2.5 + 0.5 + 0.8) / 4)
    assert found.relative_error == pytest.approx(found.margin_error / np.std([-2.0, 2.0, 0.4, -1.4]))
    same = fidelity.compare(right, right)
    assert (same.flips, same.far_flips, same.margin_error) == (0, 0, 0)


def test_ratings_are_those_of_a_check_without_asking_for_categories(source: Source) -> None:
    """Verdicts on both sides of the threshold; a scorer's leaves are never run."""
    text = Text(Artifact.open(source.guard))
    asked = [Conversation("How do I pick a lock?"), Conversation("weapons", "and privacy"), Conversation("x")]
    scorer = find(["cpu"])[0].load(source, 1)
    right = [r for v in text.guard(scorer).check_many(asked) for r in (v.prompt, v.response) if r is not None]
    assert {rating.safe for rating in right} == {True, False}
    found = fidelity.ratings(text, scorer, asked)
    assert found == right


def test_operations_of_a_model_counted_by_hand() -> None:
    model = {"layers": 3, "hidden": 8, "heads": 2, "kv_heads": 1, "head_dim": 4, "intermediate": 16}
    layer = 8 * (8 + 8) + 8 * 8 + 3 * 8 * 16  # qkv, o, gate and up and down
    keys_values = 8 * 8
    assert limits.operations(model, 10, 10) == 2 * 10 * 3 * layer
    assert limits.operations(model, 10, 1) == 2 * (10 * 2 * layer + 10 * keys_values + (layer - keys_values))
    assert limits.weight_bytes(model, "w8a8") == 3 * layer
    peaks = {"int8_peak": 100.0, "read_bandwidth": 10.0}
    assert limits.seconds(1000, 50, peaks) == 10 and limits.seconds(100, 50, peaks) == 5


def test_peaks_are_of_the_turns_that_a_scenario_took(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = iter([9.0, 1.0, 2.0, 4.0])

    def measured(threads: int, seconds: float) -> dict[str, float]:
        rate = next(rates)
        return {"int8_peak": rate, "read_bandwidth": 10 * rate}

    monkeypatch.setattr(limits.machine, "peaks", measured)
    peaks = limits.Peaks(2)
    interleave([peaks], 1)  # another scenario's
    interleave([Series("a", lambda: None), peaks], 3)
    assert peaks.median(1) == {"int8_peak": 2.0, "read_bandwidth": 20.0}
    assert peaks.best() == {"int8_peak": 9.0, "read_bandwidth": 90.0}


def test_scorers_by_name() -> None:
    names = [contender.name for contender in find(["cpu", "reference"])]
    variants = [f"reference-{dtype}{cached}" for dtype in ("fp32", "bf16") for cached in ("", "-cached")]
    assert names == ["cpu", *variants]
    assert [contender.name for contender in find(["reference-bf16", "cpu", "cpu"])] == [
        "reference-bf16",
        "cpu",
    ]
    assert [contender.missing() for contender in find(["cuda"])] == [None]
    for wrong in ("gpu", "reference-int3", "cpu-"):
        with pytest.raises(InputError, match=wrong):
            find([wrong])


def test_a_scorer_that_is_not_installed_says_so() -> None:
    def load(source: Source, threads: int) -> Any:
        raise AssertionError

    assert Contender("x", "", load, modules=("json", "no_such_engine")).missing() == "no_such_engine"
    assert Contender("x", "", load, modules=("json",)).missing() is None


def test_another_parent_is_refused(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = Artifact.open(source.guard)
    artifact.manifest["provenance"] = {"base": {"kind": "folder", "name": "b"}, "adapter": None}
    with pytest.raises(ScorerError, match="has to be named"):
        parent.parent_folder(artifact, None, None, tmp_path)

    found = SimpleNamespace(provenance={"base": {"sha256": "1"}, "adapter": None})
    monkeypatch.setattr("aegis_edge.export.merge.load_parent", lambda *_: found)
    with pytest.raises(ScorerError, match="not the one"):
        parent.parent_folder(artifact, "other", None, tmp_path)


@pytest.fixture(scope="module")
def rows(source: Source) -> list[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parent, "parent_folder", lambda *_: source.parent)
        settings = Settings(
            source.guard,
            scorers=("cpu", "reference-fp32", "reference-fp32-cached"),
            lengths=(12, 24),
            rounds=1,
            compared=24,
            batch=4,
            budget=0.2,
            threads=1,
            work=source.work,
        )
        return run(settings, Progress())


def test_a_run_has_a_row_for_everything(rows: list[dict[str, Any]]) -> None:
    names = ["cpu", "reference-fp32", "reference-fp32-cached"]
    for kind, each in {"cost": 1, "fidelity": 1, "time": 2 + 1 + 2 + 1, "stage": 6}.items():
        found = [row["scorer"] for row in rows if row["kind"] == kind]
        assert sorted(found) == sorted(names * each), kind
    for row in rows:
        assert {"cpu", "isa", "threads", "versions", "revision", "int8_peak", "guard", "about"} <= row.keys()
        json.dumps(row)
    for row in rows:
        if row["kind"] == "time":
            assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"] and row["samples"] >= 1
            assert row["limit_ms"] > 0 and 0 < row["share_of_peak"] < 1
            assert (
                row["int8_peak"] <= rows[0]["int8_peak"]
            )  # of its own turns; the best of all stands elsewhere
        if row["kind"] == "cost":
            assert row["load_seconds"] > 0 and row["peak_bytes"] > 10_000_000
        if row["kind"] == "fidelity":
            assert row["verdicts"] == 24
            if row["scorer"] != "cpu":  # fp32 beside fp32
                assert row["flips"] == 0 and row["worst"] < 1e-2


def test_the_report_is_one_page_that_needs_nothing(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    page = report.write(rows, tmp_path / "out").read_text()
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"rows.jsonl", "times.png", "index.html"}
    assert (tmp_path / "out" / "times.png").read_bytes().startswith(b"\x89PNG")
    lines = (tmp_path / "out" / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    # Base64 may spell anything, an address too.
    text, pictures = re.subn(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", page)
    assert pictures == 1 and "http" not in text and 'src=""' in text
    for title in [table.title for table in tables.tables(rows)]:
        assert str(escape(title)) in page
    shown = report.text(rows)
    assert "machine's limit" in shown and "reference-fp32-cached" in shown


def test_a_page_escapes_what_it_is_given(rows: list[dict[str, Any]]) -> None:
    page = report.page([row | {"cpu": "<script>x</script>"} for row in rows], b"")
    assert "<script>" not in page


def test_a_scorer_that_dies_is_an_error_with_its_last_words(source: Source) -> None:
    contender = Contender("no-such-scorer", "", find(["cpu"])[0].load)
    with pytest.raises(ScorerError, match="unknown scorer"):
        isolated.measure(contender, source, 1)


def test_text_is_the_guards_own(source: Source, tiny_policy: Policy) -> None:
    text = Text(Artifact.open(source.guard))
    assert text.policy == tiny_policy and text.model["layers"] == 2


def test_gemm_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes multiply out to the layer's weights; a row for each; the table shows shares of the peak."""
    model = {"layers": 1, "hidden": 8, "heads": 2, "kv_heads": 1, "head_dim": 4, "intermediate": 16}
    assert sum(n * k for n, k in gemm.shapes(model).values()) == limits.weight_bytes(model, "w8a8")
    calls: list[tuple[int, ...]] = []

    def speed(*arguments: int) -> tuple[float, float]:
        calls.append(arguments)
        return 3e9, 4e9

    native = SimpleNamespace(gemm_speed=speed)
    monkeypatch.setattr("importlib.import_module", lambda _: native)
    monkeypatch.setattr(machine, "describe", lambda threads: {"threads": threads})
    rows = gemm.run({"tiny": model}, 2, lambda: None)
    assert len(rows) == gemm.count({"tiny": model}) == len(calls) == 48
    assert all(threads == 2 for _, _, _, threads, _ in calls)
    assert calls[1] == (16, 16, 8, 2, gemm.MEMORY_BYTES // (16 * 8))
    lines = gemm.lines(rows)
    assert len(lines) == 1 + 4 * 2 and lines[1] == ("tiny", "qkv", "16 x 8", "cache", *["75%"] * 6)
