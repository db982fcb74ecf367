"""`python -m aegis_edge.train`: train an adapter from labelled data."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch loads: see workers.py

from aegis_edge.data.mapping import ALL_CODES
from aegis_edge.export.base import DEFAULT_BASE, resolve_base
from aegis_edge.train.loop import run
from aegis_edge.train.settings import Settings


def settings(arguments: list[str] | None = None) -> Settings:
    parser = argparse.ArgumentParser("aegis_edge.train", description="Train a LoRA guard adapter on CPU.")
    parser.add_argument(
        "--data",
        type=Path,
        action="append",
        required=True,
        help="a data file, or a folder of them (files with `train` in their name, and published dialogues); "
        "may be repeated",
    )
    parser.add_argument("--base", default=DEFAULT_BASE, help="base model, as `aegis-edge export` takes it")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for checkpoint, log, plot and adapter/"
    )
    parser.add_argument(
        "--budget-minutes", type=float, default=Settings.budget_minutes, help="minutes of compute"
    )
    parser.add_argument("--steps", type=int, help="train this many steps instead; makes a run repeatable")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint in --out, if there is one"
    )
    parser.add_argument(
        "--restart",
        action="store_true",
        help="with --resume and a larger budget: go on from a run that is over under a new schedule; give it "
        "once, and --resume alone if that run is killed",
    )
    parser.add_argument("--layers", type=int, help="keep so many of the base's layers, the first ones")
    parser.add_argument(
        "--begin",
        type=Path,
        metavar="RUN",
        help="a new run begins with the weights of this one (a folder as --out, or an adapter's), the LoRA "
        "of its first layers where --layers keeps fewer",
    )
    parser.add_argument(
        "--average",
        type=Path,
        action="append",
        default=[],
        metavar="RUN",
        help="train no further: the mean of these runs' weights (folders as --out, the newest last; those "
        "before it may be adapters'), calibrated; may be repeated",
    )
    parser.add_argument("--snapshot", type=Path, help="folder that gets an adapter at every validation")
    parser.add_argument("--threads", type=int, default=Settings.threads)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--examples-per-step", type=int, default=Settings.examples_per_step)
    parser.add_argument(
        "--lora-rate", type=float, default=Settings.lora_rate, help="peak learning rate of the LoRA"
    )
    parser.add_argument("--probe-examples", type=int, default=Settings.probe_examples)
    parser.add_argument("--checkpoint-minutes", type=float, default=Settings.checkpoint_minutes)
    parser.add_argument(
        "--generated", type=int, default=Settings.generated, help="own harmless prompts to add"
    )
    parser.add_argument(
        "--written", type=int, default=Settings.written, help="harmless texts that the base writes, to add"
    )
    parser.add_argument("--validate-minutes", type=float, default=Settings.validate_minutes)
    parser.add_argument(
        "--uncompiled", dest="compiled", action="store_false", help="do without torch.compile"
    )
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="S1",
        choices=ALL_CODES,
        help="leave a hazard out of policies and data, to measure it when first named later; may be repeated",
    )
    given = vars(parser.parse_args(arguments))
    base = resolve_base(given["base"])
    given |= {"base": base.folder, "base_name": base.name}
    return Settings(**given | {name: tuple(given[name]) for name in ("data", "without", "average")})


if __name__ == "__main__":
    print(run(settings()))
