"""What a scorer has to bring to take part."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aegis_edge.features import Features
from aegis_edge.scoring import IdArray, Scorer


@dataclass(frozen=True)
class Source:
    """What all scorers are made from.

    guard   artefact folder, for the project's own runtime
    parent  Hugging Face folder of the decoder it was quantised from: base with adapter merged, fp32; with
            head.npz
    work    folder for conversions, kept between runs
    """

    guard: Path
    parent: Path
    work: Path

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The guard's aegis.json."""
        found: dict[str, Any] = json.loads((self.guard / "aegis.json").read_text("utf-8"))
        return found

    @property
    def root(self) -> IdArray:
        """Ids of the guard's policy, int32 [P]."""
        return np.array(self.manifest["family"]["plan"]["root_ids"], np.int32)

    def head(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """The label rows: weight float32 [rows, hidden], bias float32 [rows]."""
        with np.load(self.parent / "head.npz") as arrays:
            return arrays["weight"], arrays["bias"]

    @property
    def softcap(self) -> float:
        """c of the label logits c tanh(logit / c), as the base's LM head has it; 0: none."""
        return Features.of(self.manifest["model"]).logit_softcap


def _nothing(source: Source) -> None:
    """For scorers that need no conversion."""


@dataclass(frozen=True)
class Contender:
    """One line of the report.

    name      unique, such as "reference-bf16-cached"
    about     what it is and how it is used, one line
    load      (source, threads) -> the scorer; its time and memory are reported
    packages  distributions it needs, whose versions are reported
    modules   importable names of those that may be missing
    prepare   conversions of the weights, done before and not timed
    install   how to get the modules
    """

    name: str
    about: str
    load: Callable[[Source, int], Scorer]
    packages: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    prepare: Callable[[Source], None] = _nothing
    install: str = "pip install 'aegis-edge[bench]'"

    def missing(self) -> str | None:
        """The first module that is not installed, or None."""
        return next((name for name in self.modules if importlib.util.find_spec(name) is None), None)
