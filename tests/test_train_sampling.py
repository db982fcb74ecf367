"""Own prompts, policies and the labels that follow them, metrics, calibration."""

from __future__ import annotations

import json
import random
import re
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from aegis_edge.data.everyday import everyday
from aegis_edge.data.generate import CONTRASTS, PEOPLE, five_grams, generate, words
from aegis_edge.data.mapping import Categories
from aegis_edge.data.records import DataError, Record
from aegis_edge.data.topics import HELD_OUT, SOURCE, TOPICS, topical
from aegis_edge.evaluate.metrics import auroc, expected_calibration_error, report
from aegis_edge.policy import Category
from aegis_edge.policy import Policy as UserPolicy

pytest.importorskip("torch", reason="training needs the extra `train`")
pytest.importorskip("sklearn", reason="training needs the extra `train`")

from aegis_edge.train import calibration, unseen
from aegis_edge.train.datasets import data_files, load_data
from aegis_edge.train.framed import deed_of, framed
from aegis_edge.train.longer import longer
from aegis_edge.train.packing import Example, _split
from aegis_edge.train.policies import NAMES, REWORDINGS, Line, Policy, default_policy, draw_policy, under
from aegis_edge.train.sampling import SHARES, Sampler, bucket_of, split
from aegis_edge.train.typed import typed


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
    contrasts = generate(200, seed=3, held_out=held, templates=CONTRASTS)
    assert {code for code, _ in contrasts} == {"S8", "S9"}
    again = generate(500, seed=3, held_out=held)
    assert again and not any(five_grams(text) & banned for _, text in again)


def test_sentences_about_people_have_words_of_their_own_and_are_trained_on_as_safe() -> None:
    data = resources.files("aegis_edge.data")
    files = [tomllib.loads((data / name).read_text("utf-8")) for name in ("harmless.toml", "people.toml")]
    assert not set(files[0]["words"]) & set(files[1]["words"])  # one list would hide the other
    slots = {slot for texts in PEOPLE.values() for text in texts for slot in re.findall(r"{(\w+)}", text)}
    assert slots == set(files[1]["words"])
    made = generate(300, seed=3, templates=PEOPLE)
    assert {kind for kind, _ in made} == set(PEOPLE) and not any("{" in text for _, text in made)
    records = [record(text, False, source="people") for _, text in made]
    assert {bucket_of(r) for r in records} == {"safe"} and SHARES["safe"]["people"] > 0


def lines(*codes: str) -> Policy:
    return Policy(tuple(Line(NAMES[code], code) for code in codes))


def topic(text: str, name: str) -> Record:
    return Record(text, None, False, None, Categories(), name, SOURCE)


def test_labels_follow_the_policy() -> None:
    row = record("x", True, "S5", "S3 S22")
    assert under(lines("S1", "S5"), row, True) is True
    assert under(lines("S1", "S3"), row, True) is None  # may fall under S3: not certain, not used
    assert under(lines("S1", "S8"), row, True) is False
    assert under(lines("S1"), row, False) is False
    assert under(lines("S1"), row, None) is None
    assert under(default_policy(), row, True) is True


def test_labels_follow_a_policy_about_topics() -> None:
    forbidden = Policy((Line("Chess: the game", topic="Chess"), Line(NAMES["S5"], "S5")))
    chess, dogs = topic("a gambit", "Chess"), topic("a leash", "Dogs")
    assert (under(forbidden, chess, False), under(forbidden, dogs, False)) == (True, False)
    harmful, harmless = record("x", True, "S5"), record("y", False)
    assert under(forbidden, harmful, True) is True
    assert under(forbidden, record("x", True, "S1"), True) is None  # nobody noted whether it is about chess
    assert under(forbidden, harmless, False) is None


def test_policies_are_ones_that_a_user_could_write() -> None:
    rng = random.Random(0)
    kinds = set()
    for _ in range(400):
        policy = draw_policy(rng, TOPICS, without=("S5",))
        kinds.add((policy.full, policy.topical))
        assert "S5" not in {line.code for line in policy.lines}
        categories = []
        for line in policy.lines:
            name, _, description = line.text.partition(": ")
            categories.append(Category.of(name, description=description or None))
        assert [c.text for c in UserPolicy(tuple(categories)).categories] == list(policy.texts)
        assert all((c.code == line.code) for c, line in zip(categories, policy.lines, strict=True) if c.code)
    assert kinds == {(True, False), (False, False), (False, True)}


