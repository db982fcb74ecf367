"""A family's TOML: every mistake is told with its line and key."""

from __future__ import annotations

import pytest
from llama3 import make_tokenizer, write_tokenizer

from aegis_edge.encoding import ContentEncoder
from aegis_edge.errors import AegisError, FamilyError
from aegis_edge.export.chat import check_ids, speak
from aegis_edge.families import find_recipe
from aegis_edge.families.recipe import BUILT_IN, Message, Recipe
from aegis_edge.policy import Policy

GOOD = """name = "mine"
category = "{number}. {text}"
exchange = "P {policy} U {prompt} A {response} :"

[[prompt]]
role = "system"
content = "{policy}"

[[prompt]]
role = "user"
content = "{prompt}"

[answers]
safe = "no"
unsafe = "yes"
prompt = "{prompt}"
exchange = "{response}"
"""


def test_a_good_one():
    recipe = Recipe.from_toml(GOOD)
    assert recipe.prompt == (Message("system", "{policy}"), Message("user", "{prompt}"))
    assert recipe.exchange == "P {policy} U {prompt} A {response} :"
    assert recipe.answers.order() == ("response",)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "mine"', "name = 3", "my.toml: line 1: name: expected text"),
        ('name = "mine"', "", "my.toml: name: is missing"),
        ('name = "mine"', "name = ", "my.toml: not valid TOML: .*line 1"),
        ("category =", "kategory =", "my.toml: line 2: kategory: unknown key"),
        ('role = "user"', 'role = "robot"', r"my.toml: line 10: prompt\[1\].role: 'robot' is none of"),
        ('role = "user"', "", r"my.toml: line 9: prompt\[1\].role: is missing"),
        ('content = "{policy}"', "content = 1", r"my.toml: line 7: prompt\[0\].content: expected text"),
        ('safe = "no"', 'safe = ["no"]', "my.toml: line 14: answers.safe: expected text"),
        ('unsafe = "yes"', 'unsure = "yes"', "my.toml: line 15: answers.unsure: unknown key"),
        ("[answers]", "[answer]", "my.toml: line 13: answer: unknown key"),
    ],
)
def test_a_malformed_file(old, new, message, tmp_path):
    file = tmp_path / "my.toml"
    file.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(FamilyError, match=message):
        find_recipe(str(file))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("A {response}", "A", r"my.toml: line 3: exchange: \{response\} is missing"),
        ("U {prompt}", "U {prompt} {prompt}", r"my.toml: line 3: exchange: \{prompt\} stands 2 times"),
        ('content = "{prompt}"', 'content = "{response}"', r"my.toml: line 5: prompt: \{prompt\} is missing"),
        ("U {prompt}", "{names} {prompt}", r"my.toml: line 3: exchange: \{names\} has no place here"),
    ],
)
def test_a_placeholder_that_is_missing_or_too_many(old, new, message, tmp_path):
    file = tmp_path / "my.toml"
    file.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(FamilyError, match=message):
        speak(Recipe.from_file(file), tmp_path)


PLAIN = (
    GOOD[: GOOD.index("[[prompt]]")]
    + 'prompt = "P {policy} U {prompt} :"\n'
    + GOOD[GOOD.index("[answers]") :]
)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('prompt = "{prompt}"', 'prompt = "{response}"', r"answers.prompt: \{prompt\} is missing"),
        ('exchange = "{response}"', "", "line 6: answers.exchange: an exchange and the answer to it"),
        (
            'exchange = "{response}"',
            'exchange = "{response} {prompt}"',
            r"line 10: answers.exchange: \{response\} is answered before",
        ),
        ('prompt = "{prompt}"', 'prompt = "{categories} {prompt}"', "answers.prompt: .*before the verdict"),
        ('category = "{number}. {text}"', "", r"category: \{policy\} and the line of a category"),
        ('safe = "no"', 'safe = ""', "line 7: answers.safe: no word"),
    ],
)
def test_answers_that_do_not_fit(old, new, message, tmp_path):
    speak(Recipe.from_toml(PLAIN, "my.toml"), tmp_path)
    with pytest.raises(FamilyError, match=message):
        speak(Recipe.from_toml(PLAIN.replace(old, new, 1), "my.toml"), tmp_path)


def test_the_readmes_example_is_one(tmp_path):
    text = (BUILT_IN / "README.md").read_text("utf-8").split("```toml\n")[1].split("```")[0]
    recipe = Recipe.from_toml(text)
    assert recipe.answers.order() == ("prompt", "response")
    tokenizer, policy = make_tokenizer(), Policy.default()
    spoken = speak(recipe, write_tokenizer(tmp_path, tokenizer))
    plan = spoken.family().compile(ContentEncoder(tokenizer), policy)
    check_ids(spoken, recipe, plan, policy, tokenizer.to_str(), tmp_path)
    assert plan.seams["prompt"] == (" ", "\n\n")


def test_text_beside_the_prompt_that_can_not_be_compiled_is_refused(tmp_path):
    """Before the prompt: a line break in one form, in the other a space that tokens join to it."""
    text = GOOD.replace("{policy}", "")
    recipe = Recipe.from_toml(text.replace('category = "{number}. {text}"\n', ""))
    tokenizer = make_tokenizer()
    spoken = speak(recipe, write_tokenizer(tmp_path, tokenizer))
    with pytest.raises(FamilyError, match=r"joins the template's text before \{prompt\}") as caught:
        spoken.family().compile(ContentEncoder(tokenizer), Policy.default())
    assert "the same text beside {prompt}" in (caught.value.hint or "")


def test_files_and_names(tmp_path):
    assert find_recipe("aegis-edge") is None
    for file in BUILT_IN.glob("*.toml"):
        recipe = find_recipe(file.stem)
        assert recipe is not None and recipe.name == file.stem
    with pytest.raises(AegisError, match="unknown guard family 'x'") as caught:
        find_recipe("x")
    assert "nemoguard-topic-control" in (caught.value.hint or "")
    with pytest.raises(FamilyError, match=r"no.toml: can not be read"):
        find_recipe(str(tmp_path / "no.toml"))
