"""The training run: probe, then LoRA within a budget of compute time, with checkpoints, validation and
snapshots.

The learning rate follows progress = compute time spent / budget. A step's time counts with at most three
times the running median, so a process that was stopped and continued (or starved for a while) keeps its
schedule. A run that is over goes on under a schedule of its own: a warm restart (SGDR, arXiv 1608.03983),
from the step and the minute that the checkpoint keeps as `begun`.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor
from torch.nn import functional as F

from aegis_edge.data.everyday import everyday
from aegis_edge.data.topics import TOPICS
from aegis_edge.errors import AegisError
from aegis_edge.evaluate.metrics import report
from aegis_edge.export.base import keep_layers
from aegis_edge.families.aegis_edge import ROWS
from aegis_edge.train import calibration, unseen
from aegis_edge.train.adapter import save_adapter
from aegis_edge.train.average import averaged
from aegis_edge.train.begin import begin_with, check_layers
from aegis_edge.train.card import card, plot
from aegis_edge.train.datasets import load_data
from aegis_edge.train.model import LeanLlama, RootCache
from aegis_edge.train.packing import Batch, Example, make_batch, tokenise
from aegis_edge.train.policies import Policy, default_policy
from aegis_edge.train.probe import probe
from aegis_edge.train.prompt import PromptEncoder
from aegis_edge.train.sampling import PUT_TOGETHER, Sampler
from aegis_edge.train.settings import Settings
from aegis_edge.train.workers import Workers
from aegis_edge.train.written import written


def load_base(folder: Path) -> Any:
    """The base as a plain bf16 LlamaForCausalLM (a folder made from GGUF keeps a note of it that is
    dropped here).
    """
    from transformers import AutoConfig, LlamaForCausalLM

    config = AutoConfig.from_pretrained(folder)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return LlamaForCausalLM.from_pretrained(folder, config=config, dtype=torch.bfloat16)


def batches(examples: Sequence[Example], encoder: PromptEncoder, settings: Settings) -> list[Batch]:
    """Packs of examples of like length, for passes without gradients; owners restart in every pack."""
    tokens = [tokenise(e, encoder, settings.limit, settings.response_limit) for e in examples]
    tokens.sort(key=lambda t: -len(t.ids))
    out, start = [], 0
    while start < len(tokens):
        end, width = start, len(tokens[start].ids)
        while end < len(tokens) and (end - start + 1) * width <= 1536:
            end += 1
        end = max(end, start + 1)
        out.append(make_batch(tokens[start:end]))
        start = end
    return out


def pairs_of(logits: Tensor, batch: Batch) -> Tensor:
    """The two logits of each slot's own kind, [S, 2]."""
    return logits.view(len(logits), -1, 2)[torch.arange(len(logits)), batch.kinds]


def labels_of(todo: Sequence[Batch]) -> tuple[np.ndarray, np.ndarray]:
    return torch.cat([b.kinds for b in todo]).numpy(), torch.cat([b.labels for b in todo]).numpy()


def loss_of(logits: Tensor, batch: Batch, settings: Settings) -> tuple[Tensor, float]:
    """Cross entropy on each slot's row pair, category slots weighing less: (weighted sum, sum of weights)."""
    pairs = pairs_of(logits, batch)
    losses = F.cross_entropy(pairs, batch.labels, reduction="none", label_smoothing=settings.smoothing)
    weight = torch.where(batch.kinds == 2, settings.category_weight, 1.0)
    return (losses * weight).sum(), float(weight.sum())