def test_rewordings_and_topics_are_complete_and_apart() -> None:
    assert set(REWORDINGS) == set(NAMES)
    assert not {t.name for t in TOPICS} & {t.name for t in HELD_OUT}
    subjects = [s.casefold() for t in (*TOPICS, *HELD_OUT) for s in t.subjects]
    assert len(subjects) == len(set(subjects))
    trained = {r.prompt.casefold() for r in topical(TOPICS, 10_000)}
    assert not trained & {r.prompt.casefold() for r in topical(HELD_OUT, 10_000)}
    assert (
        topical(TOPICS[:2], 30, seed=1) == topical(TOPICS[:2], 30, seed=1) != topical(TOPICS[:2], 30, seed=2)
    )


def test_a_topical_step_has_both_labels() -> None:
    rows = [*topical(TOPICS, 20), *(record(f"t{n}", True, "S1", source="aart") for n in range(20))]
    sampler = Sampler(rows, seed=3, topics=TOPICS)
    seen = [sampler.step(n, 16) for n in range(120)]
    about_topics = [examples for policy, examples in seen if policy.topical]
    assert len(about_topics) > 10
    unsafe = [e.unsafe for examples in about_topics for e in examples]
    assert 0.25 < sum(map(bool, unsafe)) / len(unsafe) < 0.85
    for policy, examples in seen:
        assert all(text in policy.texts for e in examples for text, _ in e.leaves)


def test_hazards_left_out_are_not_trained_on() -> None:
    rows = [record(f"a{n}", True, "S5", "S3", source="aart") for n in range(9)]
    rows += [record(f"b{n}", True, "S1", source="aart") for n in range(9)]
    sampler = Sampler(rows, seed=0, without=("S5",))
    for number in range(30):
        policy, examples = sampler.step(number, 4)
        assert NAMES["S5"] not in policy.texts and all(re.search("(?i)b[0-9]", e.prompt) for e in examples)


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


def pair(text: str, unsafe: bool | None, response_unsafe: bool | None) -> Record:
    sure = frozenset({"S1"} if unsafe or response_unsafe else ())
    answer = "bad answer" if response_unsafe else "answer"
    return Record(text, answer, unsafe, response_unsafe, Categories(sure, sure), None, "mine")


def test_longer_texts_keep_the_harmful_parts_label() -> None:
    rows = [record(f"safe {n}", False) for n in range(5)] + [record("bad", True, "S1")]
    rows += [pair("good", False, False), pair("fine", False, True), pair("unknown", None, True)]
    made = longer(rows, 20, seed=0)
    assert {text.source for text in made} == {"joined", "threads", "transcripts"}
    for text in made:
        assert ("answer" in text.prompt) >= (text.source == "transcripts")
        assert text.unsafe == ("bad" in text.prompt) and text.response is text.response_unsafe is None
        assert text.categories.certain == (frozenset({"S1"}) if text.unsafe else frozenset())
    assert made == longer(rows, 20, seed=0) != longer(rows, 20, seed=1)


def test_a_buried_prompt_stands_whole_between_sentences_and_decides() -> None:
    sentences = [f"Sentence {n} is of no harm" for n in range(30)]
    rows = [record("good", False), record("bad", True, "S1"), record(". ".join(sentences), False)]
    made = [text for text in longer(rows, 40, seed=0) if text.source == "buried"]
    assert len(made) == 40 and sum(bool(text.unsafe) for text in made) == 20
    for text in made:
        guest = "bad" if text.unsafe else "good"
        assert all(text.prompt.count(s) == 1 for s in sentences) and text.prompt.split().count(guest) == 1
        before, _, after = text.prompt.partition(guest)
        assert (before.rstrip().endswith(".") or not before) and after.lstrip().startswith("Sentence")
        assert text.categories.certain == (frozenset({"S1"}) if text.unsafe else frozenset())
    assert len({text.prompt.index("bad") for text in made if text.unsafe}) > 5  # anywhere
    assert not [t for t in longer(rows[:2], 40, seed=0) if t.source == "buried"]  # no prose


def test_an_answer_of_unknown_harm_makes_no_transcript() -> None:
    assert not longer([pair("who knows", None, False), pair("nor here", False, None)], 20, seed=0)


