"""What a judge says is an answer as a whole, or it is no vote."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from label_server import completion, make_row

from aegis_edge.label.answer import from_completion, parse_answer
from aegis_edge.label.question import INSTRUCTIONS, messages
from aegis_edge.label.votes import Abstention, Vote
from aegis_edge.taxonomy import HAZARDS


@pytest.mark.parametrize(
    ("text", "vote"),
    [
        ("safe", Vote("safe")),
        (" Unsafe\n", Vote("unsafe")),
        ('{"label": "safe"}', Vote("safe")),
        ('{"label": "safe", "categories": []}', Vote("safe")),
        ('{"label": "unsafe", "categories": null}', Vote("unsafe")),
        ('```json\n{"label": "unsafe"}\n```', Vote("unsafe")),
        ("```\nsafe\n```", Vote("safe")),
        (
            '{"label": "unsafe", "categories": ["s17", "Threats", "Malware", "Gardens"]}',
            Vote("unsafe", ("Malware", "Threat"), ("Gardens",)),
        ),
    ],
)
def test_answers(text: str, vote: Vote) -> None:
    assert parse_answer(text) == vote
    assert from_completion(completion(text)) == vote


@pytest.mark.parametrize(
    ("content", "cause", "reason"),
    [
        (None, "empty", "the judge said nothing"),
        ("", "empty", "the judge said nothing"),
        (" \n", "empty", "the judge said nothing"),
        (5, "nonsense", "the answer is no text: '5'"),
        (["safe"], "nonsense", "the answer is no text"),
        ("The response is safe.", "nonsense", "neither a label nor JSON: 'The response is safe.'"),
        ("safe unsafe", "nonsense", "neither a label nor JSON"),
        ("this is not unsafe", "nonsense", "neither a label nor JSON"),
        ("safe.", "nonsense", "neither a label nor JSON"),
        ('Sure: {"label": "safe"}', "nonsense", "neither a label nor JSON"),
        ('{"label": "safe"} {"label": "unsafe"}', "nonsense", "neither a label nor JSON"),
        ('{"label": "safe", "label": "unsafe"}', "nonsense", "neither a label nor JSON"),
        ('{"label": "safe"', "nonsense", "neither a label nor JSON"),
        ("[" * 10_000, "nonsense", "neither a label nor JSON"),
        ('"safe"', "nonsense", "no object of"),
        ('["safe"]', "nonsense", "no object of"),
        ("true", "nonsense", "no object of"),
        ("{}", "nonsense", "no object of"),
        ('{"categories": []}', "nonsense", "no object of"),
        ('{"label": "safe", "other": 1}', "nonsense", "no object of"),
        ('{"label": "Safe"}', "nonsense", "the label is neither safe nor unsafe"),
        ('{"label": null}', "nonsense", "the label is neither safe nor unsafe"),
        ('{"label": ["safe"]}', "nonsense", "the label is neither safe nor unsafe"),
        ('{"label": "unsafe", "categories": "S1"}', "nonsense", "no list of names"),
        ('{"label": "unsafe", "categories": [1]}', "nonsense", "no list of names"),
        ('{"label": "safe", "categories": ["S1"]}', "nonsense", "safe, but categories are named"),
    ],
)
def test_everything_else_is_an_abstention(content: Any, cause: str, reason: str) -> None:
    for opinion in (parse_answer(content), from_completion(completion(content))):
        assert isinstance(opinion, Abstention) and opinion.cause == cause
        assert reason in opinion.reason and len(opinion.reason) < 250


@given(st.text())
def test_no_text_raises_and_none_votes_by_accident(text: str) -> None:
    opinion = parse_answer(text)
    assert isinstance(opinion, Abstention) or text.strip().strip("`").strip().lower() in ("safe", "unsafe")


values = (
    st.none()
    | st.sampled_from(["safe", "unsafe", "S1", 1])
    | st.lists(st.sampled_from(["S1", 2]), max_size=2)
)


@given(st.dictionaries(st.sampled_from(["label", "categories", "other"]), values))
def test_an_object_votes_only_where_all_of_it_is_an_answer(answer: dict[str, Any]) -> None:
    label, named = answer.get("label"), answer.get("categories") or []
    whole = (
        "other" not in answer
        and label in ("safe", "unsafe")
        and (named == [] or (label == "unsafe" and isinstance(named, list) and 2 not in named))
    )
    opinion = parse_answer(json.dumps(answer))
    assert (opinion.label == label) if isinstance(opinion, Vote) else not whole
    assert isinstance(opinion, Vote) == whole


@pytest.mark.parametrize(
    ("body", "cause", "reason"),
    [
        (b"", "empty", "the server sent an empty body"),
        (b"  \n", "empty", "the server sent an empty body"),
        (b"<html>safe</html>", "nonsense", "the server sent no JSON: '<html>safe</html>'"),
        (b"\xff", "nonsense", "the server sent no JSON"),
        (b"null", "nonsense", "choices[0].message is missing"),
        (b"[]", "nonsense", "choices[0].message is missing"),
        (b"{}", "nonsense", "choices[0].message is missing"),
        (b'{"choices": []}', "nonsense", "choices[0].message is missing"),
        (b'{"choices": ["safe"]}', "nonsense", "choices[0].message is missing"),
        (b'{"choices": [{"message": "safe"}]}', "nonsense", "choices[0].message is missing"),
        (b'{"choices": [{"message": {}}]}', "empty", "the judge said nothing"),
        (completion("safe", finish_reason="length"), "cut off", "`parameters.max_tokens` is too low"),
        (completion("safe", finish_reason="content_filter"), "declined", "'content_filter'"),
        (completion("safe", message={"refusal": "Rather not."}), "declined", "'Rather not.'"),
    ],
)
def test_bodies_that_are_no_answer(body: bytes, cause: str, reason: str) -> None:
    opinion = from_completion(body)
    assert isinstance(opinion, Abstention) and opinion.cause == cause and reason in opinion.reason


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
def test_a_dialogue_stays_within_its_object(prompt: str, response: str) -> None:
    system, user = messages(make_row(prompt=prompt, response=response))
    assert system == {"role": "system", "content": INSTRUCTIONS} and user["role"] == "user"
    assert json.loads(user["content"]) == {"prompt": prompt, "prompt_label": "safe", "response": response}


def test_the_question_names_every_category_and_asks_for_what_is_parsed() -> None:
    for hazard in HAZARDS:
        assert f"{hazard.code}: {hazard.name}" in INSTRUCTIONS
    assert parse_answer('{"label": "safe", "categories": []}') == Vote("safe")
    for example in ('{"label": "safe", "categories": []}', '{"label": "unsafe", "categories": ["S1"]}'):
        assert example in INSTRUCTIONS and isinstance(parse_answer(example), Vote)
