"""The mean of the weights that several schedules ended with (stochastic weight averaging, arXiv 1803.05407).

Each warm restart ends somewhere else in the same valley; their mean lies nearer to its middle, and holds on
texts of kinds that training has not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from aegis_edge.errors import AegisError


def averaged(folders: Sequence[Path]) -> dict[str, Any]:
    """The checkpoint of the last of these runs, its weights replaced by the mean of all runs'.

    Raises AegisError for a run without a checkpoint, or of another base, rank or seed than the last.
    """
    states = [checkpoint_of(folder) for folder in folders]
    last = states[-1]
    for folder, state in zip(folders, states, strict=True):
        same = {k: v.shape for k, v in state["model"].items()} == {
            k: v.shape for k, v in last["model"].items()
        }
        if not same or state["seed"] != last["seed"]:
            raise AegisError(
                f"{folder} and {folders[-1]} are no runs of one model and seed",
                hint="average copies of one --out, made as each of its schedules ended",
            )
    for name, weight in last["model"].items():
        weight.copy_(torch.stack([state["model"][name].float() for state in states]).mean(0))
    return last


def checkpoint_of(folder: Path) -> dict[str, Any]:
    """What a run keeps; raises AegisError where there is none."""
    path = folder / "checkpoint.pt"
    if not path.is_file():
        raise AegisError(f"{path}: there is no such checkpoint", hint="name the --out of a run")
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    return state
