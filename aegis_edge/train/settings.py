"""What a training run can be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Settings:
    """One run. Times in minutes of compute; `limit`s in tokens of text."""

    data: tuple[Path, ...]
    base: Path
    base_name: str
    out: Path
    budget_minutes: float = 80.0
    steps: int | None = None  # instead of the budget: a fixed number of steps, which makes a run repeatable
    snapshot: Path | None = None
    resume: bool = False
    restart: bool = False  # with `resume`: the learning rate rises and falls once more over what is left
    layers: int | None = None  # of the base, the first ones; None: all
    begin: Path | None = None  # a run whose LoRA a new one begins with
    average: tuple[Path, ...] = ()  # folders of runs whose weights are averaged, in place of training
    seed: int = 0
    threads: int = 2
    examples_per_step: int = 32
    lora_rate: float = 4e-4
    head_rate: float = 2e-4
    warmup: float = 0.03
    final_rate: float = 0.03  # of the peak
    weight_decay: float = 0.01
    clip: float = 1.0
    smoothing: float = 0.02
    category_weight: float = 0.5
    limit: int = 320
    response_limit: int = 96
    generated: int = 8000
    contrasts: int = 1200
    topical: int = 60  # prompts a topic
    written: int = 1800  # harmless texts by the base; once a run, kept in `out`
    without: tuple[str, ...] = ()  # hazard codes left out of training, to measure them as first named later
    probe_examples: int = 4000
    validation_examples: int = 400
    calibration_examples: int = 4000
    checkpoint_minutes: float = 2.0
    validate_minutes: float = 8.0
    compiled: bool = True
    dtype: torch.dtype = torch.bfloat16
