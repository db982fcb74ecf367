"""From file to file: juries behind a real server and a real guard; killed, resumed, merged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from label_server import (
    Act,
    Asked,
    Server,
    arguments,
    by_plan,
    hang,
    hang_up,
    label,
    make_row,
    read_lines,
    send,
    write_jury,
    write_rows,
)

from aegis_edge.cli import run
from aegis_edge.guard import Guard
from aegis_edge.label.agreement import fleiss_kappa, krippendorff_alpha
from aegis_edge.label.jury import GuardSettings
from aegis_edge.label.local import GuardJudge
from aegis_edge.label.rows import read_rows
from aegis_edge.label.votes import Abstention

GOLDEN = Path(__file__).parent / "golden" / "artifact-v1"


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_a_jury_with_every_kind_of_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unsafe = '{"label": "unsafe", "categories": ["S17", "Gardens"]}'
    plan: dict[str, dict[str, str | Act]] = {
        "steady": {"1": "safe", "2": unsafe, "*": unsafe},
        "other": {"1": "safe", "2": unsafe, "3": "safe", "4": unsafe, "*": "safe"},
        "fails": {"1": "safe", "2": "safe", "3": send(500), "4": hang_up, "*": hang(2.5)},
        "talks": {"2": unsafe, "3": "I would say safe.", "4": "", "*": send(200, b"?")},
    }
    kept = [
        make_row(6, response_label="safe", response_label_source="human"),
        make_row(7, response_label="unsafe", response_label_source="refusal_data_augmentation"),
        make_row(8, response_label="unsafe", response_label_source="llm_jury"),
        make_row(9, response=None),
        make_row(10, response=" ", violated_categories="Threat"),
        make_row(11, prompt="REDACTED", reconstruction_id_if_redacted=5),
    ]
    voted = [make_row(n, violated_categories="Threat" if n == 2 else "") for n in range(1, 6)]
    write_rows(tmp_path / "rows.jsonl", [*voted, *kept])
    with Server(by_plan(plan)) as server:
        write_jury(tmp_path / "jury.toml", server.url, *plan, top="quorum = 2\n")
        summary = label(tmp_path, capsys)
    jury = {"response_label_source": "llm_jury"}
    assert read_rows(tmp_path / "labelled.jsonl").good == (
        make_row(1, response_label="safe", **jury),
        make_row(2, response_label="unsafe", violated_categories="Threat, Malware", **jury),
        make_row(3),
        make_row(4, response_label="unsafe", violated_categories="Malware", **jury),
        make_row(5),
        *kept,
    )
    assert summary["outcomes"] == {"tie": 2, "unanimous": 2, "majority": 1}
    assert summary["labels"] == {"none": 2, "unsafe": 2, "safe": 1} and summary["quorum"] == 2
    assert summary["not_judged"] == {
        "no response": 2,
        "labelled: human": 1,
        "labelled: refusal_data_augmentation": 1,
        "labelled: llm_jury": 1,
        "redacted prompt": 1,
    }
    assert summary["judges"]["fails"]["abstentions"] == {"http": 1, "connection": 1, "timeout": 1}
    assert summary["judges"]["talks"]["abstentions"] == {"nonsense": 3, "empty": 1}
    assert summary["judges"]["talks"]["votes"] == {"unsafe": 1}
    assert summary["judges"]["other"]["agreed"] == {"rows": 3, "of": 3}
    assert summary["judges"]["other"]["unknown_categories"] == {"Gardens": 2}
    queue = read_lines(tmp_path / "labelled.queue.jsonl")
    assert [line["id"] for line in queue] == ["row-3", "row-5"] and queue[0]["why"] == "tie"
    assert queue[0]["votes"]["fails"] == {"abstained": "HTTP status 500 (2 tries)"}
    # Rows 1 to 5: 3 of 0, 1 of 4, 1 of 2, 2 of 2, 1 of 2 unsafe, in this order safe / unsafe below.
    assert summary["agreement"]["rows"] == 5
    counts = [{"safe": s, "unsafe": u} for s, u in ((3, 0), (1, 3), (1, 1), (0, 2), (1, 1))]
    assert summary["agreement"]["fleiss_kappa"] == pytest.approx(fleiss_kappa(counts))
    assert summary["agreement"]["krippendorff_alpha"] == pytest.approx(krippendorff_alpha(counts))


def test_a_failing_judge_never_counts_as_a_vote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The labels with a judge that fails are those without it. The inverse: had it said `safe`, or `unsafe`,
    instead, they would not be."""
    write_rows(tmp_path / "rows.jsonl", [make_row(n) for n in range(1, 5)])
    plan: dict[str, dict[str, str | Act]] = {
        "a": {"1": "safe", "2": "unsafe", "*": "safe"},
        "b": {"1": "safe", "2": "unsafe", "*": "unsafe"},
    }
    third: list[str | Act | None] = [
        None,
        send(500),
        send(429),
        hang_up,
        hang(2.5),
        "nonsense",
        "",
        "safe",
        "unsafe",
    ]
    found = []
    for act in third:
        models = {**plan, "c": {"*": act}} if act is not None else plan
        with Server(by_plan(models)) as server:  # type: ignore[arg-type]
            write_jury(tmp_path / "jury.toml", server.url, *models, top="quorum = 2\n")
            label(tmp_path, capsys, "--force", f"--journal={tmp_path / f'votes-{len(found)}'}")
        found.append([row.response_label for row in read_rows(tmp_path / "labelled.jsonl").good])
    alone, failing, voting = found[0], found[1:-2], found[-2:]
    assert alone == ["safe", "unsafe", None, None] and all(labels == alone for labels in failing)
    assert voting == [["safe", "unsafe", "safe", "safe"], ["safe", "unsafe", "unsafe", "unsafe"]]


