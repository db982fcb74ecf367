"""What a binding costs: the same answers through each, and a reason where one is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aegis_edge.artifact import Artifact
from aegis_edge.bench import binding
from aegis_edge.errors import ScorerError
from aegis_edge.scoring.cpu import CpuScorer

IDS = np.arange(5, 17, dtype=np.int32)


@pytest.fixture
def scorer(artefacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> CpuScorer:
    monkeypatch.setattr(binding, "CALLS", {"trivial": 20, "real": 2})
    artifact = Artifact.open(artefacts["w8a8"])
    root = np.array(artifact.manifest["family"]["plan"]["root_ids"], np.int32)
    return CpuScorer(artifact, root, threads=1)


def test_every_binding_gives_the_same_logits_and_is_timed(scorer: CpuScorer, tmp_path: Path) -> None:
    calls, absent = binding.bindings(scorer, tmp_path)
    names = ["nanobind", "ctypes", *(["pybind11"] if absent is None else [])]
    assert list(calls) == names and (absent is None or "pybind11" in absent)
    rows = binding.measure(calls, IDS, 3)
    assert {(row["binding"], row["call"]) for row in rows} == {(n, c) for n in names for c in binding.CALLS}
    assert all(row["p50_us"] > 0 and row["tokens"] == len(IDS) for row in rows)
    by = {(row["binding"], row["call"]): row["p50_us"] for row in rows}
    assert all(by[name, "real"] > by[name, "trivial"] for name in names)


def test_another_answer_is_an_error(scorer: CpuScorer, tmp_path: Path) -> None:
    calls, _ = binding.bindings(scorer, tmp_path)

    class Wrong:
        def extend(self, *arrays: Any) -> Any:
            return calls["ctypes"].extend(*arrays) + 1

        def truncate(self, nodes: int) -> None:
            calls["ctypes"].truncate(nodes)

    with pytest.raises(ScorerError, match="different logits"):
        binding.measure({**calls, "wrong": Wrong()}, IDS, 1)


def test_a_refusal_comes_through_ctypes(scorer: CpuScorer, tmp_path: Path) -> None:
    calls, _ = binding.bindings(scorer, tmp_path)
    one, zero = np.array([0, 1], np.int32), np.array([0], np.int32)
    with pytest.raises(ScorerError, match="extend failed"):
        calls["ctypes"].extend(np.array([1 << 30], np.int32), one, zero, zero)


def test_without_a_compiler_it_says_so(
    scorer: CpuScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pybind11", reason="pybind11 is not installed: pip install '.[bench]'")
    monkeypatch.setattr(binding.shutil, "which", lambda name: None)
    calls, absent = binding.bindings(scorer, tmp_path)
    assert list(calls) == ["nanobind", "ctypes"] and "no C++ compiler" in str(absent)
    broken = tmp_path / "broken.cc"
    broken.write_text("this is no C++")
    monkeypatch.undo()
    monkeypatch.setattr(binding, "SOURCE", broken)
    _, absent = binding.bindings(scorer, tmp_path)
    assert "does not compile" in str(absent)
