"""Votes in the journal as they come, each asked for once, and no exception lost."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from label_server import make_row, read_lines

from aegis_edge.label import casting
from aegis_edge.label.casting import cast
from aegis_edge.label.errors import JournalError
from aegis_edge.label.journal import HEADER, Journal, key_of
from aegis_edge.label.rows import Row
from aegis_edge.label.votes import Abstention, Opinion, Vote

ROWS = [make_row(number) for number in range(12)]
FAILED = Abstention("http", "HTTP status 500")


class Scripted:
    """Says what it is told for each row's number, and remembers what it was asked."""

    give_up_after = 0

    def __init__(
        self, name: str, say: object = Vote("safe"), concurrency: int = 2, digest: str = "d"
    ) -> None:
        self.name, self.digest, self.concurrency = name, digest, concurrency
        self.asked: list[str] = []
        self._say = say

    def judge(self, row: Row, stop: threading.Event) -> Opinion:
        self.asked.append(row.id)
        return self._say(row) if callable(self._say) else self._say  # type: ignore[return-value]


def test_every_judge_is_asked_about_every_row_once(tmp_path: Path) -> None:
    judges = [
        Scripted("a"),
        Scripted("b", Vote("unsafe", ("Threat",), ("Other thing",))),
        Scripted("c", FAILED),
    ]
    counted: list[int] = []
    with Journal(tmp_path / "votes") as journal:
        done = cast(judges, [*ROWS, ROWS[0]], journal, counted.append)
    assert all(sorted(judge.asked) == sorted(row.id for row in ROWS) for judge in judges)
    assert sum(counted) == 36
    for row in ROWS:
        assert done.opinions[row.key] == {
            "a": Vote("safe"),
            "b": Vote("unsafe", ("Threat",), ("Other thing",)),
            "c": FAILED,
        }
    header, *lines = read_lines(tmp_path / "votes")
    assert header == {"aegis_edge_votes": 1} and len(lines) == 36
    assert {frozenset(line) for line in lines} == {
        frozenset({"id", "judge", "hash", "label", "categories", "unknown"}),
        frozenset({"id", "judge", "hash", "cause", "reason"}),
    }


def test_votes_are_kept_and_abstentions_tried_again(tmp_path: Path) -> None:
    def half(row: Row) -> Opinion:
        return FAILED if int(row.id.split("-")[1]) % 2 else Vote("unsafe", ("Malware",))

    with Journal(tmp_path / "votes") as journal:
        cast([Scripted("a", half)], ROWS, journal)
    again = Scripted("a", Vote("safe"))
    with Journal(tmp_path / "votes") as journal:
        done = cast([again], ROWS, journal)
    odd = [row for row in ROWS if int(row.id.split("-")[1]) % 2]
    assert sorted(again.asked) == sorted(row.id for row in odd) and done.resumed == {"a": 6}
    for row in ROWS:
        expected = Vote("safe") if row in odd else Vote("unsafe", ("Malware",))
        assert done.opinions[row.key]["a"] == expected


@pytest.mark.parametrize("change", ["text", "judge", "settings"])
def test_a_changed_question_is_asked_anew(change: str, tmp_path: Path) -> None:
    with Journal(tmp_path / "votes") as journal:
        cast([Scripted("a")], ROWS, journal)
    judge = Scripted("b" if change == "judge" else "a", digest="e" if change == "settings" else "d")
    rows = [make_row(number, prompt_label="unsafe") for number in range(12)] if change == "text" else ROWS
    with Journal(tmp_path / "votes") as journal:
        cast([judge], rows, journal)
    assert len(judge.asked) == 12


def test_an_exception_in_a_thread_is_raised_and_votes_till_then_are_kept(tmp_path: Path) -> None:
    def fail(row: Row) -> Opinion:
        if row.id == "row-5":
            raise ZeroDivisionError("a defect")
        return Vote("safe")

    with Journal(tmp_path / "votes") as journal, pytest.raises(ZeroDivisionError, match="a defect"):
        cast([Scripted("a", fail, concurrency=1)], ROWS, journal)
    with Journal(tmp_path / "votes") as journal:
        assert [key[0] for key in journal.votes] == [f"row-{n}" for n in range(5)]


def test_exceptions_of_several_threads_are_all_told(tmp_path: Path) -> None:
    meet = threading.Barrier(3)

    def fail(row: Row) -> Opinion:
        meet.wait(5)
        raise ValueError(f"defect at {row.id}")

    with Journal(tmp_path / "votes") as journal, pytest.raises(ValueError) as caught:
        cast([Scripted("a", fail, concurrency=3)], ROWS[:3], journal)
    told = [str(caught.value), *caught.value.__notes__]
    assert all(any(f"defect at {row.id}" in line for line in told) for row in ROWS[:3])


def test_an_interrupt_stops_the_threads_and_keeps_what_arrives(tmp_path: Path) -> None:
    def slow(row: Row) -> Opinion:
        time.sleep(0.05)
        return Vote("safe")

    def interrupt(count: int) -> None:
        if count:
            raise KeyboardInterrupt

    judge = Scripted("a", slow, concurrency=2)
    with Journal(tmp_path / "votes") as journal, pytest.raises(KeyboardInterrupt):
        cast([judge], ROWS, journal, interrupt)
    asked = len(judge.asked)
    assert asked < len(ROWS)
    with Journal(tmp_path / "votes") as journal:
        assert len(journal.votes) == asked
    time.sleep(0.2)
    assert len(judge.asked) == asked


