"""A benchmark run: fidelity, then timing, then what a scorer costs to have."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aegis_edge import __version__, machine
from aegis_edge.artifact import Artifact
from aegis_edge.bench import fidelity, isolated, length, limits, parent, prompts
from aegis_edge.bench.contender import Contender, Source
from aegis_edge.bench.guards import NEVER, Text
from aegis_edge.bench.scenarios import BATCH, LENGTHS, Scenario, scenarios
from aegis_edge.bench.scorers import find
from aegis_edge.bench.stages import stages
from aegis_edge.bench.timing import Series, interleave, percentile
from aegis_edge.conversation import Conversation
from aegis_edge.decision import Rating
from aegis_edge.errors import ScorerError
from aegis_edge.scoring import Scorer

Row = dict[str, Any]
STAGE_LENGTHS = (16, 64, 128)


@dataclass(frozen=True)
class Settings:
    """What to run. base and adapter as `aegis-edge export` takes them (None: the guard's own); prompts: JSON
    lines for the comparison of verdicts, None for generated ones; budget: seconds a scorer may spend on a
    scenario; batch: prompts of the batch."""

    guard: Path
    base: str | None = None
    adapter: str | None = None
    scorers: tuple[str, ...] = ("cpu", "reference")
    lengths: tuple[int, ...] = LENGTHS
    rounds: int = 10
    threads: int | None = None
    prompts: Path | None = None
    compared: int = 256
    budget: float = 20.0
    batch: int = BATCH
    work: Path = Path()


class Progress:
    """Told of every step; `bench.py` of the command line shows it."""

    def say(self, text: str) -> None:
        """A line for a person: something was skipped, something is remarkable."""

    @contextmanager
    def steps(self, what: str, total: int) -> Iterator[Callable[[], None]]:
        """A stretch of work of `total` steps; call what is yielded after each."""
        yield lambda: None


def run(settings: Settings, progress: Progress) -> list[Row]:
    """All rows of the report; each carries the machine, versions and revision. Raises AegisError."""
    artifact = Artifact.open(settings.guard)
    text = Text(artifact)
    contenders = _installed(find(settings.scorers), progress)
    about = machine.describe(settings.threads)
    threads: int = about["threads"]
    common = about | {
        "aegis_edge": __version__,
        "revision": _revision(),
        "guard": artifact.manifest["files"]["model.safetensors"]["sha256"][:16],
        "scheme": artifact.manifest["quantization"]["scheme"],
        "versions": machine.versions("numpy", "tokenizers", *_packages(contenders)),
        "rounds": settings.rounds,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    with progress.steps("preparing", 1 + len(contenders)) as done:
        folder = parent.parent_folder(artifact, settings.base, settings.adapter, settings.work)
        source = Source(settings.guard, folder, settings.work)
        done()
        for contender in contenders:
            contender.prepare(source)
            done()
    with progress.steps("load time and memory", len(contenders)) as done:
        rows = [_cost(contender, source, threads, done) for contender in contenders]
    scorers = {contender.name: contender.load(source, threads) for contender in contenders}
    rows += _fidelity(text, scorers, source, settings, progress)
    peaks = limits.Peaks(threads)
    rows += _timing(text, scorers, settings, progress, peaks)
    rows += length.rows([row for row in rows if row["kind"] == "time"])
    rows += _stages(text, scorers, settings, progress)
    rows += _bindings(text, scorers, settings, progress)
    best = peaks.best()
    abouts = {contender.name: contender.about for contender in contenders}
    return [best | row | {"about": abouts[row["scorer"]]} | common for row in rows]


def _installed(contenders: Sequence[Contender], progress: Progress) -> list[Contender]:
    found = []
    for contender in contenders:
        absent = contender.missing()
        if absent:
            progress.say(f"{contender.name} is left out: {absent} is not installed ({contender.install})")
        else:
            found.append(contender)
    if not found:
        raise ScorerError("none of the scorers is installed", hint="pip install 'aegis-edge[bench]'")
    return found


def _packages(contenders: Sequence[Contender]) -> list[str]:
    return sorted({package for contender in contenders for package in contender.packages})


def _cost(contender: Contender, source: Source, threads: int, done: Callable[[], None]) -> Row:
    row = {"kind": "cost", "scorer": contender.name, **isolated.measure(contender, source, threads)}
    done()
    return row


def _fidelity(
    text: Text, scorers: dict[str, Scorer], source: Source, settings: Settings, progress: Progress
) -> list[Row]:
    """Before anything is timed: a fast wrong verdict is worth nothing."""
    compared = (
        prompts.read(settings.prompts, settings.compared)
        if settings.prompts
        else prompts.sample(settings.compared)
    )
    batches: list[list[Conversation]] = [list(compared[i : i + 32]) for i in range(0, len(compared), 32)]
    rated: dict[str, list[Rating]] = {}
    with progress.steps("comparing verdicts", len(batches) * (1 + len(scorers))) as done:
        for name, scorer in {"": parent.reference(source), **scorers}.items():
            rated[name] = []
            for batch in batches:
                rated[name] += fidelity.ratings(text, scorer, batch)
                done()
    text_of = settings.prompts.name if settings.prompts else "generated"
    return [
        {"kind": "fidelity", "scorer": name, "prompts": text_of}
        | fidelity.compare(rated[""], rated[name]).to_json()
        for name in scorers
    ]


def _timing(
    text: Text,
    scorers: dict[str, Scorer],
    settings: Settings,
    progress: Progress,
    peaks: limits.Peaks,
) -> list[Row]:
    """Scorers take turns, and so does the machine's peak: its clock changes from minute to minute, and under
    load."""
    todo = scenarios(text.encoder, text.plan, settings.lengths, settings.batch)
    rows: list[Row] = []
    with progress.steps("timing", len(todo) * settings.rounds * (1 + len(scorers))) as done:
        for scenario in todo:
            series = [
                Series(name, _call(text, scorer, scenario), settings.budget)
                for name, scorer in scorers.items()
            ]
            before = len(peaks.found)
            interleave([peaks, *series], settings.rounds, done)
            of_now = peaks.median(before)
            rows += [_timing_row(scenario, one) | of_now for one in series]
            for row in rows[-len(series) :]:
                _add_limit(row, text, of_now)
    return rows


def _call(text: Text, scorer: Scorer, scenario: Scenario) -> Callable[[], object]:
    guard = text.guard(scorer, NEVER, scenario.root)
    if len(scenario.texts) == 1:
        return lambda: guard.check(scenario.texts[0])
    return lambda: guard.check_many(scenario.texts)


def _timing_row(scenario: Scenario, series: Series) -> Row:
    samples = series.samples
    milliseconds = {f"p{share}": 1e3 * percentile(samples, share / 100) for share in (50, 90, 99)}
    checks = len(scenario.texts)
    return {
        "kind": "time",
        "scorer": series.name,
        "group": scenario.group,
        "scenario": scenario.name,
        "stage": "end to end",
        "warm": True,
        "checks": checks,
        "tokens": scenario.tokens,
        "policy_tokens": scenario.policy,
        "samples": len(samples),
        **{f"{name}_ms": round(value, 4) for name, value in milliseconds.items()},
        "checks_per_second": round(1e3 * checks / milliseconds["p50"], 2),
    }


def _add_limit(row: Row, text: Text, peaks: dict[str, float]) -> None:
    model, checks = text.model, row["checks"]
    # A prompt and the closing marker at which it is read.
    work = limits.operations(model, row["tokens"] + checks, checks)
    least = limits.seconds(work, limits.weight_bytes(model, "w8a8"), peaks)
    row["limit_ms"] = round(1e3 * least, 4)
    row["share_of_peak"] = round(work / peaks["int8_peak"] / (row["p50_ms"] / 1e3), 4)


def _stages(text: Text, scorers: dict[str, Scorer], settings: Settings, progress: Progress) -> list[Row]:
    rows = []
    lengths = [n for n in STAGE_LENGTHS if n in settings.lengths] or settings.lengths[:1]
    with progress.steps("stages", len(lengths) * len(scorers)) as done:
        for tokens in lengths:
            prompt = prompts.of_length(text.encoder, tokens)
            for name, scorer in scorers.items():
                found = stages(text, scorer, prompt, settings.rounds)
                rows += [
                    {
                        "kind": "stage",
                        "scorer": name,
                        "stage": stage,
                        "tokens": tokens,
                        "p50_ms": round(1e3 * s, 4),
                    }
                    for stage, s in found.items()
                ]
                done()
    return rows


def _bindings(text: Text, scorers: dict[str, Scorer], settings: Settings, progress: Progress) -> list[Row]:
    """Of the shortest check; only where the compiled runtime takes part."""
    from aegis_edge.bench import binding
    from aegis_edge.scoring.cpu import CpuScorer

    found = []
    for name, scorer in scorers.items():
        if isinstance(scorer, CpuScorer):
            calls, absent = binding.bindings(scorer, settings.work)
            if absent:
                progress.say(f"the binding through pybind11 is left out: {absent}")
            ids = text.encoder.encode(prompts.of_length(text.encoder, min(settings.lengths)))
            rows = binding.measure(calls, ids, settings.rounds)
            found += [{"scorer": name, **row} for row in rows]
    return found


def _revision() -> str | None:
    """The git revision of the sources, "+" where they differ from it; None where they are no checkout."""
    folder = Path(__file__).resolve().parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None
