"""What the binding itself costs: the same calls of the runtime through nanobind, ctypes and pybind11.

ctypes calls what binding.cc exports in plain C; pybind11 wraps the same functions in a module of its own
(binding_probe.cc), which is compiled here. The trivial call cuts a tree that has nothing to cut; the real one
is a check's pass.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.machinery
import importlib.util
import os
import shutil
import statistics
import subprocess
import sysconfig
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from aegis_edge import _native
from aegis_edge.errors import ScorerError
from aegis_edge.scoring import IdArray, LogitArray
from aegis_edge.scoring.cpu import CpuScorer

SOURCE = Path(__file__).with_name("binding_probe.cc")
CALLS = {"trivial": 2000, "real": 5}  # in a turn, which is one sample
Row = dict[str, Any]


class Calls(Protocol):
    """A binding: `extend` of one tree, and `truncate`."""

    def extend(self, ids: IdArray, offsets: IdArray, parents: IdArray, slots: IdArray) -> Any: ...
    def truncate(self, nodes: int) -> Any: ...


class Ctypes:
    """As somebody would write it by hand: pointers of numpy arrays, and an array for the answer."""

    def __init__(self, library: ctypes.CDLL, tree: int, rows: int) -> None:
        pointer, number = ctypes.c_void_p, ctypes.c_int
        self._extend, self._truncate = library.aegis_c_extend, library.aegis_c_truncate
        self._extend.argtypes = [pointer, pointer, number, pointer, pointer, number, pointer, number, pointer]
        self._truncate.argtypes = [pointer, number]
        self._tree, self._rows = tree, rows

    def extend(self, ids: IdArray, offsets: IdArray, parents: IdArray, slots: IdArray) -> LogitArray:
        logits = np.empty((len(slots), self._rows), np.float32)
        if self._extend(
            self._tree,
            ids.ctypes.data,
            len(ids),
            offsets.ctypes.data,
            parents.ctypes.data,
            len(parents),
            slots.ctypes.data,
            len(slots),
            logits.ctypes.data,
        ):
            raise ScorerError("extend failed through ctypes")
        return logits

    def truncate(self, nodes: int) -> None:
        if self._truncate(self._tree, nodes):
            raise ScorerError("truncate failed through ctypes")


def bindings(scorer: CpuScorer, work: Path) -> tuple[dict[str, Calls], str | None]:
    """The bindings by name over one tree of `scorer`, and why pybind11 is not among them, where it is not."""
    tree = _native.Tree(scorer.model, *scorer.root_kv(), len(scorer.root))
    library = ctypes.CDLL(str(_native.__file__))
    find = ctypes.PyDLL(str(_native.__file__)).aegis_c_tree  # looks at a Python object: keeps the GIL
    find.argtypes, find.restype = [ctypes.py_object], ctypes.c_void_p
    address = find(tree)
    found: dict[str, Calls] = {"nanobind": tree, "ctypes": Ctypes(library, address, scorer.rows)}
    try:
        probe = _compiled(work)
    except ScorerError as error:
        return found, str(error)
    functions = [
        ctypes.cast(getattr(library, f"aegis_c_{name}"), ctypes.c_void_p).value
        for name in ("extend", "truncate")
    ]
    found["pybind11"] = probe.Tree(address, *functions, scorer.rows)
    return found, None


def measure(calls: Mapping[str, Calls], ids: IdArray, rounds: int) -> list[Row]:
    """Median microseconds of each call through each binding, in turns. ids int32 [n]: read at the last one.
    Raises ScorerError where the bindings' answers differ."""
    arrays = ids, *(np.array(part, np.int32) for part in ([0, len(ids)], [0], [len(ids) - 1]))

    def real(binding: Calls) -> Any:
        answer = binding.extend(*arrays)
        binding.truncate(1)
        return answer

    answers = [real(binding) for binding in calls.values()]
    logits = [answer[0] if isinstance(answer, tuple) else answer for answer in answers]
    if not all(np.array_equal(logits[0], other) for other in logits):
        raise ScorerError("the bindings give different logits")
    timed: dict[str, Callable[[Calls], Any]] = {"trivial": lambda binding: binding.truncate(1), "real": real}
    samples: dict[tuple[str, str], list[float]] = {(name, call): [] for name in calls for call in timed}
    for _ in range(rounds):
        for call, run in timed.items():
            for name, binding in calls.items():
                start = time.perf_counter()
                for _ in range(CALLS[call]):
                    run(binding)
                samples[name, call].append((time.perf_counter() - start) / CALLS[call])
    return [
        {
            "kind": "binding",
            "binding": name,
            "call": call,
            "tokens": len(ids),
            "p50_us": round(1e6 * statistics.median(found), 3),
        }
        for (name, call), found in samples.items()
    ]


def _compiled(work: Path) -> Any:
    """binding_probe.cc as a module, compiled once. Raises ScorerError without pybind11 or a compiler."""
    if importlib.util.find_spec("pybind11") is None:
        raise ScorerError("pybind11 is not installed (pip install 'aegis-edge[bench]')")
    import pybind11

    known = (os.environ.get("CXX", ""), "c++", "g++", "clang++")
    compiler = next(filter(None, map(shutil.which, known)), None)
    key = hashlib.sha256(SOURCE.read_bytes() + pybind11.__version__.encode()).hexdigest()[:16]
    file = work / f"binding-{key}" / f"binding_probe{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not file.is_file():
        if compiler is None:
            raise ScorerError("there is no C++ compiler for pybind11's module ($CXX, c++, g++ or clang++)")
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_suffix(".new")
        options = ["-O3", "-DNDEBUG", "-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden"]
        folders = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
        command = [compiler, *options, *folders, str(SOURCE), "-o", str(fresh)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ScorerError(f"pybind11's module does not compile: {done.stderr.strip()[-500:]}")
        fresh.rename(file)
    loader = importlib.machinery.ExtensionFileLoader("binding_probe", str(file))
    spec = importlib.util.spec_from_loader("binding_probe", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
