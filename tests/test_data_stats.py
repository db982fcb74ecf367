"""Counts of records, as JSON, tables and a plot."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from aegis_edge.cli import run
from aegis_edge.data.stats import NO_CATEGORY, Statistics, category_name

ROWS: dict[str, list[dict[str, Any]]] = {
    "train.json": [
        {"prompt": "a", "prompt_label": "safe", "prompt_label_source": "human", "violated_categories": None},
        {
            "prompt": "b",
            "prompt_label": "unsafe",
            "prompt_label_source": "human",
            "response": "c",
            "response_label": "safe",
            "response_label_source": "llm_jury",
            "violated_categories": "Violence, Threat",
        },
        {"prompt": "REDACTED", "reconstruction_id_if_redacted": 4, "violated_categories": "Other"},
    ],
    "refusals_train.json": [
        {
            "prompt": "d",
            "prompt_label": "unsafe",
            "prompt_label_source": "human",
            "response": "no",
            "response_label": "safe",
            "response_label_source": "refusal_data_augmentation",
            "violated_categories": "Violence",
        }
    ],
    "test.json": [{"prompt": "e", "prompt_label": "unsafe", "violated_categories": ""}, {"prompt": ""}],
}


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    for name, rows in ROWS.items():
        (tmp_path / name).write_text(json.dumps(rows))
    return [str(tmp_path / name) for name in ROWS]


def test_json(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "stats", *files, "--json", "--skip-bad"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    train, test = found["splits"]["train"], found["splits"]["test"]
    assert list(found["splits"]) == ["train", "test"]  # refusals_train belongs to train
    assert (train["records"], test["records"]) == (3, 1)
    assert train["labels"] == {"prompt safe": 1, "prompt unsafe": 2, "response none": 1, "response safe": 2}
    assert train["categories"] == {"S1": 2, "S11": 1} and test["categories"] == {NO_CATEGORY: 1}
    assert train["label_sources"] == {
        "prompt human": 3,
        "response llm_jury": 1,
        "response refusal_data_augmentation": 1,
    }
    assert train["sources"] == {"aegis2": 2, "aegis2_refusals": 1}
    assert [f["redacted"] for f in found["files"]] == [1, 0, 0]
    assert [len(f["unreadable"]) for f in found["files"]] == [0, 0, 1]
    assert "test.json: row 2: " in captured.err and "1 redacted" in captured.err


def test_unreadable_rows_are_refused_unless_skipped(
    files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["data", "stats", *files]) == 3
    captured = capsys.readouterr()
    assert captured.out == "" and "test.json: row 2: " in captured.err and "--skip-bad" in captured.err


def test_tables_show_every_count_and_no_text_is_markup(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "train.jsonl"
    source = "[bold]a source with $dollars$ and a name that is longer than a terminal is wide[/bold]" * 2
    path.write_text(json.dumps({"prompt": "a", "prompt_label": "safe", "source": source}))
    assert run(["data", "stats", str(path), "--plot", str(tmp_path / "p.png")]) == 0
    out = capsys.readouterr().out
    assert source in out and "prompt safe" in out
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_plot_of_several_splits(files: list[str], tmp_path: Path) -> None:
    assert run(["data", "stats", *files, "--skip-bad", "--plot", str(tmp_path / "sub" / "p.png")]) == 0
    assert (tmp_path / "sub" / "p.png").stat().st_size > 10_000


def test_a_missing_extra_is_named(
    files: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "aegis_edge.data.stats_plot", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    assert run(["data", "stats", *files, "--skip-bad", "--plot", "p.png"]) == 3
    assert "aegis-edge[evaluate]" in capsys.readouterr().err
    assert run(["data", "stats", *files, "--skip-bad"]) == 0  # only the plot needs it


def test_category_names() -> None:
    assert category_name("S1") == "S1 Violence" and category_name(NO_CATEGORY) == NO_CATEGORY
    assert Statistics().to_json() == {} and all(not table.lines for table in Statistics().tables())