def test_too_few_votes_give_no_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "rows.jsonl", [make_row(1)])
    plan: dict[str, dict[str, str | Act]] = {"a": {"*": "safe"}, "b": {"*": send(404)}, "c": {"*": "?"}}
    with Server(by_plan(plan)) as server:
        write_jury(tmp_path / "jury.toml", server.url, *plan)
        summary = label(tmp_path, capsys)
    assert summary["outcomes"] == {"quorum": 1} and summary["quorum"] == 2
    assert read_rows(tmp_path / "labelled.jsonl").good == (make_row(1),)
    assert read_lines(tmp_path / "labelled.queue.jsonl")[0]["why"] == "quorum"


def test_killed_and_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A kill loses no vote that was in the journal, and nothing in it is asked again."""
    rows = [make_row(number) for number in range(40)]
    write_rows(tmp_path / "rows.jsonl", rows)

    def behave(asked: Asked) -> str | Act:
        time.sleep(0.02)
        number = int(asked.row["response"].split()[-1][:-1])
        return "unsafe" if number % (2 if asked.model == "a" else 3) else "safe"

    with Server(behave) as server:
        write_jury(tmp_path / "jury.toml", server.url, "a", "b", "c", timeout=30)
        code = "from aegis_edge.cli import main; main()"
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments(tmp_path)], stdout=subprocess.DEVNULL, env={**os.environ}
        )
        limit = time.monotonic() + 60
        while len(server.asked) < 50 and time.monotonic() < limit:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        votes = tmp_path / "labelled.votes.jsonl"
        kept = votes.read_bytes().rsplit(b"\n", 1)[0]
        done = {(line["id"], line["judge"]) for line in map(json.loads, kept.split(b"\n")[1:])}
        assert 20 <= len(done) < 120 and not (tmp_path / "labelled.jsonl").exists()
        with votes.open("ab") as file:  # and the last line was torn
            file.write(b'{"id": "row-39", "judge": "a", "ha')
        time.sleep(0.2)  # for requests under way at the kill
        server.asked.clear()
        summary = label(tmp_path, capsys)
        asked = {(f"row-{a.row['response'].split()[-1][:-1]}", a.model) for a in server.asked}
        assert not asked & done and len(asked) == len(server.asked) == 120 - len(done)
        assert sum(judge["resumed"] for judge in summary["judges"].values()) == len(done)
        resumed = (tmp_path / "labelled.jsonl").read_bytes()
        label(tmp_path, capsys, "--force", f"--journal={tmp_path / 'fresh'}")
    assert (tmp_path / "labelled.jsonl").read_bytes() == resumed


def test_abstentions_are_asked_again_and_answers_of_a_person_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "rows.jsonl", [make_row(n) for n in (1, 2, 3)])
    plan: dict[str, dict[str, str | Act]] = {"a": {"*": "safe"}, "b": {"*": send(500)}}
    with Server(by_plan(plan)) as server:
        write_jury(tmp_path / "jury.toml", server.url, "a", "b")
        assert label(tmp_path, capsys)["queue"]["rows"] == 3
        queue = tmp_path / "labelled.queue.jsonl"
        lines = read_lines(queue)
        lines[0]["human_label"] = "unsafe"
        queue.write_text("".join(json.dumps(line) + "\n" for line in lines))
        plan["b"] = {"2": "unsafe", "*": "safe"}
        server.asked.clear()
        summary = label(tmp_path, capsys, "--force")
        assert {asked.model for asked in server.asked} == {"b"} and len(server.asked) == 3
    assert summary["judges"]["a"]["resumed"] == 3
    assert [(line["id"], line["human_label"]) for line in read_lines(queue)] == [
        ("row-2", None),
        ("row-1", "unsafe"),
    ]
    out = tmp_path / "merged.jsonl"
    assert run(["label", "merge", str(tmp_path / "labelled.jsonl"), str(queue), "--out", str(out)]) == 0
    assert "1 of 3 rows labelled by a person (1 against the jury)" in capsys.readouterr().out
    rows = read_rows(out).good
    assert [(row.response_label, row.response_label_source) for row in rows] == [
        ("unsafe", "human"),
        (None, None),
        ("safe", "llm_jury"),
    ]


def test_split_rows_are_queued_where_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "rows.jsonl", [make_row(1), make_row(2)])
    plan: dict[str, dict[str, str | Act]] = {
        "a": {"*": "safe"},
        "b": {"*": "safe"},
        "c": {"1": "unsafe", "*": "safe"},
    }
    with Server(by_plan(plan)) as server:
        write_jury(tmp_path / "jury.toml", server.url, *plan)
        assert label(tmp_path, capsys)["queue"]["rows"] == 0
        assert label(tmp_path, capsys, "--force", "--split")["queue"]["rows"] == 1
    assert [
        (line["id"], line["why"], line["jury_label"])
        for line in read_lines(tmp_path / "labelled.queue.jsonl")
    ] == [("row-1", "majority", "safe")]


def test_relabel_votes_on_the_jurys_labels_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        make_row(n, response_label="unsafe", response_label_source=source)
        for n, source in enumerate(("llm_jury", "human", "refusal_data_augmentation", "llm_jury"))
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    plan: dict[str, dict[str, str | Act]] = {"a": {"*": "safe"}, "b": {"3": "unsafe", "*": "safe"}}
    with Server(by_plan(plan)) as server:
        write_jury(tmp_path / "jury.toml", server.url, "a", "b")
        label(tmp_path, capsys)
        assert not server.asked and read_rows(tmp_path / "labelled.jsonl").good == tuple(rows)
        label(tmp_path, capsys, "--relabel", "--force")
    found = [
        (row.response_label, row.response_label_source) for row in read_rows(tmp_path / "labelled.jsonl").good
    ]
    expected = [
        ("safe", "llm_jury"),
        ("unsafe", "human"),
        ("unsafe", "refusal_data_augmentation"),
        (None, None),
    ]
    assert found == expected


def test_a_local_guard_votes_what_it_says_of_the_response(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Next to an endpoint that agrees with it; the path is relative to the TOML file."""
    guard = Guard.load(GOLDEN, threads=1)
    rows = [make_row(n, prompt="How do I pick a lock?", response="the " * n) for n in range(1, 9)]
    verdicts = [guard.check(row.prompt, row.response) for row in rows]
    safe = {row.response: v.response.safe for row, v in zip(rows, verdicts, strict=True) if v.response}
    os.symlink(GOLDEN, tmp_path / "guard")
    write_rows(tmp_path / "rows.jsonl", rows)
    with Server(lambda asked: "safe" if safe[asked.row["response"]] else "unsafe") as server:
        jury = write_jury(tmp_path / "jury.toml", server.url, "a")
        jury.write_text(
            jury.read_text() + '[[judges]]\nname = "g"\nkind = "guard"\npath = "guard"\nthreads = 1\n'
        )
        summary = label(tmp_path, capsys)
    assert summary["outcomes"] == {"unanimous": 8} and summary["judges"]["g"]["abstentions"] == {}
    for row in read_rows(tmp_path / "labelled.jsonl").good:
        assert row.response_label == ("safe" if safe[row.response or ""] else "unsafe")
        assert row.violated_categories == ""  # the endpoint named none: there is no majority for any
    journal = read_lines(tmp_path / "labelled.votes.jsonl")[1:]
    named = {line["id"]: line["categories"] + line["unknown"] for line in journal if line["judge"] == "g"}
    for row, verdict in zip(rows, verdicts, strict=True):
        expected = [] if safe[row.response or ""] else [category.name for category in verdict.categories]
        assert sorted(named[row.id]) == sorted(expected)


def test_a_text_that_the_guard_can_not_check_is_an_abstention() -> None:
    judge = GuardJudge.load(GuardSettings("g", GOLDEN, 1))
    opinion = judge.judge(make_row(response="the " * 5000), threading.Event())
    assert isinstance(opinion, Abstention) and opinion.cause == "guard" and "tokens" in opinion.reason
