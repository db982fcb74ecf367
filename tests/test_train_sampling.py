"""Own prompts, policies and the labels that follow them, metrics, calibration."""

from __future__ import annotations

import random

import numpy as np
import pytest

from aegis_edge.data.mapping import Categories
from aegis_edge.data.records import DataError, Record
from aegis_edge.evaluate.metrics import auroc, expected_calibration_error, report
from aegis_edge.train.generate import five_grams, generate, words

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from aegis_edge.train import calibration
from aegis_edge.train.packing import _split
from aegis_edge.train.sampling import Policy, Sampler, joined, split, under


def record(text: str, unsafe: bool, certain: str = "", possible: str = "", source: str = "mine") -> Record:
    sure = frozenset(certain.split())
    return Record(
        text, None, unsafe, None, Categories(sure, sure | frozenset(possible.split())), None, source
    )


def test_generated_prompts_are_distinct_repeatable_and_avoid_held_out_text() -> None:
    first = generate(500, seed=3)
    assert first == generate(500, seed=3) != generate(500, seed=4)
    assert len({" ".join(words(t)) for _, t in first}) == len(first) == 500
    assert not any("{" in t for _, t in first)
    held = [text for _, text in first[:100]]
    banned = {gram for text in held for gram in five_grams(text)}
    again = generate(500, seed=3, held_out=held)
    assert again and not any(five_grams(text) & banned for _, text in again)


def test_labels_follow_the_policy() -> None:
    row = record("x", True, "S5", "S3 S22")
    assert under(Policy(("S1", "S5"), False), row, True) is True
    assert under(Policy(("S1", "S3"), False), row, True) is None  # may fall under S3: not certain, not used
    assert under(Policy(("S1", "S8"), False), row, True) is False
    assert under(Policy(("S1",), False), row, False) is False
    assert under(Policy(("S1",), True), row, True) is True


def test_sampler_repeats_from_its_state() -> None:
    rows = [
        record(f"t{n}", n % 2 == 0, "S1", source="aart" if n % 2 == 0 else "generated") for n in range(20)
    ]
    whole = Sampler(rows, seed=1)
    drawn = [whole.step(n, 8) for n in range(4)]
    half = Sampler(rows, seed=1)
    assert [half.step(n, 8) for n in range(2)] == drawn[:2]
    resumed = Sampler(rows, seed=1)
    resumed.state = dict(half.state)
    assert [resumed.step(n, 8) for n in range(2, 4)] == drawn[2:]


def test_sampler_without_labels_says_so() -> None:
    with pytest.raises(DataError, match="no rows"):
        Sampler([Record("x", None, None, None, Categories(), None, "s")])


def test_joined_texts_keep_the_harmful_parts_label() -> None:
    rows = [record(f"safe {n}", False) for n in range(5)] + [record("bad", True, "S1")]
    for text in joined(rows, 20, seed=0):
        assert text.unsafe == ("bad" in text.prompt)
        assert text.categories.certain == (frozenset({"S1"}) if text.unsafe else frozenset())


def test_split_keeps_a_prompt_on_one_side() -> None:
    rows = [record(f"t{n % 50}", False) for n in range(200)] + [record("other", True, source="held")]
    train, validation = split(rows, {"held": 1.0}, 0.3, seed=0)
    assert len(train) + len(validation) == len(rows)
    assert not {r.prompt for r in train} & {r.prompt for r in validation}
    assert any(r.source == "held" for r in validation)


def test_length_groups_are_the_cheapest() -> None:
    assert _split([10, 10, 10], overhead=5) == [3]
    assert _split([100, 10, 10], overhead=5) == [1, 3]
    assert _split([100, 10, 10], overhead=500) == [3]


def test_metrics_by_hand() -> None:
    p, t = [0.9, 0.8, 0.4, 0.2], [1, 0, 1, 0]
    found = report(p, t)
    assert (found["precision"], found["recall"], found["f1"], found["false_positive_rate"]) == (
        0.5,
        0.5,
        0.5,
        0.5,
    )
    assert auroc(p, t) == 0.75
    assert auroc([0.5, 0.5], [0, 1]) == 0.5
    assert np.isnan(auroc([0.1], [0]))
    assert expected_calibration_error([0.25, 0.75], [0, 1], bins=2) == 0.25
    assert report([0.1, 0.2], [0, 0])["f1"] == 0.0


def test_calibration_recovers_temperature_and_bias() -> None:
    rng = random.Random(0)
    margins = np.array([rng.gauss(0, 4) for _ in range(20000)])
    labels = np.array([rng.random() < 1 / (1 + np.exp(-(m / 2 + 0.5))) for m in margins]).astype(int)
    fitted = calibration.fit(margins, labels)
    assert fitted["temperature"] == pytest.approx(2, rel=0.1)
    assert fitted["bias"] == pytest.approx(0.5, abs=0.1)
    assert expected_calibration_error(calibration.apply(margins, fitted), labels) < 0.02
    assert calibration.fit(margins, 1 - labels) == calibration.IDENTITY  # never turn a verdict round
    assert calibration.fit(margins, np.zeros(len(margins))) == calibration.IDENTITY