class Run:
    """State of a run in `settings.out`: checkpoint.pt, log.jsonl, training.png, adapter/."""

    def __init__(self, settings: Settings) -> None:
        torch.manual_seed(settings.seed)
        self.workers = Workers(settings.threads)
        self.settings = settings
        settings.out.mkdir(parents=True, exist_ok=True)
        self.encoder = PromptEncoder(settings.base)
        base = load_base(settings.base)
        texts = written(settings, base, self.workers)
        if settings.layers is not None:
            keep_layers(base, settings.layers)
        self.model = LeanLlama(
            base,
            len(ROWS),
            dtype=settings.dtype,
            compiled=settings.compiled,
            seed=settings.seed,
        )
        self.train, self.validation = load_data(
            settings.data, settings.seed, settings.generated, settings.contrasts, settings.topical, texts
        )
        self.sampler = Sampler(self.train, settings.seed, TOPICS, settings.without)
        whole = [record for record in self.validation if record.source not in PUT_TOGETHER]
        checks = Sampler(whole, settings.seed, without=settings.without)
        _, pool = checks.step(-1, settings.calibration_examples, vary=False)
        self.calibration_set, self.validation_set = pool, pool[: settings.validation_examples]
        lora = [*self.model.lora_a.parameters(), *self.model.lora_b.parameters()]
        self.optimiser = torch.optim.AdamW(
            [
                {"params": lora, "peak": settings.lora_rate, "weight_decay": settings.weight_decay},
                {
                    "params": [self.model.head, self.model.head_bias],
                    "peak": settings.head_rate,
                    "weight_decay": 0.0,
                },
            ],
            lr=0.0,
            betas=(0.9, 0.98),
        )
        self.parameters = [p for g in self.optimiser.param_groups for p in g["params"]]
        self.step = self.examples = 0
        self.minutes = 0.0
        self.begun: tuple[int, float] = (0, 0.0)  # step and minutes at which this schedule began
        self.calibration: dict[str, dict[str, float]] = {
            k: dict(calibration.IDENTITY) for k in calibration.KINDS
        }
        self.figures: dict[str, Any] = {}

    # --- keeping

    @property
    def checkpoint(self) -> Path:
        return self.settings.out / "checkpoint.pt"

    def log(self, **row: Any) -> None:
        row = {"step": self.step, "examples": self.examples, "minutes": round(self.minutes, 3), **row}
        with (self.settings.out / "log.jsonl").open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")

    def save(self) -> None:
        state = {
            "model": dict(self.model.state_dict()),
            "optimiser": self.optimiser.state_dict(),
            "sampler": self.sampler.state,
            "step": self.step,
            "examples": self.examples,
            "minutes": self.minutes,
            "begun": self.begun,
            "calibration": self.calibration,
            "figures": self.figures,
            "seed": self.settings.seed,
        }
        work = self.checkpoint.with_suffix(".new")
        with work.open("wb") as out:
            torch.save(state, out)
            out.flush()
            os.fsync(out.fileno())
        work.replace(self.checkpoint)

    def restore(self, state: dict[str, Any] | None = None) -> None:
        """`state`: that of a checkpoint, the run's own where none is given."""
        state = state or torch.load(self.checkpoint, weights_only=True)
        if state["seed"] != self.settings.seed:
            raise AegisError(
                f"the checkpoint was made with seed {state['seed']}, not {self.settings.seed}",
                hint=f"give --seed {state['seed']}, or another --out",
            )
        check_layers(self.model, state["model"])
        self.model.load_state_dict(state["model"])
        peaks = [g["peak"] for g in self.optimiser.param_groups]
        self.optimiser.load_state_dict(state["optimiser"])
        for group, peak in zip(self.optimiser.param_groups, peaks, strict=True):
            group["peak"] = peak
        self.sampler.state = state["sampler"]
        self.step, self.examples, self.minutes = state["step"], state["examples"], state["minutes"]
        begun = state.get("begun", (0, 0.0))
        self.begun = (self.step, self.minutes) if self.settings.restart else begun
        self.calibration, self.figures = state["calibration"], state["figures"]
        log = self.settings.out / "log.jsonl"
        if log.exists():  # steps after the checkpoint are run again: drop their rows, and a torn last line
            rows = [r for r in log.read_text(encoding="utf-8").splitlines() if r.endswith("}")]
            kept = [r for r in rows if json.loads(r)["step"] <= self.step]
            log.write_text("".join(r + "\n" for r in kept), encoding="utf-8")

    def export(self, target: Path) -> None:
        facts = {
            "examples": self.examples,
            "steps": self.step,
            "compute_minutes": round(self.minutes, 1),
            "seed": self.settings.seed,
            "validation": self.figures,
            "everyday": self.everyday(),
            "sources": sorted({r.source for r in self.train}),
            "settings": {
                k: v
                for k, v in asdict(self.settings).items()
                if isinstance(v, (int, float)) and not isinstance(v, bool)
            },
        }
        about = card(self.settings.base_name, facts | {"layers": self.model.layers}, self.calibration)
        save_adapter(self.model, target, self.settings.base_name, self.calibration, facts, about)

    # --- computing

    def root(self, policy: Policy) -> RootCache:
        return self.model.root(self.encoder.root(policy.texts))

    def evaluate(
        self, examples: Sequence[Example], policy: Policy | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Margins, kinds, labels under a policy, None: the default; in an order of its own. Examples longer
        than the training limits are cut.
        """
        todo = batches(examples, self.encoder, self.settings)
        root = self.root(policy or default_policy(self.settings.without))

        def margins(batch: Batch) -> np.ndarray:
            with torch.no_grad():
                pair = pairs_of(self.model(batch.pack, root), batch)
            return (pair[:, 1] - pair[:, 0]).numpy()

        found = list(self.workers.map(margins, todo))
        return (np.concatenate(found), *labels_of(todo))

    def validate(self, examples: Sequence[Example]) -> dict[str, Any]:
        margins, kinds, labels = self.evaluate(examples)
        self.calibration = calibration.fit_kinds(margins, kinds, labels)
        figures = {}
        for number, name in enumerate(calibration.KINDS):
            mine = kinds == number
            if mine.any():
                p = calibration.apply(margins[mine], self.calibration[name])
                found: dict[str, Any] = dict(report(p, labels[mine]))
                figures[name] = {k: round(float(v), 4) for k, v in found.items()}
        self.figures = figures
        return figures

    def margins(self, examples: Sequence[Example], policy: Policy) -> tuple[np.ndarray, np.ndarray]:
        """Margins and labels of the slots under a policy, in an order of their own."""
        found, _, labels = self.evaluate(examples, policy)
        return found, labels

    def unseen(self) -> dict[str, float]:
        """AUROC of each hazard that the run leaves out, under a policy that names it."""
        records = [*self.train, *self.validation]
        return {code: unseen.measure(records, code, self.margins) for code in self.settings.without}

    def everyday(self) -> tuple[int, int]:
        """(flagged, all) of the everyday questions, at the threshold 0.5."""
        margins, _, _ = self.evaluate([Example(text, None, False, None) for text in everyday()])
        flagged = calibration.apply(margins, self.calibration["prompt"]) >= 0.5
        return int(flagged.sum()), len(flagged)

    def run_probe(self, progress: Progress) -> None:
        sampler = Sampler(self.train, self.settings.seed + 1, without=self.settings.without)
        _, examples = sampler.step(-1, self.settings.probe_examples, vary=False)
        task = progress.add_task("probing the base", total=len(examples))
        todo = batches(examples, self.encoder, self.settings)
        root = self.root(default_policy(self.settings.without))

        def hidden(batch: Batch) -> np.ndarray:
            with torch.no_grad():
                return self.model.hidden(batch.pack, root).numpy()

        found = []
        for batch, features in zip(todo, self.workers.map(hidden, todo), strict=True):
            found.append(features)
            progress.advance(task, sum(len(g.ids) for g in batch.pack.groups))
        self.log(probe=probe(self.model, np.concatenate(found), *labels_of(todo)))

    def done(self) -> float:
        """How much of the schedule is behind, 0 to 1."""
        s, (step, minutes) = self.settings, self.begun
        behind, whole = (
            (self.step - step, s.steps - step)
            if s.steps is not None
            else (self.minutes - minutes, s.budget_minutes - minutes)
        )
        return min(1.0, behind / whole) if whole > 0 else 1.0

    def rate(self) -> float:
        """Share of the peak learning rate: linear warmup, then cosine to `final_rate`."""
        s, done = self.settings, self.done()
        if done < s.warmup:
            return (done + 1e-3) / (s.warmup + 1e-3)
        return s.final_rate + (1 - s.final_rate) * 0.5 * (
            1 + math.cos(math.pi * (done - s.warmup) / (1 - s.warmup))
        )

    def gradients(self, shard: tuple[Batch, RootCache]) -> tuple[tuple[Tensor, ...], float, float]:
        """(gradient of the summed loss for each parameter, summed loss, weight), without touching `.grad`."""
        batch, root = shard
        loss, weight = loss_of(self.model(batch.pack, root), batch, self.settings)
        return torch.autograd.grad(loss, self.parameters), float(loss.detach()), weight

    def train_step(self) -> float:
        """One optimiser step; its examples are dealt by length to the workers, which share the weights."""
        policy, examples = self.sampler.step(self.step, self.settings.examples_per_step)
        tokens = [
            tokenise(e, self.encoder, self.settings.limit, self.settings.response_limit) for e in examples
        ]
        tokens.sort(key=lambda t: -len(t.ids))
        shards = [tokens[i :: self.workers.count] for i in range(min(self.workers.count, len(tokens)))]
        root = self.root(policy)
        parts = list(self.workers.map(self.gradients, [(make_batch(shard), root) for shard in shards]))
        weight = sum(w for _, _, w in parts)
        for number, parameter in enumerate(self.parameters):
            parameter.grad = torch.stack([g[number] for g, _, _ in parts]).sum(0) / weight
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * self.rate()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        self.optimiser.step()
        self.step += 1
        self.examples += len(examples)
        return sum(value for _, value, _ in parts) / weight


def run(settings: Settings) -> Path:
    """Train until the budget is spent; returns the adapter folder. With `resume`, go on from the
    checkpoint if any; with `average`, take the mean of other runs' weights and train no further.
    """
    state = Run(settings)
    recent: deque[float] = deque(maxlen=50)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>5.1f}%"),
        TimeElapsedColumn(),
    )
    with Progress(*columns) as progress:
        if settings.average:
            state.restore(averaged(settings.average))
        elif settings.resume and state.checkpoint.exists():
            state.restore()
            state.save()  # where a new schedule begins is known from here on, whatever happens
        else:
            (settings.out / "log.jsonl").unlink(missing_ok=True)
            if not (settings.begin and begin_with(state.model, settings.begin)):
                state.run_probe(progress)
            state.log(validation=state.validate(state.validation_set))
            state.save()
        if settings.snapshot:
            state.export(settings.snapshot)
        task = progress.add_task("training", total=1.0)
        progress.update(task, completed=state.done())
        saved = validated = state.minutes
        losses: deque[float] = deque(maxlen=100)
        while state.done() < 1.0 and not settings.average:
            began = time.monotonic()
            losses.append(state.train_step())
            spent = (time.monotonic() - began) / 60
            recent.append(spent)
            state.minutes += min(spent, 3 * statistics.median(recent))
            state.log(loss=round(losses[-1], 4), seconds=round(spent * 60, 2), rate=round(state.rate(), 4))
            mean = sum(losses) / len(losses)
            progress.update(task, completed=state.done(), description=f"step {state.step} loss {mean:.3f}")
            if state.minutes - validated >= settings.validate_minutes:
                validated = saved = state.minutes
                state.log(validation=state.validate(state.validation_set))
                state.save()
                plot(settings.out)
                if settings.snapshot:
                    state.export(settings.snapshot)
            elif state.minutes - saved >= settings.checkpoint_minutes:
                saved = state.minutes
                state.save()
        figures = state.validate(state.calibration_set)
        state.calibration["custom_category"] = unseen.custom_scale(state.margins, settings.seed)
        state.log(validation=figures, unseen=state.unseen(), final=True)
        state.save()
        plot(settings.out)
    target = settings.out / "adapter"
    state.export(target)
    if settings.snapshot:
        state.export(settings.snapshot)
    return target
