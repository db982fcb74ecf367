"""The queue of disagreements, what a person writes into it, and how it comes back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from label_server import make_row, read_lines, write_rows

from aegis_edge.label.disagreement import entry, read_queue, write_queue
from aegis_edge.label.errors import LabelError, QueueError, RowError
from aegis_edge.label.merge import Merged, merge
from aegis_edge.label.rows import Row, read_rows
from aegis_edge.label.votes import Abstention, Outcome, Vote

OPINIONS = {"a": Vote("unsafe", ("Threat",)), "b": Abstention("http", "HTTP status 500"), "c": Vote("safe")}
TIE = Outcome(None, "tie")


def queue_of(tmp_path: Path, rows: list[Row], **answers: dict[str, Any]) -> Path:
    """A queue of `rows`, answered by id: row_2={"human_label": ...}."""
    lines = [{**entry(row, TIE, OPINIONS), **answers.get(row.id.replace("-", "_"), {})} for row in rows]
    path = tmp_path / "queue.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_line_of_the_queue() -> None:
    row = make_row(violated_categories="Profanity")
    assert entry(row, TIE, OPINIONS) == {
        "id": "row-1",
        "hash": row.digest,
        "why": "tie",
        "jury_label": None,
        "prompt": "Prompt number 1.",
        "prompt_label": "safe",
        "response": "Response number 1.",
        "violated_categories": "Profanity",
        "votes": {
            "a": {"label": "unsafe", "categories": ["Threat"]},
            "b": {"abstained": "HTTP status 500"},
            "c": {"label": "safe", "categories": []},
        },
        "human_label": None,
        "human_categories": [],
    }


def test_answers_come_back_apart_from_the_jurys(tmp_path: Path) -> None:
    rows = [make_row(number) for number in range(6)]
    rows[1] = make_row(1, violated_categories="Profanity")
    # What the jury made of rows 2 to 4; all of the first five are queued.
    jury = {"response_label": "unsafe", "response_label_source": "llm_jury", "violated_categories": "Threat"}
    labelled = [
        row if number not in (2, 3, 4) else make_row(number, **jury) for number, row in enumerate(rows)
    ]
    queue = queue_of(
        tmp_path,
        rows[:5],
        row_0={"human_label": "safe"},
        row_1={"human_label": "unsafe", "human_categories": ["S17", "profanity"]},
        row_2={"human_label": "safe"},
        row_3={"human_label": "unsafe"},
    )
    source = write_rows(tmp_path / "labelled.jsonl", labelled)
    done = merge(source, queue, tmp_path / "out.jsonl")
    assert done == Merged(rows=6, merged=4, against_jury=1, unchanged=0, open=1)
    human = {"response_label_source": "human"}
    assert read_rows(tmp_path / "out.jsonl").good == (
        make_row(0, response_label="safe", **human),
        make_row(1, response_label="unsafe", violated_categories="Profanity, Malware", **human),
        make_row(2, response_label="safe", violated_categories="", **human),
        make_row(3, response_label="unsafe", violated_categories="Threat", **human),
        labelled[4],
        labelled[5],
    )
    assert read_rows(source).good == tuple(labelled)
    again = merge(tmp_path / "out.jsonl", queue, tmp_path / "out.jsonl", force=True)
    assert again == Merged(rows=6, merged=0, against_jury=0, unchanged=4, open=1)


def test_a_human_label_is_never_overwritten(tmp_path: Path) -> None:
    labelled = write_rows(
        tmp_path / "labelled.jsonl", [make_row(response_label="safe", response_label_source="human")]
    )
    before = labelled.read_bytes()
    queue = queue_of(tmp_path, [make_row()], row_1={"human_label": "unsafe"})
    with pytest.raises(
        QueueError,
        match=r"queue.jsonl:1: row 'row-1' has the human label 'safe' already, the answer is 'unsafe'",
    ) as caught:
        merge(labelled, queue, labelled, force=True)
    assert "never overwritten" in (caught.value.hint or "") and labelled.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"human_label": "maybe"}, "`human_label` is safe, unsafe or null; found 'maybe'"),
        ({"human_label": ""}, "`human_label` is safe, unsafe or null; found ''"),
        ({"human_label": True}, "`human_label` is safe, unsafe or null; found True"),
        ({"human_label": ["safe"]}, "`human_label` is safe, unsafe or null"),
        ({"human_label": "safe", "human_categories": ["S1"]}, "named, but `human_label` is not unsafe"),
        ({"human_label": None, "human_categories": ["S1"]}, "named, but `human_label` is not unsafe"),
        ({"human_label": "unsafe", "human_categories": "S1"}, "`human_categories` is a list of names"),
        ({"human_label": "unsafe", "human_categories": [1]}, "`human_categories` is a list of names"),
        ({"human_label": "unsafe", "human_categories": ["Malwear"]}, "'Malwear' is no category"),
        ({"human_label": "safe", "id": "row-9"}, "labelled.jsonl has no such row for id 'row-9'"),
        ({"human_label": "safe", "hash": "0"}, "labelled.jsonl has another text for id 'row-1'"),
        ({"human_label": "safe", "hash": None}, "a line is an object with the `id`, `hash`"),
        ({"human_label": "safe", "violated_categories": None}, "a line is an object with the `id`, `hash`"),
    ],
)
def test_refused_answers(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    labelled = write_rows(tmp_path / "labelled.jsonl", [make_row()])
    queue = queue_of(tmp_path, [make_row()], row_1=change)
    with pytest.raises(QueueError, match=message) as caught:
        merge(labelled, queue, tmp_path / "out.jsonl")
    assert str(caught.value).startswith("queue.jsonl:1: ") and not (tmp_path / "out.jsonl").exists()
    if "Malwear" in message:
        assert caught.value.hint == "did you mean 'Malware'?"


@pytest.mark.parametrize(
    ("line", "message"),
    [("{", "not valid JSON"), ("[]", "a line is an object"), ("5", "a line is an object")],
)
def test_refused_lines(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "queue.jsonl").write_text(f"\n{line}\n")
    with pytest.raises(QueueError, match=rf"^queue.jsonl:2: .*{message}"):
        read_queue(tmp_path / "queue.jsonl")


def test_a_misspelt_or_missing_answer_is_not_taken_for_none(tmp_path: Path) -> None:
    line = entry(make_row(), TIE, OPINIONS)
    del line["human_label"]
    (tmp_path / "queue.jsonl").write_text(json.dumps({**line, "human_lable": "safe"}) + "\n")
    with pytest.raises(QueueError, match=r"queue.jsonl:1: `human_label` is missing") as caught:
        read_queue(tmp_path / "queue.jsonl")
    assert caught.value.hint == "write null where there is no answer"


def test_a_row_answered_twice_is_refused(tmp_path: Path) -> None:
    queue = queue_of(tmp_path, [make_row(), make_row()], row_1={"human_label": "safe"})
    with pytest.raises(QueueError, match=r"queue.jsonl:2: row 'row-1' was answered on line 1 already"):
        read_queue(queue)


def test_refused_files(tmp_path: Path) -> None:
    labelled = write_rows(tmp_path / "labelled.jsonl", [make_row()])
    queue = queue_of(tmp_path, [make_row()])
    with pytest.raises(LabelError, match=r"queue.jsonl: is the queue itself"):
        merge(labelled, queue, queue, force=True)
    with pytest.raises(LabelError, match=r"labelled.jsonl: exists already") as caught:
        merge(labelled, queue, labelled)
    assert caught.value.hint == "--force replaces it"
    with pytest.raises(LabelError, match=r"can not be read"):
        merge(labelled, tmp_path / "missing.jsonl", tmp_path / "out.jsonl")
    with pytest.raises(RowError, match=r"queue.jsonl:1: "):  # the two the wrong way round
        merge(queue, labelled, tmp_path / "out.jsonl")


def test_a_queue_written_anew_keeps_its_answers(tmp_path: Path) -> None:
    rows = [make_row(number) for number in range(4)]
    path = queue_of(
        tmp_path, rows[:3], row_0={"human_label": "safe", "note": "mine"}, row_2={"human_label": "unsafe"}
    )
    # Row 0 is still queued, rows 1 and 2 are not any more, row 3 is new.
    assert write_queue(path, [entry(rows[0], TIE, OPINIONS), entry(rows[3], TIE, OPINIONS)]) == 3
    lines = {line["id"]: line for line in read_lines(path)}
    assert {name: line["human_label"] for name, line in lines.items()} == {
        "row-0": "safe",
        "row-3": None,
        "row-2": "unsafe",
    }
    assert lines["row-0"]["note"] == "mine"


def test_a_damaged_queue_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "queue.jsonl"
    path.write_text('{"human_label": "safe"}\n')
    with pytest.raises(QueueError, match=r"queue.jsonl:1: "):
        write_queue(path, [])
    assert path.read_text() == '{"human_label": "safe"}\n'
