"""`aegis-edge label` and `aegis-edge label merge`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aegis_edge.cli.output import aligned, note, print_rows, progress
from aegis_edge.label.merge import Merged
from aegis_edge.label.merge import merge as merge_files
from aegis_edge.label.pipeline import Settings, run

SHOWN = 20  # bad lines that are named for a person; --json has them all


def label(settings: Settings, *, as_json: bool) -> None:
    """Run the jury, print its summary. Raises LabelError."""
    summary = run(settings, _bar)
    for bad in summary["bad_rows"][:SHOWN]:
        note(f"{settings.data.name}:{bad['line']}: left out: {bad['error']}")
    if len(summary["bad_rows"]) > SHOWN:
        note(f"and {len(summary['bad_rows']) - SHOWN} more lines left out")
    for name, judge in summary["judges"].items():
        if judge["given_up"]:
            note(f"judge {name} was asked no more: {judge['given_up']}; --force asks it again")
    if as_json:
        print(json.dumps(summary, indent=2))
    else:
        _print(summary)


def merge(labelled: Path, queue: Path, out: Path, *, force: bool, as_json: bool) -> None:
    """Merge a person's answers, print what was merged. Raises LabelError."""
    done = merge_files(labelled, queue, out, force=force)
    if as_json:
        print(json.dumps(asdict(done)))
    else:
        print(f"{out}: {_merged(done)}")


@contextmanager
def _bar(total: int) -> Iterator[Callable[[int], None]]:
    with progress() as bar:
        task = bar.add_task("votes", total=total)
        yield lambda count: bar.advance(task, count)


def _print(summary: dict[str, Any]) -> None:
    agreement = summary["agreement"]
    rows = {
        "rows": f"{summary['rows']}, {len(summary['bad_rows'])} left out as unreadable",
        "not judged": _listed(summary["not_judged"]),
        "outcomes": f"{_listed(summary['outcomes'])} (quorum: {summary['quorum']} votes)",
        "labels": _listed(summary["labels"]),
        "agreement": f"Fleiss' kappa {_figure(agreement['fleiss_kappa'])}, Krippendorff's alpha "
        f"{_figure(agreement['krippendorff_alpha'])}, on {agreement['rows']} rows with two votes or more",
        "queue": f"{summary['queue']['rows']} rows for a person in {summary['queue']['path']}",
        "journal": summary["journal"],
        "written": summary["out"],
    }
    print_rows(rows.items())
    if summary["judges"]:
        print()
        table = [("judge", "safe", "unsafe", "abstained", "resumed", "with the jury")]
        for name, judge in summary["judges"].items():
            votes, agreed = judge["votes"], judge["agreed"]
            table.append(
                (
                    name,
                    str(votes.get("safe", 0)),
                    str(votes.get("unsafe", 0)),
                    str(sum(judge["abstentions"].values())),
                    str(judge["resumed"]),
                    f"{agreed['rows'] / agreed['of']:.1%}" if agreed["of"] else "-",
                )
            )
        print("\n".join(aligned(table)))
        sys.stdout.flush()
    for name, judge in summary["judges"].items():
        if judge["abstentions"]:
            note(f"judge {name} abstained: {_listed(judge['abstentions'])}; --force asks it again")


def _merged(done: Merged) -> str:
    return (
        f"{done.merged} of {done.rows} rows labelled by a person ({done.against_jury} against the jury), "
        f"{done.unchanged} had that label already, {done.open} lines of the queue have no answer yet"
    )


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"


def _figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
