"""Export, from base model to artefact: load, merge, fold, rotate, quantise, compile the policy, write."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from aegis_edge.encoding import ContentEncoder
from aegis_edge.errors import ExportError
from aegis_edge.export.architecture import beyond_llama
from aegis_edge.export.base import DEFAULT_BASE, file_sha256, resolve_base
from aegis_edge.export.calibration import PACKAGED, flat_text, load_calibration
from aegis_edge.export.chat import check_ids, speak
from aegis_edge.export.merge import Parent, load_parent
from aegis_edge.export.rotate import fold_norms, rotate
from aegis_edge.export.simulate import (
    ROTATED,
    ROUNDINGS,
    SCHEMES,
    Fidelity,
    fidelity,
    margins,
    quantise_trunk,
)
from aegis_edge.export.targets import Build, get_target, scheme_for
from aegis_edge.export.trunk import PROJECTIONS, keep_vocabulary, trunk_of
from aegis_edge.export.write import atomic_folder, refuse_existing
from aegis_edge.families import DEFAULT_FAMILY, find_recipe, get_family
from aegis_edge.policy import Policy

SEED = 0  # of the rotations: the same command gives the same artefact


@dataclass(frozen=True)
class Exported:
    """What an export made. bytes_before: the parent's weights in bf16; bytes_after: the whole artefact;
    errors: see Build."""

    path: Path
    scheme: str
    fidelity: Fidelity
    errors: dict[str, float]
    bytes_before: int
    bytes_after: int
    seconds: float

    def summary(self) -> str:
        """A few lines for people."""
        f = self.fidelity
        return (
            f"{self.path}: {self.scheme}, {self.bytes_after / 1e6:.1f} MB"
            f" (parent in bf16: {self.bytes_before / 1e6:.1f} MB), {self.seconds:.0f} s\n"
            f"against the parent in fp32, {f.slots} verdicts on calibration text: {f.flips:.2%} differ"
            f" ({f.far_flips} where the parent is sure), mean margin error {f.margin_error:.3f}"
            f" = {f.relative_error:.1%} of the margins' standard deviation"
        )


def export_guard(
    base: str = DEFAULT_BASE,
    adapter: str | None = None,
    family: str = DEFAULT_FAMILY,
    policy: Policy | None = None,
    *,
    out: str | Path,
    quantize: str | None = None,
    rounding: str = "gptq",
    target: str = "aegis",
    calibration: str | Path | None = None,
    force: bool = False,
    console: Console | None = None,
) -> Exported:
    """Export a guard into the folder `out`; progress goes to `console` (standard error by default).

    base         "smollm2-135m-instruct", a Hugging Face folder, a .gguf file or a hub id
    adapter      a PEFT folder; None: the packaged one for the default base, else none; "none": no adapter
    family       "aegis-edge", a built-in recipe's name, or a .toml file (aegis_edge/families/README.md)
    policy       None: the 23 Aegis 2.0 categories, or the family's own
    quantize     "w8a8", "w4a8", "bf16" or another scheme that the target takes; None: the target's first
    rounding     of w8a8: "gptq", against the calibration text, or "nearest", which is quick
    target       "aegis", this project's runtime, or the engine to write for: see targets/
    calibration  a text file (see calibration.py); None: the text that ships with the project
    force        replace an artefact at `out`, which stays in place until the new one is whole

    Raises ExportError (and FamilyError, PolicyError, ArtifactError where those parts fail).
    """
    if quantize is not None and quantize not in SCHEMES:
        raise ExportError(f"unknown quantisation {quantize!r}", hint=f"one of {', '.join(SCHEMES)}")
    out = Path(out).expanduser()
    engine = get_target(target)
    scheme = scheme_for(target, engine, quantize)
    if rounding not in ROUNDINGS:
        raise ExportError(f"unknown rounding {rounding!r}", hint=f"one of {', '.join(ROUNDINGS)}")
    if rounding == "nearest" and scheme != "w8a8":
        raise ExportError(f"--rounding nearest is for w8a8, not {scheme}", hint="leave --rounding out")
    recipe = find_recipe(family)
    rules = policy or (None if recipe is None else recipe.policy) or Policy.default()
    refuse_existing(out.absolute(), force)  # before minutes of work, not after
    text_file = Path(calibration).expanduser() if calibration else None
    conversations = load_calibration(text_file)
    started = time.monotonic()
    with _progress(console) as progress, torch.inference_mode():
        with _step(progress, "Loading base and adapter"):
            folder = resolve_base(base).folder
            spoken = None if recipe is None else speak(recipe, folder)
            asked = get_family(family) if spoken is None else spoken.family()
            parent = load_parent(base, adapter, asked, rules)
            lacking = [] if engine.is_ours else beyond_llama(parent.model.config)
            if lacking:  # its checkpoint would say what the folded weights say already, or not at all
                raise ExportError(
                    f"--target {target} takes Llama's decoder; this base needs {', '.join(lacking)}",
                    hint="--target aegis takes it",
                )
            bytes_before = 2 * sum(parameter.numel() for parameter in parent.model.parameters())
            encoder = ContentEncoder.from_json(parent.tokenizer)
            plan = asked.compile(encoder, rules)
            if spoken is not None and recipe is not None:
                check_ids(spoken, recipe, plan, rules, parent.tokenizer, folder)
        with _step(progress, "Rotating"):
            head = parent.head
            trunk = trunk_of(parent.model, head.weight, head.bias, head.softcap)
            if parent.head.kind == "tokens" or not engine.is_ours:
                keep_vocabulary(trunk, parent.model)
            if scheme in ROTATED:
                fold_norms(trunk)
                rotate(trunk, SEED, online=engine.is_ours)
            text = flat_text(conversations, encoder, plan, trunk.dims.context)
            text = replace(text, has_fine=engine.is_ours)
        steps = trunk.dims.layers * len(PROJECTIONS)
        with _step(progress, f"Quantising to {scheme}", steps) as task:
            guard, errors, before, after = quantise_trunk(
                trunk,
                text,
                scheme,
                lambda _: progress.advance(task),
                rounding=rounding,
                trained=parent.head.kind == "trained",
                kept=engine.kept,
            )
        moved = fidelity(margins(before, text.pairs), margins(after, text.pairs))
        arguments = {
            "base": base,
            "adapter": adapter,
            "family": family,
            "quantize": scheme,
            "rounding": None if rounding == "gptq" else rounding,
            "target": target,
        }
        provenance = _provenance(parent, arguments, text_file, len(conversations))
        if scheme in ROTATED:
            provenance["rounding"] = rounding
        build = Build(parent, guard, asked, plan, rules, scheme, moved, errors, provenance)
        with _step(progress, "Writing"), atomic_folder(out, force) as target_folder:
            engine.write(build, target_folder)
    bytes_after = sum(file.stat().st_size for file in out.iterdir())
    return Exported(out, scheme, moved, errors, bytes_before, bytes_after, time.monotonic() - started)


def _provenance(
    parent: Parent, arguments: dict[str, str | None], text: Path | None, count: int
) -> dict[str, Any]:
    file = text or PACKAGED
    # Names, not paths: an artefact is given away, the folders of whoever made it are not.
    words = [f"--{key} {Path(value).name}" for key, value in arguments.items() if value is not None]
    words += [f"--calibration {text.name}"] if text else []
    return {
        **parent.provenance,
        "calibration": {"name": file.name, "sha256": file_sha256(file), "conversations": count},
        "command": " ".join(["aegis-edge export", *words]),
        "seed": SEED,
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in ("aegis-edge", "torch", "transformers", "peft")},
        },
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _progress(console: Console | None) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console or Console(stderr=True),
    )


@contextmanager
def _step(progress: Progress, name: str, total: int = 1) -> Iterator[Any]:
    task = progress.add_task(name, total=total)
    yield task
    progress.update(task, completed=total)
