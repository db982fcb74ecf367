"""The published Aegis 2.0 files as they are, and every way in which a file can be bad."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis_edge.data.files import Tally, read_file, read_files, read_rows, split_of
from aegis_edge.data.mapping import ALL_CODES
from aegis_edge.data.records import DataError, Record, read_records


def row(**changed: Any) -> dict[str, Any]:
    """A row with all of the published fields."""
    return {
        "id": "a1",
        "reconstruction_id_if_redacted": None,
        "prompt": "A neutral question?",
        "response": None,
        "prompt_label": "safe",
        "response_label": None,
        "violated_categories": "",
        "prompt_label_source": "human",
        "response_label_source": None,
    } | changed


def write(path: Path, rows: Any, lines: bool = False) -> Path:
    text = "".join(json.dumps(r) + "\n" for r in rows) if lines else json.dumps(rows, indent=1)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def one(tmp_path: Path, **changed: Any) -> tuple[Record | None, Tally]:
    tally = Tally("train.json")
    records = list(read_file(write(tmp_path / "train.json", [row(**changed)]), tally=tally))
    assert tally.rows == tally.records + tally.redacted + len(tally.unreadable) == 1
    return (records[0] if records else None), tally


@pytest.mark.parametrize("name", ["train.json", "train.jsonl", "train.json.gz", "train.jsonl.gz"])
def test_arrays_and_lines_plain_and_gzip(tmp_path: Path, name: str) -> None:
    rows = [row(id="1"), row(id="2", prompt_label="unsafe", violated_categories="Violence, Threat")]
    first, second = read_file(write(tmp_path / name, rows, lines="jsonl" in name))
    assert (first.prompt, first.unsafe, first.response, first.response_unsafe) == (
        "A neutral question?",
        False,
        None,
        None,
    )
    assert (first.id, first.source, first.prompt_label_source) == ("1", "aegis2", "human")
    assert second.unsafe is True and second.categories.certain == {"S1", "S11"}
    assert second.categories.certain < second.categories.possible < set(ALL_CODES)


def test_a_byte_order_mark_and_blank_lines_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(row()).encode() + b"\r\n\n  \n")
    tally = Tally("test.jsonl")
    assert len(list(read_file(path, tally=tally))) == tally.rows == 1


def test_text_is_kept_as_it_is(tmp_path: Path) -> None:
    text = "  two\u2028lines\x85 and a tab\t "
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(row(prompt=text), ensure_ascii=False), encoding="utf-8", newline="")
    (record,) = read_file(path)
    assert record.prompt == text


@pytest.mark.parametrize(("response", "label"), [(None, "safe"), ("", "safe"), ("  ", "unsafe")])
def test_a_label_of_an_empty_response_is_left_out_and_counted(
    tmp_path: Path, response: str | None, label: str
) -> None:
    record, tally = one(tmp_path, response=response, response_label=label)
    assert record is not None and record.response is None and record.response_unsafe is None
    assert tally.empty_responses == 1
    assert not record.categories.certain  # "unsafe" was said of no text


def test_inverse_a_response_with_text_keeps_its_label(tmp_path: Path) -> None:
    record, tally = one(
        tmp_path, response="An answer.", response_label=" Unsafe ", response_label_source="llm_jury"
    )
    assert record is not None and record.response_unsafe is True and tally.empty_responses == 0
    assert (record.response_label_source, record.source) == ("llm_jury", "aegis2")
    assert record.categories.possible == set(ALL_CODES)  # unsafe, and no category is told


def test_redacted_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    record, tally = one(tmp_path, prompt="REDACTED", reconstruction_id_if_redacted=17)
    assert record is None and tally.redacted == 1 and not tally.unreadable


def test_inverse_a_reconstructed_row_is_read(tmp_path: Path) -> None:
    record, tally = one(tmp_path, prompt="The text is back.", reconstruction_id_if_redacted=17)
    assert record is not None and tally.redacted == 0
    record, _ = one(tmp_path, prompt="Why is this text REDACTED?")
    assert record is not None


def test_refusal_files(tmp_path: Path) -> None:
    record, _ = one(
        tmp_path,
        prompt_label="unsafe",
        response="I would rather not.",
        response_label="safe",
        violated_categories="Malware",
        response_label_source="refusal_data_augmentation",
    )
    assert record is not None and record.source == "aegis2_refusals"
    assert record.unsafe is True and record.response_unsafe is False
    assert record.categories.certain == {"S17"}  # the dialogue's: what the prompt asks for


def test_categories_of_a_dialogue_that_is_called_safe_are_neither_certain_nor_excluded(
    tmp_path: Path,
) -> None:
    record, tally = one(tmp_path, violated_categories="Needs Caution, Profanity")
    assert record is not None and tally.contradictions == 1
    assert (record.categories.certain, record.categories.possible) == (frozenset(), {"S13", "S12"})


def test_unknown_category_names_are_told_and_widen_what_is_possible(tmp_path: Path) -> None:
    record, tally = one(tmp_path, prompt_label="unsafe", violated_categories="Violence, Gardening")
    assert record is not None and dict(tally.unknown_categories) == {"Gardening": 1}
    assert record.categories.certain == {"S1"} and record.categories.possible == set(ALL_CODES)


def test_categories_may_be_a_list(tmp_path: Path) -> None:
    record, _ = one(tmp_path, prompt_label="unsafe", violated_categories=["Sexual Minor", "Threat"])
    assert record is not None and record.categories.certain == {"S7", "S11"}


BAD = [
    ({"prompt": None}, "`prompt`"),
    ({"prompt": "  "}, "`prompt`"),
    ({"prompt": 3}, "`prompt`"),
    ({"response": ["x"]}, "`response`"),
    ({"prompt_label": "maybe"}, "`prompt_label`"),
    ({"response_label": True}, "`response_label`"),
    ({"violated_categories": 5}, "`violated_categories`"),
    ({"violated_categories": ["Violence", 5]}, "`violated_categories`"),
    ({"prompt": "half a character \ud800"}, "lone surrogate"),
]


@pytest.mark.parametrize(("changed", "message"), BAD)
def test_a_bad_row_is_named_and_refused_or_skipped(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    rows = [row(), row(), row(**changed), row()]
    for name, place in (("train.json", "row 3"), ("train.jsonl", "line 3")):
        path = write(tmp_path / name, rows, lines=name.endswith("l"))
        with pytest.raises(DataError, match=f"{name}: {place}: .*{message}") as caught:
            list(read_file(path))
        assert "skip" in (caught.value.hint or "")
        tally = Tally(name)
        assert len(list(read_file(path, skip_bad=True, tally=tally))) == 3
        assert (tally.rows, tally.records, len(tally.unreadable)) == (4, 3, 1)
        assert tally.unreadable[0].startswith(f"{name}: {place}: ")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not valid JSON"),
        ("3", "non-empty `prompt`"),
        ("null", "non-empty `prompt`"),
        ('{"prompt": "a", "prompt": "b"}', "repeats a key"),
        ('{"prompt": "a", "category": {"x": 1, "x": 2}}', "repeats a key"),
        ("[" * 100_000, "not valid JSON"),
        ('{"prompt": "\xff"}', "not valid UTF-8"),
    ],
)
def test_bad_lines(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_bytes(b'{"prompt": "fine"}\n' + line.encode("latin-1") + b"\n")
    with pytest.raises(DataError, match=rf"own\.jsonl: line 2: .*{message}"):
        list(read_file(path))
    assert len(list(read_file(path, skip_bad=True))) == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (json.dumps([row(), row()])[:-40].encode(), "not a whole JSON array"),
        (b'[{"prompt": "\xff"}]', "not valid UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (gzip.compress(b"[]" * 5000)[:-12], "gzip"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    ],
)
@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_file_that_is_not_whole_is_refused_either_way(
    tmp_path: Path, data: bytes, message: str, skip_bad: bool
) -> None:
    path = tmp_path / "train.json"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        list(read_file(path, skip_bad=skip_bad))


def test_a_missing_file_and_files_without_a_record(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.json: can not be read: No such file"):
        list(read_file(tmp_path / "nothing.json"))
    with pytest.raises(DataError, match="no readable record"):
        read_files([write(tmp_path / "a.json", []), write(tmp_path / "b.json", [row(prompt="REDACTED")])])


def test_the_projects_own_schema_gives_the_records_of_read_records(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": "a",
            "prompt_label": "unsafe",
            "category": ["threat"],
            "source": "aegis2_x",
            "response": "",
        },
        {"prompt": "b", "response": "c", "response_label": "unsafe", "category": "Insult", "source": "edos"},
        {"prompt": "d"},
    ]
    path = write(tmp_path / "own.jsonl", rows, lines=True)
    expected = list(read_records(path))
    found = list(read_file(path))
    assert found[:2] == expected[:2]
    assert expected[2].source == "" and found[2].source == "own"  # the file's name stands in


def test_rows_carry_the_object_and_the_place(tmp_path: Path) -> None:
    rows = [row(id=str(i), extra=[i]) for i in range(3)]
    found = list(read_rows(write(tmp_path / "test.json", rows)))
    assert [r.raw for r in found] == rows
    assert [r.place for r in found] == ["test.json: row 1", "test.json: row 2", "test.json: row 3"]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.json", "train"),
        ("refusals_train.json", "train"),
        ("refusals_validation.json", "validation"),
        ("test.json", "test"),
        ("train.jsonl.gz", "train"),
        ("dev_abc.jsonl.gz", "validation"),
        ("trained.json", "trained"),
        ("mine.jsonl", "mine"),
    ],
)
def test_splits_are_told_by_names(name: str, split: str) -> None:
    assert split_of(Path("folder") / name) == split


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(list(row())), inner, max_size=9)
    ),
    max_leaves=12,
)


@given(st.lists(JSON, max_size=6))
def test_every_row_is_a_record_redacted_or_unreadable(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "train.json"
    path.write_text(json.dumps(rows))
    tally = Tally(path.name)
    records = list(read_file(path, skip_bad=True, tally=tally))
    assert tally.rows == len(rows)
    assert tally.rows == tally.records + tally.redacted + len(tally.unreadable)
    assert len(records) == tally.records
    json.dumps(tally.to_json())