def test_a_thread_that_does_not_end_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(casting, "PATIENCE", 0.2)
    release = threading.Event()

    def stuck(row: Row) -> Opinion:
        release.wait(30)
        return Vote("safe")

    def fail(row: Row) -> Opinion:
        raise ValueError("a defect")

    begun = time.monotonic()
    with Journal(tmp_path / "votes") as journal, pytest.raises(ValueError, match="a defect"):
        cast([Scripted("a", stuck), Scripted("b", fail)], ROWS, journal)
    assert time.monotonic() - begun < 10
    release.set()


def test_a_judge_out_of_reach_is_given_up_and_the_others_go_on(tmp_path: Path) -> None:
    gone = Scripted("gone", FAILED, concurrency=1)
    gone.give_up_after = 3
    with Journal(tmp_path / "votes") as journal:
        done = cast([gone, Scripted("a")], ROWS, journal)
    assert len(gone.asked) == 3
    assert done.given_up == {"gone": "3 rows in a row failed, the last: HTTP status 500"}
    for row in ROWS:
        opinions = done.opinions[row.key]
        assert opinions["a"] == Vote("safe") and isinstance(opinions["gone"], Abstention)


def test_only_failures_in_a_row_count_and_nonsense_does_not(tmp_path: Path) -> None:
    def mixed(row: Row) -> Opinion:
        number = int(row.id.split("-")[1])
        return FAILED if number % 3 else Vote("safe") if number % 2 else Abstention("nonsense", "x")

    judge = Scripted("a", mixed, concurrency=1)
    judge.give_up_after = 3
    with Journal(tmp_path / "votes") as journal:
        done = cast([judge], ROWS, journal)
    assert not done.given_up and len(judge.asked) == len(ROWS)


def entries(count: int) -> list[tuple[tuple[str, str, str], Opinion]]:
    return [(key_of(row, "a", "d"), Vote("unsafe", ("Threat",))) for row in ROWS[:count]]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(1, 400))
def test_a_journal_cut_anywhere_opens_with_its_whole_lines(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "votes"
    path.unlink(missing_ok=True)
    with Journal(path) as journal:
        journal.append(entries(2))
    data = path.read_bytes()
    path.write_bytes(data[: max(0, len(data) - cut)])
    whole = data[: max(0, len(data) - cut)].count(b"\n") - 1
    with Journal(path) as journal:
        assert len(journal.votes) == max(0, whole)
        journal.append(entries(3)[2:])
    with Journal(path) as journal:
        assert len(journal.votes) == max(0, whole) + 1
    assert path.read_bytes().startswith(HEADER)


def test_blocks_that_never_reached_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "votes"
    with Journal(path) as journal:
        journal.append(entries(2))
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0" * 100 + b"\n")
    with Journal(path) as journal:
        assert len(journal.votes) == 2
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "damage",
    [
        "{",
        "[]",
        "{}",
        '{"id": "a", "judge": "b", "hash": 1, "label": "safe", "categories": [], "unknown": []}',
        '{"id": "a", "judge": "b", "hash": "c", "label": "maybe", "categories": [], "unknown": []}',
        '{"id": "a", "judge": "b", "hash": "c", "label": "safe", "categories": [1], "unknown": []}',
        '{"id": "a", "judge": "b", "hash": "c", "label": "safe"}',
    ],
)
def test_damage_in_the_middle_is_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "votes"
    with Journal(path) as journal:
        journal.append(entries(2))
    first, second, third = path.read_text().splitlines()
    text = "\n".join([first, second, damage, third, ""])
    path.write_text(text)
    with pytest.raises(JournalError, match=r"votes:3: no line of a journal") as caught:
        Journal(path)
    assert "asked again" in (caught.value.hint or "") and path.read_text() == text


@pytest.mark.parametrize("content", ['{"id": "x"}\n', "notes without a line end", "\n"])
def test_a_file_of_something_else_is_not_touched(content: str, tmp_path: Path) -> None:
    path = tmp_path / "votes"
    path.write_text(content)
    with pytest.raises(JournalError, match="is no journal of votes"):
        Journal(path)
    assert path.read_text() == content


def test_a_journal_that_can_not_be_opened_or_written(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="can not be opened"):
        Journal(tmp_path / "nowhere" / "votes")
    full = Path("/dev/full")
    if full.exists():
        journal = Journal(tmp_path / "votes")
        journal._file.close()
        journal._file = full.open("wb")
        with pytest.raises(JournalError, match="can not be written: No space left on device"):
            journal.append(entries(1))


@pytest.mark.skipif(sys.platform == "win32", reason="no lock there")
def test_two_runs_do_not_share_a_journal(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from aegis_edge.label.journal import Journal\n"
        "Journal(Path(sys.argv[1]))"
    )
    with Journal(tmp_path / "votes"):
        other = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "votes")], capture_output=True, text=True
        )
    assert "JournalError" in other.stderr and "another run is using it" in other.stderr
    with Journal(tmp_path / "votes"):
        pass


def test_an_opinion_is_on_the_disk_before_it_is_counted(tmp_path: Path) -> None:
    path, seen = tmp_path / "votes", []

    def done(count: int) -> None:
        seen.append(count)
        assert len(path.read_text().splitlines()) >= 1 + sum(seen)

    with Journal(path) as journal:
        cast([Scripted("a")], ROWS, journal, done)
    assert sum(seen) == 12 and json.loads(path.read_text().splitlines()[0])
