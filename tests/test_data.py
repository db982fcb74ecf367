"""Reading labelled rows and mapping their categories to Aegis 2.0."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from aegis_edge.data import mapping, read_records
from aegis_edge.data.mapping import ALL_CODES, VAGUE, map_categories
from aegis_edge.data.records import DataError
from aegis_edge.data.tables import aegis, dialogues, requests
from aegis_edge.taxonomy import HAZARDS

TABLES = {
    name: table
    for module in (requests, dialogues)
    for name, table in vars(module).items()
    if name.isupper() and isinstance(table, dict)
}


def write(path: Path, *rows: object) -> Path:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", sorted(TABLES))
def test_every_entry_parses_to_known_codes(name: str) -> None:
    for entry in TABLES[name].values():
        categories = mapping.parse(entry)
        assert categories.certain <= categories.possible <= set(ALL_CODES)
        assert categories.possible >= VAGUE


def test_codes_are_the_taxonomys() -> None:
    assert tuple(h.code for h in HAZARDS) == ALL_CODES
    assert set(aegis.NEIGHBOURS) == set(ALL_CODES)
    for entry in aegis.NEIGHBOURS.values():
        assert set(entry.split()) <= set(ALL_CODES)


# As the card, the data and the prompts of published guards spell them.
@pytest.mark.parametrize(
    ("spelling", "code"),
    [
        ("Guns/Illegal Weapons", "S4"),
        ("guns and illegal weapons", "S4"),
        ("Sexual Minor", "S7"),
        ("Sexual (minor)", "S7"),
        ("suicide/self-harm", "S6"),
        ("Suicide and Self Harm", "S6"),
        ("political/misinfo/conspiracy", "S19"),
        ("High Risk Gov. Decision Making", "S18"),
        ("Illegal Activity", "S22"),
        ("S9", "S9"),
        ("  pii/PRIVACY ", "S9"),
    ],
)
def test_spellings_of_a_category(spelling: str, code: str) -> None:
    assert mapping.aegis_codes([spelling]) == ({code}, ())


def test_names_that_are_none_are_told_and_doubts_are_not_certain() -> None:
    assert mapping.aegis_codes(["Violence", "", "Violence?", "Gardening"]) == (
        {"S1"},
        ("Violence?", "Gardening"),
    )


def test_every_hazard_is_found_by_name_and_code() -> None:
    for hazard in HAZARDS:
        assert mapping.aegis_codes([hazard.name]) == mapping.aegis_codes([hazard.code]) == ({hazard.code}, ())


def test_sources_with_nested_or_listed_labels() -> None:
    assert map_categories("aegis2_train_xref", ["violence", "guns/illegal weapons"]).certain == {"S1", "S4"}
    assert map_categories("aegis2_dv_sft", "Malware, Threat").certain == {"S17", "S11"}
    assert map_categories("salad_mcq_queries", ["O5: x", "O10: y", "O37: z"]).certain == {"S17"}
    assert map_categories("catqa_en", ["Physical Harm", "Self-harm"]).certain == {"S6"}
    trust = {"first_class": "a", "second_class": "b", "third_class": "Insult: text"}
    assert map_categories("trustllm_misuse", trust).certain == {"S10"}
    assert map_categories("aart", "drug trafficking").certain == {"S3"}
    assert map_categories("mlc_v05_ssh_vulnerable", "ssh").certain == {"S6"}


def test_an_unknown_label_may_be_anything() -> None:
    for source, label in (
        ("nowhere", "x"),
        ("aart", "gardens"),
        ("salad_mcq_queries", ["null"]),
        ("aegis2_x", None),
    ):
        assert map_categories(source, label) == mapping.UNKNOWN


def test_reads_plain_and_gzip(tmp_path: Path) -> None:
    row = {"prompt": "hi", "response": "", "prompt_label": "safe", "response_label": "safe", "source": "s"}
    for name in ("a.jsonl", "a.jsonl.gz"):
        (record,) = read_records(write(tmp_path / name, row, ""))
        assert (record.unsafe, record.response, record.response_unsafe) == (False, None, None)
        assert not record.categories.possible  # a harmless text has no category


@pytest.mark.parametrize(
    "bad",
    [
        "{",
        "[]",
        {"prompt": ""},
        {"prompt": 3},
        {"prompt": "x", "prompt_label": "maybe"},
        {"prompt": "x", "response": 1},
    ],
)
def test_bad_rows_are_named_or_skipped(tmp_path: Path, bad: object) -> None:
    path = write(tmp_path / "rows.jsonl", {"prompt": "fine"}, bad)
    with pytest.raises(DataError, match=r"rows\.jsonl:2"):
        list(read_records(path))
    assert len(list(read_records(path, skip_bad=True))) == 1