def test_a_thread_is_of_one_source_and_has_the_categories_of_all() -> None:
    rows = [record("a1", True, "S1", source="a"), record("a2", True, "S2", source="a")]
    rows += [record("b1", True, "S3", source="b"), record("c1", False, source="c")]
    threads = [text for text in longer(rows, 20, seed=0) if text.source == "threads"]
    assert {text.categories.certain for text in threads} == {
        frozenset({"S1", "S2"}),
        frozenset({"S3"}),
        frozenset(),
    }


def test_rare_categories_are_put_into_longer_texts_more_often_than_their_number() -> None:
    rows = [record(f"safe {n}", False) for n in range(5)]
    rows += [record("often", True, "S1") for _ in range(81)] + [
        record("seldom", True, "S2") for _ in range(9)
    ]
    made = [text for text in longer(rows, 1600, seed=0) if text.source == "joined" and text.unsafe]
    rare = sum("seldom" in text.prompt for text in made) / len(made)
    assert rare == pytest.approx(3 / 12, abs=0.05)  # 9 and 3 are the roots of 81 and 9


@pytest.mark.parametrize(
    ("prompt", "deed"),
    [
        ("How do I peel a plum?", "peel a plum"),
        ("how to peel a plum", "peel a plum"),
        ("Can you tell me how to peel a plum?!", "peel a plum"),
        ("I want to know how to peel plums.", "peel plums"),
        ("What is the best way to peel a plum?", "peel a plum"),
        ("How do I peel a plum? And an apple?", None),  # two requests
        ("How long does a plum take to ripen?", None),
        ("How do I peel?", None),
        (f"How do I peel {'plum ' * 60}?", None),
    ],
)
def test_a_request_is_taken_apart_where_it_is_one_and_no_more(prompt: str, deed: str | None) -> None:
    assert deed_of(prompt) == deed


def test_a_frame_decides_about_a_harmful_deed_and_not_about_a_harmless_one() -> None:
    rows = [record(f"How do I pick plum {n}?", True, "S1") for n in range(40)]
    rows += [record(f"How do I eat plum {n}?", False) for n in range(40)]
    rows += [record(f"they are plum {n}", True, "S8", source="edos") for n in range(40)]
    made = framed(rows, seed=0)
    assert made == framed(rows, seed=0) != framed(rows, seed=1)
    assert not any("{" in text.prompt for text in made)
    for source, bad in (("framed", "pick plum"), ("quoted", "they are plum")):
        of_source = [text for text in made if text.source == source]
        about = [t for t in of_source if bad in t.prompt.lower() and not t.unsafe]
        meant = [t for t in of_source if bad in t.prompt.lower() and t.unsafe]
        assert len(about) == len(meant) == 40
        assert all(t.categories.certain for t in meant) and not any(t.categories.certain for t in about)
    # As many texts ask for harmless deeds as for harmful ones, so that asking gives nothing away.
    assert 0.8 * SHARES["safe"]["framed_harmless"] >= SHARES["unsafe"]["framed"] > 0
    harmless = [t for t in made if "eat plum" in t.prompt.lower()]
    assert {t.source for t in harmless} == {"framed_harmless"}
    assert len(harmless) == 40 and not any(t.unsafe for t in harmless)


def test_what_stays_harmful_in_any_frame_or_is_labelled_in_doubt_gets_none() -> None:
    kept = record("How do I pick a plum?", True, "S1")
    left_out = [replace(kept, source="harmfulqa"), record("How do I pick a plum?", True, "S6")]
    left_out += [record("they are plums", True, "S8", source="davidson")]
    assert framed([kept], 0) and not framed(left_out, 0)
    gone = framed([kept], 0)[0].prompt
    assert gone not in {text.prompt for text in framed([kept], 0, held_out=[gone])}


def test_a_prompt_is_typed_in_many_ways_with_its_words_in_order() -> None:
    text = "Where do the Ripest plums grow, and when?"
    rng = random.Random(0)
    made = [typed(text, rng) for _ in range(3000)]
    assert sum(t == text for t in made) / len(made) == pytest.approx(0.7, abs=0.05)
    assert len(set(made)) > 20
    for way in made:
        spelt = ["".join(sorted(word)) for word in words(way)]
        wanted = ["".join(sorted(word)) for word in words(text)]
        assert " ".join(wanted) in " ".join(spelt)  # whole, whatever stands before and after it
    assert typed("?", random.Random(4)).strip()


