"""The compiled runtime as Python sees it: results, instruction sets, threads, the GIL, memory, a fork."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_model import SCHEMES, SHAPE, RandomWeights, i32, ids, scores, segments

from aegis_edge import _native
from aegis_edge.errors import ScorerError
from aegis_edge.scoring import Segment
from aegis_edge.scoring.cpu import CpuScorer, load_model


def test_shapes_and_dtypes() -> None:
    model = load_model(RandomWeights("w8a8"), 1)
    tree = _native.Tree(model, *model.compute_root(ids(20, 1)), 20)
    logits, hidden = tree.extend(i32(1, 2, 3), i32(0, 3), i32(0), i32(0, 2), True)
    assert (logits.shape, logits.dtype, hidden.shape, hidden.dtype) == (
        (2, 3),
        np.float32,
        (2, 64),
        np.float32,
    )
    logits, hidden = tree.extend(i32(1), i32(0, 1), i32(1), i32())
    assert logits.shape == (0, 3)
    assert hidden is None


def test_slots_in_any_order_come_back_in_that_order() -> None:
    scorer = CpuScorer(RandomWeights("w8a8"), ids(20, 1), threads=1)
    forward = scorer.tree().extend([Segment(ids(6, 2), 0, (1, 4)), Segment(ids(3, 3), 0, (0, 2))])
    back = scorer.tree().extend([Segment(ids(6, 2), 0, (4, 1)), Segment(ids(3, 3), 0, (2, 0))])
    assert (back == forward[[1, 0, 3, 2]]).all()
    assert not (back == forward).all()


def test_a_node_that_grows_is_the_bits_of_one_that_was_whole() -> None:
    scorer = CpuScorer(RandomWeights("w8a8"), ids(20, 1), threads=2)
    text, verdict = ids(40, 2), Segment(ids(1, 3), 1, (0,))
    whole = scorer.tree().extend([Segment(text, 0), verdict])
    tree = scorer.tree()
    tree.extend([Segment(text[:9], 0, room=48), verdict])
    tree.truncate(2)
    assert (tree.extend([Segment(text[7:], 1, kept=7), verdict]) == whole).all()
    tree.truncate(2)
    changed = np.concatenate([text[:39], (text[39:] + 1) % SHAPE["vocab"]]).astype(np.int32)
    assert not (tree.extend([Segment(changed[39:], 1, kept=39), verdict]) == whole).all()


def test_what_can_not_grow_is_refused_and_nothing_changes() -> None:
    scorer = CpuScorer(RandomWeights("w8a8"), ids(20, 1), threads=1)
    tree, one = scorer.tree(), ids(1, 3)
    tree.extend([Segment(ids(5, 2), 0, room=16), Segment(one, 1, (0,))])
    for segments_, message in (
        ([Segment(one, 0, kept=20)], "node 0 can not grow from its token 20 on"),
        ([Segment(one, 1, kept=6)], "node 1 can not grow from its token 6 on"),
        ([Segment(one, 1, kept=-1)], "node 1 can not grow from its token -1 on"),
        ([Segment(one, 1, kept=5)], "node 1 can not grow: it has children"),
        ([Segment(one, 2, kept=1)], "node 2 can not grow: it has no room"),
        ([Segment(one, 2), Segment(one, 2, kept=1)], "the batch has used it before"),
    ):
        with pytest.raises(ScorerError, match=message):
            tree.extend(segments_)
    tree.truncate(2)
    tree.extend([Segment(ids(11, 4), 1, kept=5)])
    with pytest.raises(ScorerError, match="node 1 can not grow: it has no room"):
        tree.extend([Segment(one, 1, kept=16)])
    assert tree.extend([Segment(one, 1, (0,))]).shape == (1, 3)


def test_arrays_outlive_the_names_they_were_passed_by() -> None:
    """The embedding is not copied, and a tree holds its model and its root."""
    expected = scores("w8a8")
    scorer = CpuScorer(RandomWeights("w8a8"), ids(37, 9), threads=1)
    tree = scorer.tree()
    del scorer
    gc.collect()
    junk = [np.full((SHAPE["vocab"], SHAPE["hidden"]), 7, np.uint16) for _ in range(50)]
    assert (tree.extend(segments()) == expected).all()
    del junk


def run_forced(isa: str, scheme: str = "w8a8") -> subprocess.CompletedProcess[str]:
    program = Path(__file__).with_name("native_model.py")
    return subprocess.run(
        [sys.executable, str(program), scheme],
        env={**os.environ, "AEGIS_EDGE_ISA": isa},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_an_unknown_instruction_set_fails_loudly() -> None:
    done = run_forced("mmx")
    assert done.returncode != 0
    assert "AEGIS_EDGE_ISA=mmx is unknown; this build has" in done.stderr
    assert "scalar" in done.stderr


def test_a_missing_instruction_set_fails_loudly() -> None:
    """Whatever is not available here is refused, be it that the CPU lacks it or that the build does."""
    known = {"avx512bf16", "avx512vnni", "avxvnni", "avx2", "neoni8mmbf16", "neonbf16", "neon"}
    missing = known - set(_native.available_isas())
    assert missing
    for isa in missing:
        done = run_forced(isa)
        assert done.returncode != 0
        assert re.search(
            f"AEGIS_EDGE_ISA={isa}(: this CPU lacks that instruction set| is unknown)", done.stderr
        )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_instruction_sets_agree(scheme: str) -> None:
    """Bit for bit with scalar; sets with bf16 instructions, which round their own way, within 1 %."""
    by_isa = {}
    for isa in _native.available_isas():
        done = run_forced(isa, scheme)
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert result["isa"] == isa
        by_isa[isa] = np.array(result["logits"], np.float32)
    scalar = by_isa["scalar"]
    assert np.isfinite(scalar).all()
    assert scalar.std() > 0.1
    for isa, logits in by_isa.items():
        if isa.endswith("bf16"):
            assert np.abs(logits - scalar).max() <= 0.01 * scalar.std()
        else:
            assert (logits == scalar).all(), isa


@pytest.mark.parametrize("scheme", SCHEMES)
def test_many_python_threads_get_the_same_bits(scheme: str) -> None:
    scorer = CpuScorer(RandomWeights(scheme), ids(37, 9), threads=2)
    expected = scores(scheme)

    def check(round_: int) -> bool:
        tree = scorer.tree()
        whole = tree.extend(segments())
        tree.truncate(1)
        first = tree.extend(segments()[:2])
        rest = tree.extend(segments()[2:])
        return bool((whole == expected).all() and (np.concatenate([first, rest]) == expected).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(check, range(24)))


def test_the_gil_is_released_during_a_pass() -> None:
    """A second thread makes progress well inside of a pass that takes a tenth of a second or more."""
    scorer = CpuScorer(RandomWeights("w8a8", context=1 << 16), ids(20, 1), threads=1)
    ticks: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    ticker = threading.Thread(target=tick)
    ticker.start()
    try:
        n, start, end = 500, 0.0, 0.0
        while end - start < 0.1:
            n *= 2
            long = ids(n, 2)
            start = time.perf_counter()
            scorer.tree().extend([Segment(long, 0, (n - 1,))])
            end = time.perf_counter()
    finally:
        stop.set()
        ticker.join()
    inside = (end - start) / 4
    assert sum(start + inside < t < end - inside for t in ticks) >= 3


def test_memory_does_not_grow_with_checks() -> None:
    scorer = CpuScorer(RandomWeights("w8a8"), ids(37, 9), threads=1)
    tree = scorer.tree()

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def checks(count: int) -> None:
        for _ in range(count):
            tree.extend(segments())
            tree.truncate(1)
            scorer.tree().extend(segments()[:1])

    checks(50)
    before = resident()
    checks(500)
    assert resident() - before < 2 << 20


def in_child(check: Callable[[], bool]) -> bool:
    """Whether `check` returns true in a forked child within 20 s; one that hangs is killed."""
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            os._exit(0 if check() else 1)
        finally:
            os._exit(2)
    _, status = os.waitpid(child, 0)
    return os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("idle", [0.0, 0.05], ids=["spinning", "parked"])
def test_a_forked_child_is_refused_and_can_load_its_own(idle: float) -> None:
    expected = scores("w8a8")
    held: dict[str, Any] = {"scorer": CpuScorer(RandomWeights("w8a8"), ids(37, 9), threads=2)}
    held["tree"] = held["scorer"].tree()
    assert (held["tree"].extend(segments()) == expected).all()
    time.sleep(idle)

    def child() -> bool:
        refused = False
        try:
            held["tree"].extend(segments())
        except ScorerError as error:
            refused = "before a fork" in str(error)
        held.clear()  # destroying what the parent made must not wait for threads that are not here
        gc.collect()
        return refused and bool((scores("w8a8", threads=2) == expected).all())

    assert in_child(child)
    held["tree"].truncate(1)
    assert (held["tree"].extend(segments()) == expected).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_forked_during_a_pass_does_not_hang() -> None:
    """Another thread holds the model's lock at the fork; nobody in the child will ever release it."""
    scorer = CpuScorer(RandomWeights("w8a8"), ids(37, 9), threads=2)
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            scorer.tree().extend(segments())

    def child() -> bool:
        try:
            scorer.tree().extend(segments())
        except ScorerError as error:
            return "before a fork" in str(error)
        return False

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        assert all(in_child(child) for _ in range(5))
    finally:
        stop.set()
        thread.join()


def test_everything_a_scorer_does_in_a_forked_process_is_a_scorer_error() -> None:
    scorer = CpuScorer(RandomWeights("w8a8"), ids(20, 1), threads=2)
    tree = scorer.tree()
    tree.extend(segments())
    calls: tuple[Callable[[], object], ...] = (
        lambda: tree.truncate(1),
        lambda: tree.extend(segments()),
        lambda: scorer.tree(ids(7, 3)),
    )
    child = os.fork()
    if child == 0:
        refused = 0
        for call in calls:
            try:
                call()
            except ScorerError as error:
                refused += "fork" in str(error)
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == len(calls)
