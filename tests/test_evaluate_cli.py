"""`aegis-edge evaluate` over a tiny guard: JSON, tables, page, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_artifact import write_tiny
from tokenizers import Tokenizer

from aegis_edge import Guard
from aegis_edge.cli import run
from aegis_edge.families import Plan
from aegis_edge.policy import Category, Policy

WORDS = ("lock", "policy", "question", "user", "safe", "weapons", "things", "answer", "system", "other")


def rows() -> list[dict[str, Any]]:
    """Published rows with neutral text; the labels are arbitrary, as is what a random guard says."""
    found = []
    for n, word in enumerate(WORDS * 2):
        unsafe = n % 3 == 0
        found.append(
            {
                "id": str(n),
                "prompt": f"Tell me about {word} number {n}.",
                "prompt_label": "unsafe" if unsafe else "safe",
                "prompt_label_source": "human",
                "response": f"The {word}." if n % 2 else None,
                "response_label": ("unsafe" if n % 5 == 0 else "safe") if n % 2 else None,
                "response_label_source": "llm_jury" if n % 2 else None,
                "violated_categories": ("Violence" if n % 2 else "Privacy") if unsafe or n % 5 == 0 else "",
            }
        )
    return found


@pytest.fixture(scope="module")
def guards(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer, tiny_plan: Plan, tiny_policy: Policy
) -> list[str]:
    folders = []
    for seed in (3, 4):
        folder = tmp_path_factory.mktemp(f"seed{seed}") / "guard"
        write_tiny(folder, tiny_tokenizer, tiny_plan, tiny_policy, seed=seed)
        folders.append(str(folder))
    return folders


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "test.json"
    path.write_text(json.dumps(rows()))
    return path


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run(["evaluate", *arguments, "--threads", "1", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)  # no NaN in JSON
    return found


def test_figures_are_those_of_the_guards_verdicts(
    data: Path, guards: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = report(capsys, str(data), "--guard", guards[0])["guards"]
    guard = Guard.load(guards[0], 1)
    said = [not guard.check(row["prompt"]).safe for row in rows()]
    truth = [row["prompt_label"] == "unsafe" for row in rows()]
    hits = sum(s and t for s, t in zip(said, truth, strict=True))
    assert found["prompt"]["overall"]["n"] == 20 and found["response"]["overall"]["n"] == 10
    assert found["prompt"]["overall"]["recall"] == pytest.approx(hits / sum(truth))
    assert found["prompt"]["overall"]["accuracy"] == pytest.approx(
        sum(s == t for s, t in zip(said, truth, strict=True)) / 20
    )
    assert set(found["prompt"]["by_category"]) == {"S1", "S9"}
    assert list(found["response"]["by_label_source"]) == ["llm_jury"]


def test_two_guards_and_a_page(
    data: Path, guards: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    arguments = [str(data), "--guard", guards[0], "--compare", guards[1], "--html", str(page)]
    found = report(capsys, *arguments, "--policy-following", "--topic-following")
    assert [guard["name"] for guard in found["guards"]] == ["guard, cpu", "guard, cpu (2)"]
    assert found["comparison"]["prompt"]["pairs"] == 20 and found["comparison"]["response"]["pairs"] == 10
    assert all("policy_following" in guard for guard in found["guards"])
    assert all(0 < guard["topic_following"]["accuracy"] < 1 for guard in found["guards"])
    html = page.read_text()
    assert html.count("data:image/png;base64,") == 2 and "Two guards" in html and "<script" not in html
    assert not any(
        row["prompt"] in html or f"about {row['id']}" in html for row in rows()
    )  # no text is shown
    assert run(["evaluate", *arguments]) == 3 and "exists" in capsys.readouterr().err
    assert run(["evaluate", *arguments, "--force", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert "Two guards" in out and "recall at FPR 0.05" in out and "Tell me" not in out


def test_published_dialogues_are_recognised_and_shown_beside_the_rest(
    data: Path, guards: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = [{"role": "user", "content": f"A {word} for me"} for word in WORDS]
    talk = {
        "domain": "<i>shops</i>",
        "scenario": "1. Buying things.",
        "system_instruction": "Help with buying things.",
        "conversation": [*said, {"role": "user", "content": ""}, {"role": "user", "content": "lock " * 900}],
        "distractors": [{"bot turn": "Yes.", "distractor": f"Which {word} do you like?"} for word in WORDS],
        "conversation_with_distractors": [],
    }
    path, page = tmp_path / "canttalk.jsonl", tmp_path / "page.html"
    path.write_text(json.dumps(talk) + "\n" + json.dumps(talk | {"domain": None}) + "\n")
    assert run(["evaluate", str(path), "--guard", guards[0]]) == 3
    assert "canttalk.jsonl: line 2: " in capsys.readouterr().err
    arguments = ["evaluate", str(path), "--guard", guards[0], "--skip-bad", "--threads", "1"]
    assert run([*arguments, "--html", str(page)]) == 0
    captured = capsys.readouterr()
    assert "published dialogues" in captured.out and "10 distractors flagged" in captured.out
    assert "10 users' turns let through" in captured.out and "for me" not in captured.out
    assert "1 texts of dialogues too long" in captured.err and "1 turns of dialogues without" in captured.err
    assert "&lt;i&gt;shops" in page.read_text() and "for me" not in page.read_text()
    found = report(capsys, *arguments[1:-2], str(data), "--compare", guards[1])
    assert found["data"]["dialogues"] == 1 and found["guards"][0]["prompt"]["overall"]["n"] == 20
    for name, of in zip(guards, found["guards"], strict=True):
        measured = of["topic_dialogues"]
        policy = Policy((Category("Buying things", description="Help with buying things.", allowed=True),))
        guard = Guard.load(name, 1, policy=policy)
        flagged = [not guard.check(f"Which {word} do you like?").safe for word in WORDS]
        assert measured["found"] == sum(flagged) / 10 and measured["turns"] == 10


def test_a_guard_is_no_different_from_itself(
    data: Path, guards: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    same = report(capsys, str(data), "--guard", guards[0], "--compare", guards[0])["comparison"]
    assert same["prompt"]["flips"] == 0 and same["prompt"]["interval"] == [0, 0]
    near = report(
        capsys, str(data), "--guard", guards[0], "--compare", guards[0], "--compare-scorer", "reference"
    )
    assert [guard["name"] for guard in near["guards"]] == ["guard, cpu", "guard, reference"]


def test_a_limit_draws_the_same_records_for_a_seed(
    data: Path, guards: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(data), "--guard", guards[0], "--limit", "6"]
    first, again, other = (report(capsys, *arguments, "--seed", seed) for seed in "112")
    assert first["guards"] == again["guards"] != other["guards"]
    assert (first["data"]["records"], first["data"]["drawn"]) == (20, 6)
    assert first["guards"][0]["coverage"]["prompt"]["labelled"] == 6


def test_long_texts_and_unlabelled_rows_are_told(
    tmp_path: Path, guards: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.jsonl"
    labelled = [{"prompt": text, "prompt_label": "safe"} for text in ("short", "lock " * 900)]
    path.write_text("\n".join(map(json.dumps, [*labelled, {"prompt": "no label"}])))
    for long, judged in (("skip", 1), ("cut", 2)):
        assert run(["evaluate", str(path), "--guard", guards[0], "--long", long, "--json"]) == 0
        captured = capsys.readouterr()
        coverage = json.loads(captured.out)["guards"][0]["coverage"]["prompt"]
        assert (coverage["labelled"], coverage["judged"]) == (2, judged)
        assert "1 records without a label" in captured.err
        assert ("too long" in captured.err) == (long == "skip")
        assert ("beginning alone" in captured.err) == (long == "cut")


def test_names_from_files_are_not_markup(
    tmp_path: Path, guards: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path, page = tmp_path / "own.jsonl", tmp_path / "page.html"
    row = {"prompt": "a", "prompt_label": "unsafe", "source": "<b>$x_{$ [red]\x1b[2J"}
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | {"prompt": "b", "prompt_label": "safe"}))
    assert run(["evaluate", str(path), "--guard", guards[0], "--html", str(page)]) == 0
    out = capsys.readouterr().out
    assert "<b>$x_{$ [red]\\x1b[2J" in out and "\x1b[2J" not in out
    assert "&lt;b&gt;" in page.read_text() and "<b>" not in page.read_text()


def test_refusals(data: Path, guards: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", str(data), "--guard", str(tmp_path)]) == 3
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"prompt": "a"}\n')
    assert run(["evaluate", str(empty), "--guard", guards[0]]) == 3
    assert "no record has a label" in capsys.readouterr().err
    empty.write_text('{"prompt": ""}\n{"prompt": "a", "prompt_label": "safe"}\n')
    assert run(["evaluate", str(empty), "--guard", guards[0]]) == 3
    captured = capsys.readouterr()
    assert captured.out == "" and "empty.jsonl: line 1: " in captured.err and "--skip-bad" in captured.err
    assert run(["evaluate", str(empty), "--guard", guards[0], "--skip-bad"]) == 0
    assert run(["evaluate", str(data), "--guard", guards[0], "--compare-scorer", "cpu"]) == 2


def test_a_missing_extra_is_named(data: Path, guards: list[str]) -> None:
    code = (
        "import sys; sys.modules['sklearn'] = sys.modules['sklearn.metrics'] = None\n"
        "from aegis_edge.cli import run\n"
        f"sys.exit(run(['evaluate', {str(data)!r}, '--guard', {guards[0]!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 3 and "pip install 'aegis-edge[evaluate]'" in done.stderr
