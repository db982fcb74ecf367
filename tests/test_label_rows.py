"""The published schema: read as it is, written as it was, refused by name where it is not followed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from label_server import make_row, read_lines, write_rows

from aegis_edge.label import files
from aegis_edge.label.errors import LabelError, RowError
from aegis_edge.label.files import read_json_lines, same_file, write_json_lines
from aegis_edge.label.rows import FIELDS, add_categories, read_rows, to_row

PUBLISHED = (
    "id",
    "reconstruction_id_if_redacted",
    "prompt",
    "response",
    "prompt_label",
    "response_label",
    "violated_categories",
    "prompt_label_source",
    "response_label_source",
)

text = st.text(st.characters(exclude_categories=["Cs"]))


def test_the_fields_are_the_published_ones_in_their_order() -> None:
    assert FIELDS == PUBLISHED


@given(
    prompt=text.filter(str.strip),
    response=st.none() | text,
    categories=text,
    label=st.sampled_from([None, "safe", "unsafe"]),
    number=st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
)
def test_a_row_comes_out_as_it_went_in(
    prompt: str, response: str | None, categories: str, label: str | None, number: object
) -> None:
    row = make_row(
        prompt=prompt,
        response=response,
        violated_categories=categories,
        response_label=label,
        reconstruction_id_if_redacted=number,
    )
    value = json.loads(json.dumps(row.to_json()))
    assert tuple(value) == PUBLISHED and to_row(value) == row


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_files_come_back(name: str, tmp_path: Path) -> None:
    rows = [make_row(1), make_row(2, response="línea\n\u2028“quoted”"), make_row(3, response=None)]
    write_json_lines(tmp_path / name, (row.to_json() for row in rows))
    assert read_rows(tmp_path / name).good == tuple(rows)
    assert (tmp_path / name).read_bytes()[:2] == (b"\x1f\x8b" if name.endswith(".gz") else b'{"')
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_one_array_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([make_row(1).to_json(), {"id": "x"}], indent=1))
    assert read_rows(path, skip_bad=True).good == (make_row(1),)
    with pytest.raises(RowError, match=r"^rows.json:2: the field 'prompt' is missing$"):
        read_rows(path)


def test_fields_of_a_file_that_was_never_labelled_may_be_missing() -> None:
    value = make_row().to_json()
    for name in (
        "reconstruction_id_if_redacted",
        "response_label",
        "violated_categories",
        "response_label_source",
    ):
        del value[name]
    assert to_row(value) == make_row()
    assert to_row({**value, "violated_categories": None}).violated_categories == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": ""}, "`id` is text, and not empty"),
        ({"id": 7}, "`id` is text, and not empty"),
        ({"prompt": None}, "prompt: expected text, found NoneType"),
        ({"prompt": " "}, "`prompt` is empty"),
        ({"prompt": "\ud800"}, "lone surrogate"),
        ({"response": 3}, "response: expected text, found int"),
        ({"prompt_label": None}, "`prompt_label` is safe or unsafe, given by a person; found None"),
        ({"prompt_label": "Safe"}, "found 'Safe'"),
        ({"prompt_label": []}, r"found \[\]"),
        ({"response_label": "maybe"}, "`response_label` is safe, unsafe or null; found 'maybe'"),
        ({"violated_categories": ["S1"]}, "`violated_categories` is text"),
        ({"prompt_label_source": None}, "`prompt_label_source` is text"),
        ({"response_label_source": 1}, "`response_label_source` is text or null"),
        (
            {"reconstruction_id_if_redacted": True},
            "`reconstruction_id_if_redacted` is a number, text or null",
        ),
        ({"extra": 1}, "'extra' is no field of the published schema"),
    ],
)
def test_refusals(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    bad = json.dumps({**make_row(2).to_json(), **change})
    path.write_text(f"{json.dumps(make_row(1).to_json())}\n\n{bad}\n")
    with pytest.raises(RowError, match=rf"^rows.jsonl:3: .*{message}") as caught:
        read_rows(path)
    assert caught.value.hint == "--skip-bad leaves such rows out"
    rows = read_rows(path, skip_bad=True)
    assert rows.good == (make_row(1),) and [number for number, _ in rows.bad] == [3]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "not valid JSON: .* at column 2"),
        (b"[]", "a row is a JSON object"),
        (b"\xff", "not valid UTF-8 at byte 0"),
        (b'{"id": 1, "id": 2}', "an object repeats a key"),
        (b'{"id": NaN}', "NaN is no JSON number"),
        (b"[" * 100_000, "nested too deeply"),
        (b"1" * 5000, "a number too long"),
    ],
)
def test_lines_that_are_no_rows(line: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n" + line + b"\n" + b"{}\n")
    with pytest.raises(RowError, match=rf"^rows.jsonl:2: .*{message}.*\(and 1 more such lines\)$"):
        read_rows(path)


def test_a_line_beyond_the_limit_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_LINE", 1 << 10)
    path = tmp_path / "rows.jsonl"
    path.write_text(f'"{"x" * 5000}"\n{json.dumps(make_row(1).to_json())}\n')
    rows = read_rows(path, skip_bad=True)
    assert rows.good == (make_row(1),) and rows.bad[0][0] == 1 and "longer than" in rows.bad[0][1]


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="can not be read"):
        read_rows(tmp_path / "missing.jsonl")
    whole = gzip.compress(b'"text"\n' * 1000)
    for data in (b"no gzip", whole[: len(whole) // 2]):
        (tmp_path / "rows.jsonl.gz").write_bytes(data)
        with pytest.raises(LabelError, match="can not be read"):
            list(read_json_lines(tmp_path / "rows.jsonl.gz"))


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [make_row(1)])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json_lines(path, [float("nan")])
    assert read_lines(path) == [make_row(1).to_json()] and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(LabelError, match="can not be written"):
        write_json_lines(tmp_path / "nowhere" / "rows.jsonl", [])


def test_same_file(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a", [])
    (tmp_path / "link").symlink_to(path)
    assert same_file(path, tmp_path / "." / "a") and same_file(path, tmp_path / "link")
    assert same_file(tmp_path / "new", tmp_path / "." / "new") and not same_file(path, tmp_path / "new")


def test_the_digest_is_of_what_a_judge_is_shown() -> None:
    row = make_row()
    for change in ({"prompt": "Other."}, {"response": "Other."}, {"prompt_label": "unsafe"}):
        assert make_row(**change).digest != row.digest
    for change in ({"violated_categories": "Other"}, {"response_label": "safe"}, {"id": "other"}):
        assert make_row(**change).digest == row.digest


def test_redacted() -> None:
    assert make_row(prompt="REDACTED").redacted and make_row(reconstruction_id_if_redacted=0).redacted
    assert not make_row().redacted


@pytest.mark.parametrize(
    ("given_", "found", "expected"),
    [
        ("", [], ""),
        ("", ["Malware", "Threat", "Malware"], "Malware, Threat"),
        ("Threat,Profanity", ["Malware"], "Threat,Profanity, Malware"),
        ("Guns/Illegal Weapons", ["Guns and Illegal Weapons"], "Guns/Illegal Weapons"),
        ("Something new", ["something  NEW", "Threat"], "Something new, Threat"),
    ],
)
def test_categories_are_added_once_and_nothing_given_is_changed(
    given_: str, found: list[str], expected: str
) -> None:
    assert add_categories(given_, found) == expected
