"""`python -m aegis_edge.train`: train an adapter from labelled data."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch loads: see workers.py

from aegis_edge.train.loop import Settings, run


def settings(arguments: list[str] | None = None) -> Settings:
    parser = argparse.ArgumentParser("aegis_edge.train", description="Train a LoRA guard adapter on CPU.")
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl.gz, or such a file")
    parser.add_argument("--base", type=Path, required=True, help="Hugging Face folder of a Llama base model")
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
    parser.add_argument("--validate-minutes", type=float, default=Settings.validate_minutes)
    parser.add_argument(
        "--uncompiled", dest="compiled", action="store_false", help="do without torch.compile"
    )
    return Settings(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    print(run(settings()))
