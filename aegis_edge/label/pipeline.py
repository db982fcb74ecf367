"""A run: rows in, votes cast, labelled rows and a queue of disagreements out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aegis_edge.label.agreement import fleiss_kappa, krippendorff_alpha
from aegis_edge.label.casting import Casting, Judge, cast
from aegis_edge.label.disagreement import entry, read_queue, write_queue
from aegis_edge.label.endpoint import EndpointJudge
from aegis_edge.label.errors import LabelError
from aegis_edge.label.files import same_file, write_json_lines
from aegis_edge.label.journal import Journal
from aegis_edge.label.jury import GuardSettings, JurySettings, read_jury
from aegis_edge.label.local import GuardJudge
from aegis_edge.label.rows import HUMAN, JURY, Row, Rows, add_categories, read_rows
from aegis_edge.label.votes import Abstention, Outcome, Vote, majority


@dataclass(frozen=True)
class Settings:
    """What to label, and how.

    data, jury    rows, and the TOML file of the judges
    out           labelled rows; beside it, unless named: the queue, and the journal of votes
    split         queue rows with votes for both labels as well, not only those without a label
    relabel       vote on rows that a jury labelled before, too
    skip_bad      leave unreadable rows out instead of refusing the file
    force         replace `out`
    """

    data: Path
    jury: Path
    out: Path
    queue: Path | None = None
    journal: Path | None = None
    split: bool = False
    relabel: bool = False
    skip_bad: bool = False
    force: bool = False

    @property
    def queue_path(self) -> Path:
        """Where disagreements go."""
        return self.queue or _beside(self.out, "queue")

    @property
    def journal_path(self) -> Path:
        """Where votes are kept."""
        return self.journal or _beside(self.out, "votes")


# Told how many opinions there will be; gives the function that is told of each.
Progress = Callable[[int], AbstractContextManager[Callable[[int], None]]]


def run(
    settings: Settings,
    progress: Progress = lambda _: nullcontext(lambda _: None),
    environment: Mapping[str, str] = os.environ,
) -> dict[str, Any]:
    """Label, write, and return a summary (JSON-ready). Raises LabelError and its subclasses.

    Nothing is written but the journal unless all rows have been put before all judges that can be reached.
    """
    _check_paths(settings)
    rows = read_rows(settings.data, skip_bad=settings.skip_bad)
    if not rows.good:
        raise LabelError(f"{settings.data}: there are no rows in it")
    if settings.out.exists():
        _check_loss(settings.out, rows)
    if settings.queue_path.exists():
        read_queue(
            settings.queue_path
        )  # a damaged one is told of now: it will be written anew, with its answers
    jury = read_jury(settings.jury)
    pending = [row for row in rows.good if _standing(row, settings.relabel) is None]
    with Journal(settings.journal_path) as journal:
        judges = build_judges(jury, environment) if pending else []
        with progress(len({row.key for row in pending}) * len(judges)) as done:
            casting = cast(judges, pending, journal, done)
    _check_any_vote(casting)
    outcomes = {key: majority(opinions, jury.quorum) for key, opinions in casting.opinions.items()}
    queued = [
        entry(row, outcomes[row.key], casting.opinions[row.key])
        for row in {row.key: row for row in pending}.values()
        if outcomes[row.key].label is None or (settings.split and outcomes[row.key].how == "majority")
    ]
    result = [_labelled(row, outcomes, settings.relabel) for row in rows.good]
    lines = write_queue(settings.queue_path, queued)
    # Last: where it is, the run was whole.
    write_json_lines(settings.out, (row.to_json() for row in result))
    return {
        "rows": len(rows.good),
        "bad_rows": [{"line": number, "error": what} for number, what in rows.bad],
        "not_judged": _count(why for row in rows.good if (why := _standing(row, settings.relabel))),
        "outcomes": _count(outcomes[row.key].how for row in pending),
        "labels": _count(outcomes[row.key].label for row in pending),
        "judges": {judge.name: _about(judge, casting, outcomes) for judge in judges},
        "agreement": _agreement(casting),
        "quorum": jury.quorum,
        "queue": {"path": str(settings.queue_path), "rows": lines},
        "journal": str(settings.journal_path),
        "out": str(settings.out),
    }


def build_judges(jury: JurySettings, environment: Mapping[str, str] = os.environ) -> list[Judge]:
    """The judges of a jury, guards loaded. Raises JuryError."""
    return [
        GuardJudge.load(settings)
        if isinstance(settings, GuardSettings)
        else EndpointJudge(settings, environment)
        for settings in jury.judges
    ]


def _standing(row: Row, relabel: bool) -> str | None:
    """Why a row is not put before the jury; None where it is."""
    if row.response is None or not row.response.strip():
        return "no response"
    if row.response_label is not None and not (relabel and row.response_label_source == JURY):
        return f"labelled: {row.response_label_source or 'source unknown'}"
    return "redacted prompt" if row.redacted else None


def _labelled(row: Row, outcomes: Mapping[tuple[str, str], Outcome], relabel: bool) -> Row:
    if _standing(row, relabel) is not None:
        return row
    outcome = outcomes[row.key]
    if outcome.label is None:
        # With `relabel` the former jury's label must not stay as if this one had confirmed it.
        return row.without_label()
    return row.with_label(outcome.label, JURY, add_categories(row.violated_categories, outcome.categories))


def _check_paths(settings: Settings) -> None:
    written = {"--out": settings.out, "--queue": settings.queue_path, "--journal": settings.journal_path}
    named = {"--data": settings.data, "--jury": settings.jury, **written}
    for option, path in written.items():
        if not path.parent.is_dir():  # told now, not when the votes have been paid for
            raise LabelError(f"{option} {path}: its folder does not exist")
        if path.is_dir():
            raise LabelError(f"{option} {path}: is a folder")
        for other, its in named.items():
            if other != option and same_file(path, its):
                raise LabelError(f"{option} {path}: is the file of {other}")
    if settings.out.exists() and not settings.force:
        raise LabelError(
            f"{settings.out}: exists already", hint="--force replaces it; votes that were cast are kept"
        )


def _check_loss(out: Path, rows: Rows) -> None:
    """A person's labels, once merged into `out`, must not be lost to a later run."""
    kept = {row.key for row in rows.good if row.response_label_source == HUMAN}
    lost = sum(
        row.response_label_source == HUMAN and row.key not in kept
        for row in read_rows(out, skip_bad=True).good
    )
    if lost:
        raise LabelError(
            f"{out}: holds human labels of {lost} rows that this run would lose",
            hint="take it as --data, or write to another file",
        )


