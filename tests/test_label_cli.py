"""`aegis-edge label`: what it prints, what it refuses, and that it loses nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from label_server import (
    Act,
    Asked,
    Server,
    arguments,
    by_plan,
    label,
    make_row,
    send,
    write_jury,
    write_rows,
)

from aegis_edge.cli import run
from aegis_edge.label.rows import Row, read_rows


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def refused(capsys: pytest.CaptureFixture[str], command: list[str], code: int = 3) -> str:
    capsys.readouterr()
    assert run(command) == code
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ")
    return captured.err


def test_no_vote_at_all_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "rows.jsonl", [make_row(1)])
    with Server(lambda asked: send(401)) as server:
        write_jury(tmp_path / "jury.toml", server.url, "a")
        err = refused(capsys, arguments(tmp_path))
    assert "no judge cast a vote on any row; nothing was written" in err
    assert "hint: the first said: HTTP status 401" in err
    assert not (tmp_path / "labelled.jsonl").exists()


def test_a_dead_judge_is_given_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "rows.jsonl", [make_row(n) for n in range(30)])

    def behave(asked: Asked) -> str | Act:
        return send(401) if asked.model == "dead" else "safe"

    with Server(behave) as server:
        write_jury(
            tmp_path / "jury.toml", server.url, "dead", "a", "b", more="give_up_after = 3\nconcurrency = 1\n"
        )
        assert run(arguments(tmp_path)) == 0
        captured = capsys.readouterr()
        assert sum(asked.model == "dead" for asked in server.asked) == 3
    assert "judge dead was asked no more: 3 rows in a row failed, the last: HTTP status 401" in captured.err
    assert "judge dead abstained: " in captured.err and "dead" in captured.out
    assert {row.response_label for row in read_rows(tmp_path / "labelled.jsonl").good} == {"safe"}


def test_merge_tells_json_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labelled = write_rows(tmp_path / "labelled.jsonl", [make_row()])
    queue = write_rows(tmp_path / "queue.jsonl", [])
    command = ["label", "merge", str(labelled), str(queue), "--out", str(tmp_path / "out.jsonl"), "--json"]
    assert run(command) == 0
    assert json.loads(capsys.readouterr().out) == {
        "rows": 1,
        "merged": 0,
        "against_jury": 0,
        "unchanged": 0,
        "open": 0,
    }
    assert "out.jsonl: exists already\nhint: --force replaces it" in refused(capsys, command)
    assert run([*command, "--force"]) == 0


def test_bad_rows_are_refused_or_left_out_by_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = json.dumps(make_row(1).to_json())
    (tmp_path / "rows.jsonl").write_text("\n".join([good, "{", *["{}"] * 25]) + "\n")
    with Server(lambda asked: "safe") as server:
        write_jury(tmp_path / "jury.toml", server.url, "a")
        err = refused(capsys, arguments(tmp_path))
        assert "rows.jsonl:2: not valid JSON" in err and "(and 25 more such lines)" in err
        assert "hint: --skip-bad" in err and not server.asked
        assert run(arguments(tmp_path, "--skip-bad")) == 0
        captured = capsys.readouterr()
        assert "rows.jsonl:2: left out: not valid JSON" in captured.err
        assert "and 6 more lines left out" in captured.err and "1, 26 left out as unreadable" in captured.out
        assert len(label(tmp_path, capsys, "--skip-bad", "--force")["bad_rows"]) == 26
    assert read_rows(tmp_path / "labelled.jsonl").good == (
        make_row(1, response_label="safe", response_label_source="llm_jury"),
    )


@pytest.mark.parametrize(
    "command",
    [
        ["label"],
        ["label", "--data", "x"],
        ["label", "merge", "a"],
        ["label", "merge", "a", "b"],
        ["label", "nonsense"],
        ["label", "--nonsense"],
    ],
)
def test_usage(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "hint: aegis-edge label" in refused(capsys, command, 2)


def test_refused_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [make_row()])
    write_jury(tmp_path / "jury.toml", "http://127.0.0.1:1", "a")
    for option, path, message in (
        ("--out", tmp_path / "nowhere" / "x", "its folder does not exist"),
        ("--queue", tmp_path / "nowhere" / "x", "its folder does not exist"),
        ("--journal", tmp_path, "is a folder"),
        ("--out", rows, "is the file of --data"),
        ("--queue", rows, "is the file of --data"),
        ("--journal", tmp_path / "jury.toml", "is the file of --jury"),
        ("--queue", tmp_path / "labelled.jsonl", "is the file of --queue"),
    ):
        err = refused(capsys, arguments(tmp_path, f"{option}={path}"))
        assert message in err
    write_rows(tmp_path / "labelled.jsonl", [])
    assert "labelled.jsonl: exists already\nhint: --force" in refused(capsys, arguments(tmp_path))
    (tmp_path / "labelled.jsonl").unlink()
    rows.write_text("\n")
    assert "there are no rows in it" in refused(capsys, arguments(tmp_path))


def test_merged_human_labels_are_not_lost_to_a_later_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "rows.jsonl", [make_row()])
    human = make_row(response_label="unsafe", response_label_source="human")
    out = write_rows(tmp_path / "labelled.jsonl", [human])
    with Server(lambda asked: "safe") as server:
        write_jury(tmp_path / "jury.toml", server.url, "a")
        err = refused(capsys, arguments(tmp_path, "--force"))
        assert "holds human labels of 1 rows that this run would lose\nhint: take it as --data" in err
        assert read_rows(out).good == (human,) and not server.asked
        write_rows(tmp_path / "rows.jsonl", [human])
        label(tmp_path, capsys, "--force")
    assert read_rows(out).good == (human,)


def test_a_damaged_queue_is_refused_before_anything_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "rows.jsonl", [make_row()])
    (tmp_path / "labelled.queue.jsonl").write_text("{\n")
    with Server(lambda asked: "safe") as server:
        write_jury(tmp_path / "jury.toml", server.url, "a")
        assert "labelled.queue.jsonl:1: not valid JSON" in refused(capsys, arguments(tmp_path))
        assert not server.asked


def test_a_missing_key_is_refused_and_a_key_is_written_nowhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    write_rows(tmp_path / "rows.jsonl", [make_row(1), make_row(2)])
    plan: dict[str, dict[str, str | Act]] = {"a": {"1": send(401), "*": "safe"}}
    with Server(by_plan(plan)) as server:
        write_jury(tmp_path / "jury.toml", server.url, "a", more='key_env = "JUDGE_KEY"\n')
        err = refused(capsys, arguments(tmp_path))
        assert "judge 'a': the variable JUDGE_KEY is not set\nhint: export JUDGE_KEY=" in err
        monkeypatch.setenv("JUDGE_KEY", "a-key-of-mine")
        assert run(arguments(tmp_path)) == 0
        assert server.asked[0].headers["Authorization"] == "Bearer a-key-of-mine"
    captured = capsys.readouterr()
    written = "".join(path.read_text() for path in tmp_path.iterdir())
    assert "a-key-of-mine" not in written + captured.out + captured.err


def test_rows_that_need_no_jury_need_no_judges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[Row] = [make_row(1, response=None), make_row(2, response="")]
    write_rows(tmp_path / "rows.jsonl", rows)
    write_jury(tmp_path / "jury.toml", "http://127.0.0.1:1", "a", more='key_env = "NOT_SET_ANYWHERE"\n')
    summary = label(tmp_path, capsys)
    assert summary["judges"] == {} and summary["agreement"]["fleiss_kappa"] is None
    assert read_rows(tmp_path / "labelled.jsonl").good == tuple(rows)
    assert run(arguments(tmp_path, "--force")) == 0
    assert "Fleiss' kappa undefined" in capsys.readouterr().out


def test_label_starts_without_heavy_imports() -> None:
    code = (
        "import sys; from aegis_edge.cli import run\n"
        "run(['label', '--data', 'a', '--jury', 'b', '--out', 'c'])\n"
        "heavy = {'torch', 'transformers', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL)
