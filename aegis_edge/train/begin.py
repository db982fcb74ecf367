"""What a run begins with in place of an untrained LoRA: that of another run, or of an adapter that ships.

A guard of fewer layers starts from a whole one's: its label rows are probed anew where it is cut, and the
rest of the way is a short one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from aegis_edge.errors import AegisError
from aegis_edge.train.average import weights_of
from aegis_edge.train.model import LeanLlama


def begin_with(model: LeanLlama, folder: Path) -> bool:
    """Put the weights of the run or adapter in `folder` into the model: the LoRA of as many of its first
    layers as the model has, and where it has all of them the label rows too. Returns whether it got those.

    Raises AegisError for a folder of neither, with fewer layers, or of another base or rank.
    """
    theirs, _ = weights_of(folder)
    own = model.state_dict()
    whole = all(theirs[name].shape == mine.shape for name, mine in own.items())
    with torch.no_grad():
        for name, mine in own.items():
            if not whole and not name.startswith("lora_"):
                continue
            if theirs[name].shape[1:] != mine.shape[1:] or len(theirs[name]) < len(mine):
                raise AegisError(
                    f"{folder} is no run to begin with: its {name} is {list(theirs[name].shape)}, "
                    f"not {list(mine.shape)}",
                    hint="name a run of the same base, with as many layers or more",
                )
            mine.copy_(theirs[name][: len(mine)])
    return whole


def check_layers(model: LeanLlama, kept: Mapping[str, torch.Tensor]) -> None:
    """Raises AegisError where a checkpoint's weights are of more or fewer layers than the model has."""
    found = len(kept["lora_a.q_proj"])
    if found != model.layers:
        raise AegisError(
            f"the checkpoint was made with {found} layers, not {model.layers}",
            hint=f"give --layers {found}, or another --out",
        )