def _check_any_vote(casting: Casting) -> None:
    opinions = [opinion for votes in casting.opinions.values() for opinion in votes.values()]
    failures = [opinion.reason for opinion in opinions if isinstance(opinion, Abstention)]
    if opinions and len(failures) == len(opinions):
        raise LabelError(
            "no judge cast a vote on any row; nothing was written", hint=f"the first said: {failures[0]}"
        )


def _about(judge: Judge, casting: Casting, outcomes: Mapping[tuple[str, str], Outcome]) -> dict[str, Any]:
    """Counts of one judge. `agreed`: votes that are the jury's label, of those where there is one."""
    opinions = [(outcomes[key].label, votes[judge.name]) for key, votes in casting.opinions.items()]
    votes = [(label, opinion) for label, opinion in opinions if isinstance(opinion, Vote)]
    settled = [vote.label == label for label, vote in votes if label is not None]
    return {
        "votes": _count(vote.label for _, vote in votes),
        "resumed": casting.resumed[judge.name],
        "abstentions": _count(opinion.cause for _, opinion in opinions if isinstance(opinion, Abstention)),
        "given_up": casting.given_up.get(judge.name),
        "agreed": {"rows": sum(settled), "of": len(settled)},
        "unknown_categories": _count(name for _, vote in votes for name in vote.unknown),
    }


def _agreement(casting: Casting) -> dict[str, Any]:
    counts: list[Counter[str]] = [
        Counter(opinion.label for opinion in votes.values() if isinstance(opinion, Vote))
        for votes in casting.opinions.values()
    ]
    return {
        "rows": sum(row.total() > 1 for row in counts),
        "fleiss_kappa": fleiss_kappa(counts),
        "krippendorff_alpha": krippendorff_alpha(counts),
    }


def _count(items: Iterable[str | None]) -> dict[str, int]:
    return dict(Counter("none" if item is None else item for item in items).most_common())


def _beside(out: Path, what: str) -> Path:
    stem = out.name.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".json")
    return out.with_name(f"{stem}.{what}.jsonl")
