"""`aegis-edge evaluate`: a guard against labelled records, or two guards against each other."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from aegis_edge import __version__
from aegis_edge.cli.data import tell
from aegis_edge.cli.output import extra, note, progress
from aegis_edge.cli.tables import print_tables
from aegis_edge.cli.writing import refuse_existing, write
from aegis_edge.data.canttalk import Dialogue
from aegis_edge.data.files import Row, Tally, holds_dialogues, read_dialogues, read_files
from aegis_edge.data.records import DataError, Record
from aegis_edge.guard import find_guard

with extra("evaluate", "the evaluation"):
    from aegis_edge.evaluate import following, page, tables, topics
    from aegis_edge.evaluate.compare import compare
    from aegis_edge.evaluate.judge import Answer, Judge, Long, answers
    from aegis_edge.evaluate.summary import finite, summarise

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """What to evaluate, and how; the command line's names."""

    guard: Path | None
    compare: Path | None
    scorer: str
    compare_scorer: str | None
    threads: int | None
    limit: int | None
    seed: int
    long: Long
    window: int | None
    policy_following: bool
    topic_following: bool
    skip_bad: bool


def evaluate(
    files: Sequence[Path], options: Options, *, html: Path | None, force: bool, as_json: bool
) -> None:
    """Judge the records and dialogues of `files` and print how well. Raises AegisError."""
    refuse_existing(html, force=force)
    rows, dialogues, tallies = _read(files, options.skip_bad)
    tell(tallies)
    records = [row.record for row in rows]
    labelled = [r for r in records if r.unsafe is not None or r.response_unsafe is not None]
    if not labelled and not dialogues:
        raise DataError("no record has a label to compare a verdict with")
    if len(labelled) != len(records):
        note(f"{len(records) - len(labelled)} records without a label left out")
    chosen = draw(labelled, options.limit, options.seed)
    talks = draw(dialogues, options.limit, options.seed)
    about = _about(tallies, len(labelled), len(chosen), options) | {"dialogues": len(talks)}
    report = _report(chosen, talks, options) | {"data": about}
    if html is not None:
        write(html, page.page(report).encode())
    if as_json:
        print(json.dumps(finite(report), indent=2))
    else:
        print_tables(tables.tables(report))
    if html is not None:
        note(f"report: {html}")


def _read(files: Sequence[Path], skip_bad: bool) -> tuple[list[Row], list[Dialogue], list[Tally]]:
    """The rows of the files that hold records, the dialogues of the others, what became of every row."""
    apart = [path for path in files if holds_dialogues(path)]
    others = [path for path in files if path not in apart]
    rows, tallies = read_files(others, skip_bad=skip_bad) if others else ([], [])
    dialogues: list[Dialogue] = []
    for path in apart:
        tallies.append(Tally(path.name))
        dialogues += read_dialogues(path, skip_bad=skip_bad, tally=tallies[-1])
    return [row for of in rows for row in of], dialogues, tallies


def draw(records: Sequence[T], limit: int | None, seed: int) -> list[T]:
    """At most `limit` records at random, in their order: files are often sorted by what they hold."""
    if limit is None or limit >= len(records):
        return list(records)
    numbers = sorted(random.Random(seed).sample(range(len(records)), limit))
    return [records[number] for number in numbers]


def _report(records: Sequence[Record], dialogues: Sequence[Dialogue], options: Options) -> dict[str, Any]:
    folders = [(options.guard or find_guard(), options.scorer)]
    if options.compare is not None:
        folders.append((options.compare, options.compare_scorer or options.scorer))
    guards: list[dict[str, Any]] = []
    found: list[list[Answer | None]] = []
    for folder, scorer in folders:
        judge = Judge.open(folder, scorer, options.threads, options.window)
        if guards and judge.name == guards[0]["name"]:
            judge.name += " (2)"
        found.append(_answers(judge, records, options))
        guards.append(judge.about() | summarise(records, found[-1], judge.policy.thresholds))
        _warn(guards[-1], options.long)
        if options.policy_following:
            guards[-1]["policy_following"] = _following(judge, records, found[-1], options)
        if options.topic_following:
            guards[-1]["topic_following"] = _topics(judge, options.seed)
        if dialogues:
            guards[-1]["topic_dialogues"] = _dialogues(judge, dialogues, options)
    comparison = compare(records, found[0], found[1], options.seed) if len(found) == 2 else None
    return {"guards": guards, "comparison": comparison}


def _answers(judge: Judge, records: Sequence[Record], options: Options) -> list[Answer | None]:
    with progress() as bar:
        task = bar.add_task(judge.name, total=len(records))
        return answers(judge.under(), records, options.long, lambda count: bar.advance(task, count))


def _following(
    judge: Judge, records: Sequence[Record], found: Sequence[Answer | None], options: Options
) -> dict[str, Any]:
    planned = following.plan(records, found, judge.policy)
    with progress() as bar:
        task = bar.add_task(f"{judge.name}, other policies", total=following.planned_checks(planned))
        return following.measure(
            judge.under,
            judge.policy,
            records,
            found,
            options.long,
            done=lambda count: bar.advance(task, count),
        )


def _topics(judge: Judge, seed: int) -> dict[str, Any]:
    with progress() as bar:
        task = bar.add_task(f"{judge.name}, policies about topics", total=topics.planned(seed=seed))
        return topics.measure(judge.under, seed=seed, done=lambda count: bar.advance(task, count))


def _dialogues(judge: Judge, dialogues: Sequence[Dialogue], options: Options) -> dict[str, Any]:
    total = sum(len(of.turns) + len(of.distractors) for of in dialogues)
    with progress() as bar:
        task = bar.add_task(f"{judge.name}, published dialogues", total=total)
        found = topics.measure_dialogues(
            judge.under, dialogues, options.long, lambda count: bar.advance(task, count)
        )
    if found["too_long"]:
        note(f"{judge.name}: {found['too_long']} texts of dialogues too long for the context, left out")
    return found


def _warn(guard: dict[str, Any], long: Long) -> None:
    for turn, coverage in guard["coverage"].items():
        if coverage["too_long"]:
            hint = "" if long == "cut" else "; --long cut judges their beginning"
            note(f"{guard['name']}: {coverage['too_long']} {turn}s too long for the context, left out{hint}")
        if coverage["cut"]:
            note(f"{guard['name']}: {coverage['cut']} {turn}s judged by a beginning alone")


def _about(tallies: Sequence[Tally], labelled: int, drawn: int, options: Options) -> dict[str, Any]:
    return {
        "files": [tally.to_json() for tally in tallies],
        "records": labelled,
        "drawn": drawn,
        "seed": options.seed,
        "long": options.long,
        "window": options.window,
        "version": __version__,
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }
