"""Training on published dialogues: which files, under which policies, with which labels, in which shares."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from aegis_edge.data.canttalk import DISTRACTORS, Dialogue
from aegis_edge.data.canttalk import SOURCE as TURNS
from aegis_edge.data.mapping import Categories
from aegis_edge.data.records import Record, Topic
from aegis_edge.data.topics import TOPICS, topical
from aegis_edge.policy import Category
from aegis_edge.policy import Policy as UserPolicy

pytest.importorskip("torch", reason="training needs the extra `train`")

from aegis_edge.train import sampling
from aegis_edge.train.datasets import data_files, load_data
from aegis_edge.train.policies import MIX, PUBLISHED, Line, Policy, draw_policy, under
from aegis_edge.train.sampling import DISTRACTED, ON_TOPIC, Sampler

HARMFUL = Record("x", None, True, None, Categories(frozenset({"S1"}), frozenset({"S1"})), None, "aart")


def dialogue(domain: str, name: str, turns: int = 8, distractors: int = 5) -> Dialogue:
    return Dialogue(
        Topic(name, f"All about {name.lower()}.", domain=domain),
        tuple(f"{name} question {n}" for n in range(turns)),
        tuple(f"{name} and now something else {n}" for n in range(distractors)),
    )


DIALOGUES = [
    dialogue(domain, f"{what} in {domain}") for domain in ("garden", "kitchen") for what in "ABCDEFGH"
]
RECORDS = [record for one in DIALOGUES for record in one.records()]


def line(of: Dialogue) -> Line:
    return Line(f"{of.topic.name}: {of.topic.description}", topic=of.topic.name, domain=of.topic.domain)


def test_what_is_known_of_a_dialogues_texts() -> None:
    here, beside, elsewhere = DIALOGUES[0], DIALOGUES[1], DIALOGUES[-1]
    turn, distractor = here.records()[0], here.records()[-1]
    own = Line("Chess: the game", topic="Chess")
    assert [line(of).covers(turn, False) for of in (here, beside, elsewhere)] == [True, None, False]
    assert [line(of).covers(distractor, False) for of in (here, beside, elsewhere)] == [False, None, None]
    assert own.covers(turn, False) is own.covers(distractor, False) is None
    assert line(here).covers(topical(TOPICS[:1], 1)[0], False) is None
    # Named like one of the project's own, it is still another topic.
    assert (
        line(here).covers(Record("x", None, False, None, Categories(), here.topic.name, "topics"), False)
        is None
    )
    policy = Policy((line(here), line(beside)))
    assert (under(policy, turn, False), under(policy, distractor, False)) == (True, None)
    assert under(Policy((line(here),)), distractor, False) is False
    assert under(Policy((Line("Violence", "S1"),)), distractor, False) is False


def test_policies_name_topics_of_one_kind_in_the_stated_share() -> None:
    rng = random.Random(0)
    published = [of.topic for of in DIALOGUES]
    drawn = [draw_policy(rng, TOPICS, published=published) for _ in range(4000)]
    about = [policy for policy in drawn if policy.topical]
    assert len(about) / len(drawn) == pytest.approx(MIX["topics"], abs=0.02)
    assert sum(policy.published for policy in about) / len(about) == pytest.approx(PUBLISHED, abs=0.05)
    for policy in about:
        assert len({line.domain is None for line in policy.lines if line.topic}) == 1
        if policy.published:
            parts = [text.partition(": ") for text in policy.texts]
            categories = [Category.of(name, description=what or None) for name, _, what in parts]
            assert [c.text for c in UserPolicy(tuple(categories)).categories] == list(policy.texts)
    assert any(policy.published for policy in (draw_policy(rng, (), published=published) for _ in range(40)))


def test_distractors_are_drawn_deliberately_and_asked_about_their_own_topic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampling, "typed", lambda text, rng: text)  # texts are looked up by their letters
    sampler = Sampler([*RECORDS, *topical(TOPICS, 5), HARMFUL], seed=1, topics=TOPICS)
    steps = [sampler.step(number, 32) for number in range(300)]
    published = [(policy, example) for policy, examples in steps if policy.published for example in examples]
    led = [(policy, example) for policy, example in published if example.source == DISTRACTORS]
    assert len(led) / len(published) == pytest.approx(DISTRACTED, abs=0.05)
    topic_of = {text: of.topic for of in DIALOGUES for text in of.distractors}
    for policy, example in led:
        topic = topic_of[example.prompt]
        assert example.leaves == ((f"{topic.name}: {topic.description}", False),)
        alone = sum(line.topic is not None for line in policy.lines) == 1
        assert example.unsafe is (False if alone else None)
    turns = [example for _, example in published if example.source == TURNS]
    on_topic = [example for example in turns if example.unsafe]
    assert len(on_topic) / len(published) >= ON_TOPIC - 0.05
    assert any(example.unsafe is False for example in turns)  # of another domain
    for example in turns:
        assert all(holds == (example.prompt.partition(" q")[0] == text.partition(":")[0])
                   for text, holds in example.leaves)  # fmt: skip
    for policy, examples in steps:
        if not policy.topical:
            assert not any(example.unsafe for example in examples if example.source in (TURNS, DISTRACTORS))


def test_a_sampler_of_few_and_uneven_dialogues_ends() -> None:
    for turns, distractors in ((1, 0), (0, 1), (1, 1)):
        records = dialogue("garden", "A", turns, distractors).records()
        sampler = Sampler([*records, HARMFUL], seed=0)
        assert all(len(sampler.step(number, 4)[1]) == 4 for number in range(30))


def test_dialogues_resume_from_the_samplers_state() -> None:
    records = [*RECORDS, HARMFUL]
    whole = Sampler(records, seed=1, topics=TOPICS[:0])
    drawn = [whole.step(number, 8) for number in range(40)]
    half = Sampler(records, seed=1)
    for number in range(20):
        half.step(number, 8)
    resumed = Sampler(records, seed=1)
    resumed.state = dict(half.state)
    assert [resumed.step(number, 8) for number in range(20, 40)] == drawn[20:]


def published_row(domain: str, scenario: str) -> dict[str, object]:
    return {
        "domain": domain,
        "scenario": scenario,
        "system_instruction": f"Help with {scenario}",
        "conversation": [{"role": "user", "content": f"Tell me of {scenario} {n}"} for n in range(30)],
        "distractors": [{"bot turn": "Yes.", "distractor": f"After {scenario}, rest {n}"} for n in range(9)],
        "conversation_with_distractors": [],
    }


def test_a_folder_with_the_published_files_is_trained_on_but_for_its_test_topics(tmp_path: Path) -> None:
    train, test = (
        "canttalkaboutthis_topic_control_mixtral.jsonl",
        "canttalkaboutthis_topic_control_human_test_set.jsonl",
    )
    rows = [published_row("garden", f"{n}. roses {n}") for n in range(4)]
    (tmp_path / train).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / test).write_text(json.dumps(rows[2]) + "\n")
    (tmp_path / "train.jsonl").write_text(json.dumps({"prompt": "a plum", "prompt_label": "safe"}) + "\n")
    assert [[file.name for file in files] for files in data_files([tmp_path])] == [
        [train, "train.jsonl"],
        [test],
    ]
    records, validation = load_data([tmp_path], 0, generated=4, contrasts=4, each_topic=2)
    mine = [r for r in (*records, *validation) if r.source in (TURNS, DISTRACTORS)]
    assert {r.raw_category.name for r in mine} == {"roses 0", "roses 1", "roses 3"}
    assert {r.source for r in mine} == {TURNS, DISTRACTORS} and len(mine) == 3 * 39
    # Named by the user, the test file is trained on like any other.
    records, validation = load_data([tmp_path / test], 0, generated=4, contrasts=4, each_topic=2)
    assert {r.raw_category.name for r in records if r.source == TURNS} == {"roses 2"}
    assert any(policy.published for policy, _ in (Sampler(records, 0).step(n, 4) for n in range(40)))