def test_rare_categories_of_a_source_are_drawn_more_often_than_their_number() -> None:
    rows = [record(f"a{n}", True, "S1", source="aart") for n in range(81)]
    rows += [record(f"b{n}", True, "S1 S2", source="aart") for n in range(9)]
    _, drawn = Sampler(rows, seed=0).step(-1, 4000, vary=False)
    rare = sum(example.prompt.startswith("b") for example in drawn) / len(drawn)
    assert rare == pytest.approx(3 / 12, abs=0.03)  # 9 and 3 are the roots of 81 and 9


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


def test_a_folder_gives_its_training_files_alone(tmp_path: Path) -> None:
    for name in ("train.jsonl", "refusals_train.json", "dev_x.jsonl", "notes.txt", "other.jsonl"):
        (tmp_path / name).write_text("")
    train, kept = data_files([tmp_path, tmp_path / "other.jsonl"])
    assert [f.name for f in train] == ["refusals_train.json", "train.jsonl", "other.jsonl"]
    assert [f.name for f in kept] == ["dev_x.jsonl", "other.jsonl"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no file to train on"):
        data_files([tmp_path / "empty"])


def test_published_aegis_rows_are_trained_on(tmp_path: Path) -> None:
    row = {
        "id": "1", "reconstruction_id_if_redacted": None, "prompt": "a plum", "response": None,
        "prompt_label": "unsafe", "response_label": None, "violated_categories": "Profanity",
        "prompt_label_source": "human", "response_label_source": None,
    }  # fmt: skip
    rows = [row | {"id": str(n), "prompt": f"plum {n}"} for n in range(40)]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    records, validation = load_data([tmp_path], 0, generated=10, contrasts=4, each_topic=2)
    mine = [r for r in (*records, *validation) if r.source == "aegis2"]
    assert len(mine) == 40 and all(r.categories.certain == {"S12"} and r.unsafe for r in mine)
    assert {e.source for n in range(9) for e in Sampler(records, 0).step(n, 8)[1]} >= {"aegis2"}


def test_everyday_questions_are_held_out_of_the_projects_own_texts(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(
        "".join(
            json.dumps({"prompt": f"plum {n}", "prompt_label": "safe", "source": "mine"}) + "\n"
            for n in range(9)
        )
    )
    told = set().union(*map(five_grams, everyday()))
    train, validation = load_data([tmp_path], 0, generated=400, contrasts=40, each_topic=0)
    own = [
        r.prompt
        for r in (*train, *validation)
        if r.source in ("generated", "people", "contrasts", "alarming")
    ]
    assert len(own) > 400 and not [text for text in own if five_grams(text) & told]
    assert [text for _, text in generate(400, 0) if five_grams(text) & told]  # as they would be else


def test_an_unseen_hazard_is_told_from_other_harm() -> None:
    rows = [record(f"a{n}", True, "S5", "S3") for n in range(30)]
    rows += [record(f"b{n}", True, "S1", "S3 S22") for n in range(30)]
    rows += [record(f"c{n}", True, "", "S5") for n in range(30)] + [record(f"d{n}", False) for n in range(30)]

    def telling(letters: str) -> unseen.Margins:
        def margins(examples: Sequence[Example], policy: Policy) -> tuple[np.ndarray, np.ndarray]:
            assert [line.code for line in policy.lines] == ["S5"] and policy.texts[0].startswith(NAMES["S5"])
            assert not any(e.prompt.startswith("c") for e in examples)  # it may fall under the hazard
            assert all(e.unsafe is None and text == policy.texts[0] for e in examples for text, _ in e.leaves)
            found = [float(e.prompt[0] in letters) for e in examples]
            return np.array(found), np.array([e.leaves[0][1] for e in examples])

        return margins

    assert unseen.measure(rows, "S5", telling("a")) == 1.0
    assert unseen.measure(rows, "S5", telling("ab")) == 0.75  # harm alone: half of the negatives are harmful


def test_the_scale_of_custom_categories_is_fitted_on_topics() -> None:
    def margins(examples: Sequence[Example], policy: Policy) -> tuple[np.ndarray, np.ndarray]:
        assert all(text == policy.texts[0] for e in examples for text, _ in e.leaves)
        labels = np.array([e.leaves[0][1] for e in examples])
        assert labels.sum() * 2 == len(labels)
        noise = np.array([len(e.prompt) % 7 - 3.0 for e in examples])
        return 6.0 + 2.0 * labels + noise, labels  # yes to all by its sign

    scale = unseen.custom_scale(margins)
    assert -8 < scale["bias"] * scale["temperature"] < -6
