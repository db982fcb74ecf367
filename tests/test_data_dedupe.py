"""Near-duplicates of held-out texts."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis_edge.cli import run
from aegis_edge.data.dedupe import GRAM, HeldOut, grams, repeats, words

HELD = "how can i bake a loaf of rye bread without an oven at home"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (HELD, "exact"),
        ("How can I bake a loaf of rye-bread, without an oven at home?!", "exact"),
        ("ＨＯＷ can I bake a loaf of rye bread without an oven at home", "exact"),
        ("Please tell me, how can I bake a loaf of rye bread without an oven at home today?", "near"),
        ("how can i bake a loaf of rye bread with an oven", "near"),
        ("how can i paint a loaf of rye bread on an old oven", None),
        ("at home an oven without bread rye of loaf a bake i can how", None),
        ("", None),
        ("bread", None),
    ],
)
def test_kinds(text: str, kind: str | None) -> None:
    match = HeldOut(["something else entirely, as it happens", HELD]).match(text)
    assert (match and (match.of, match.kind)) == (kind and (1, kind))


def test_a_long_text_that_quotes_a_held_out_one_is_found() -> None:
    rng = random.Random(0)
    around = [" ".join(rng.choices(["one", "two", "three", "four", "five"], k=300)) for _ in range(2)]
    match = HeldOut([HELD]).match(f"{around[0]} {HELD} {around[1]}")
    assert match is not None and match.overlap == 1.0  # Jaccard would be a twentieth


def test_texts_of_few_words_or_none_match_exactly_or_not_at_all() -> None:
    held = HeldOut(["rye bread", "?!"])
    assert held.match("Rye bread!") is not None and held.match("?!") is not None
    assert held.match("rye bread and butter with salt and chives") is None
    assert held.match("!?") is None


def test_the_threshold_is_a_share_of_the_held_out_grams() -> None:
    text = " ".join(words(HELD)[:9])  # 5 of its 10 grams
    assert len(grams(words(HELD))) == 10 and len(grams(words(text))) == 5
    found = HeldOut([HELD], 0.5).match(text)
    assert found is not None and found.overlap == 0.5
    assert HeldOut([HELD], 0.51).match(text) is None
    for bad in (0, -1, 1.01):
        with pytest.raises(ValueError, match="threshold"):
            HeldOut([HELD], bad)


def brute_force(held: list[str], text: str, threshold: float) -> bool:
    if any((words(h) or h) == (words(text) or text) for h in held):
        return True
    mine = set(grams(words(text)))
    shares = [len(mine & set(g)) / len(g) for h in held if (g := grams(words(h)))]
    return any(share >= threshold - 1e-9 for share in shares)


TEXTS = st.lists(st.sampled_from("abc"), max_size=14).map(" ".join)


@given(st.lists(TEXTS, max_size=6), TEXTS, st.sampled_from([0.3, 0.5, 0.7, 1.0]))
def test_the_index_finds_what_comparing_with_all_finds(held: list[str], text: str, threshold: float) -> None:
    assert (HeldOut(held, threshold).match(text) is not None) == brute_force(held, text, threshold)


def work(size: int) -> int:
    """Pairs compared for `size` unrelated texts that share a template of fewer words than it takes."""
    rng = random.Random(size)
    template = " ".join(f"t{i}" for i in range(12))

    def text() -> str:
        return template + " " + " ".join(f"w{rng.randrange(5000)}" for _ in range(20))

    held = HeldOut([text() for _ in range(size // 4)])
    assert not any(held.match(text()) for _ in range(size))
    return held.compared


def test_unrelated_texts_are_hardly_ever_compared() -> None:
    assert work(200) <= 20 and work(800) <= 80  # of 10,000 and 160,000 pairs


def test_repeats_are_of_whole_conversations() -> None:
    turns = [("a b",), ("A, b!",), ("a b", "c"), ("a b", "d"), ("a  b", "C"), ("a", "b c")]
    assert repeats(turns) == [None, 0, None, None, 2, None]


def write(path: Path, prompts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"prompt": p, "n": i}) + "\n" for i, p in enumerate(prompts)))
    return path


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "b").mkdir()
    train = write(tmp_path / "train.jsonl", ["kept one", HELD.upper(), "kept two", "Kept one."])
    more = write(tmp_path / "b" / "train.jsonl", [HELD + " please", "kept three"])
    test = write(tmp_path / "test.jsonl", [HELD])
    out, removed = tmp_path / "out.jsonl", tmp_path / "removed.jsonl"
    arguments = ["data", "dedupe", str(train), str(more), "--against", str(test), "--out", str(out)]
    arguments += ["--within", "--removed", str(removed), "--json"]
    assert run(arguments) == 0
    assert [json.loads(line)["prompt"] for line in out.read_text().splitlines()] == [
        "kept one",
        "kept two",
        "kept three",
    ]
    found = json.loads(capsys.readouterr().out)["files"]
    assert [(f["exact"], f["near"], f["repeat"], f["kept"]) for f in found] == [(1, 0, 1, 2), (0, 1, 0, 1)]
    because = [json.loads(line) for line in removed.read_text().splitlines()]
    assert because[0] == {
        "row": "train.jsonl: line 2",
        "of": "test.jsonl: line 1",
        "kind": "exact",
        "overlap": 1.0,
    }
    assert [b["kind"] for b in because] == ["exact", "repeat", "near"]
    assert run(arguments) == 3 and "exists" in capsys.readouterr().err  # nothing is overwritten unasked
    assert run([*arguments, "--force"]) == 0
    assert run(["data", "dedupe", str(out), "--against", str(test), "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again").read_text() == out.read_text()  # clean files stay as they are


def test_the_command_needs_something_to_compare_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = write(tmp_path / "train.jsonl", ["a"])
    assert run(["data", "dedupe", str(train), "--out", str(tmp_path / "o")]) == 2
    assert "--against" in capsys.readouterr().err
    assert GRAM == 5  # what the help and the README say
