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
from aegis_edge.train.adapter import kept_weights


def averaged(folders: Sequence[Path]) -> dict[str, Any]:
    """The checkpoint of the last of these runs, its weights replaced by the mean of all: runs, or adapters.

    Raises AegisError for a folder of neither, or of another base, rank or seed than the last.
    """
    last = checkpoint_of(folders[-1])
    weights = [last["model"]]
    for folder in folders[:-1]:
        theirs, seed = weights_of(folder)
        same = {k: v.shape for k, v in theirs.items()} == {k: v.shape for k, v in last["model"].items()}
        if not same or seed not in (None, last["seed"]):
            raise AegisError(
                f"{folder} and {folders[-1]} are no runs of one model and seed",
                hint="average copies of one --out, made as each of its schedules ended",
            )
        weights.append(theirs)
    last["model"] = {k: torch.stack([w[k].float() for w in weights]).mean(0) for k in last["model"]}
    return last


def weights_of(folder: Path) -> tuple[dict[str, torch.Tensor], int | None]:
    """The weights of a run and its seed, or those of a saved adapter, which tells none."""
    if (folder / "adapter_model.safetensors").is_file():
        return kept_weights(folder), None
    state = checkpoint_of(folder)
    return state["model"], state["seed"]


def checkpoint_of(folder: Path) -> dict[str, Any]:
    """What a run keeps; raises AegisError where there is none."""
    path = folder / "checkpoint.pt"
    if not path.is_file():
        raise AegisError(f"{path}: there is no such checkpoint", hint="name the --out of a run")
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    return state
