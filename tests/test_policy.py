from __future__ import annotations

import dataclasses

import pytest

from aegis_edge import Category, Policy, PolicyError, Thresholds
from aegis_edge.taxonomy import HAZARDS

CUSTOM = Category("Competitor talk", description="Recommends another vendor's product.")


def test_the_default_is_the_taxonomy_by_name_in_code_order():
    policy = Policy.default()
    assert [(c.name, c.code, c.text) for c in policy.categories] == [
        (h.name, h.code, h.name) for h in HAZARDS
    ]
    assert policy.thresholds == Thresholds(0.5, 0.5, 0.5)


def test_a_custom_category_reads_as_name_and_description():
    assert CUSTOM.text == "Competitor talk: Recommends another vendor's product."


def test_toml_short_and_long_form():
    policy = Policy.from_toml(
        """
        categories = ["s1", "Guns/Illegal Weapons", { name = "Malware", threshold = 0.7 }]
        [thresholds]
        prompt = 0.6
        """
    )
    assert [c.name for c in policy.categories] == ["Violence", "Guns and Illegal Weapons", "Malware"]
    assert policy.thresholds == Thresholds(prompt=0.6)
    assert [policy.threshold_of(c) for c in policy.categories] == [0.5, 0.5, 0.7]
    long = Policy.from_toml(
        """
        [[categories]]
        name = "Competitor talk"
        description = "Recommends another vendor's product."
        [[categories]]
        name = "hate"
        """
    )
    assert long.categories == (CUSTOM, Category.of("Hate/Identity Hate"))


def test_an_empty_file_is_the_default_policy():
    assert Policy.from_toml("") == Policy.default()


def test_dict_round_trip():
    policy = Policy((Category.of("S9", threshold=0.25), CUSTOM), Thresholds(0.4, 0.6, 0.9))
    assert Policy.from_dict(policy.to_dict()) == policy
    assert Policy.from_dict(Policy.default().to_dict()) == Policy.default()


def test_the_hash_is_canonical_and_tells_every_field():
    base = Policy((CUSTOM, Category.of("S1")), Thresholds())
    assert base.sha256 == Policy.from_dict(base.to_dict()).sha256
    assert len(base.sha256) == 64
    others = [
        Policy((Category.of("S1"), CUSTOM)),
        Policy((CUSTOM,)),
        *(Policy((dataclasses.replace(CUSTOM, **change), Category.of("S1")))
          for change in ({"name": "x"}, {"code": "x"}, {"description": "x"}, {"threshold": 0.1})),
        *(dataclasses.replace(base, thresholds=Thresholds(**{key: 0.1}))
          for key in ("prompt", "response", "category")),
    ]  # fmt: skip
    assert len({base.sha256, *(policy.sha256 for policy in others)}) == len(others) + 1


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ('categories = "S1"', "line 1: categories: expected a list, found text"),
        ("categories = []", "line 1: categories: a policy has 1 to 256 categories, not 0"),
        ("\n\ncategories = [3]", "line 3: categories[0]: expected a name or a table, found a number"),
        ('categories = [\n"S1",\n"Violense"]',
         "line 3: categories[1].name: 'Violense' is not in the taxonomy"),
        ('categories = [\n"S1",\n"violence"]', "line 3: categories[1]: 'Violence' repeats categories[0]"),
        ('categories = [\n"S1",\n"S1"]', "line 3: categories[1]: 'Violence' repeats categories[0]"),
        ('categories = [{ threshold = 0.5 }]', "line 1: categories[0]: a category needs a name"),
        ('categories = [{ name = "S1", level = 1 }]', "line 1: categories[0].level: unknown key"),
        ('[[categories]]\nname = "S1"\n[[categories]]\nname = "S2"\nthreshold = 1.0',
         "line 5: categories[1].threshold: 1.0 is no probability between 0 and 1"),
        ('[[categories]]\nname = 7', "line 2: categories[0].name: expected text, found a number"),
        ('[[categories]]\nname = "a"\ndescription = "b\\nc"',
         "line 3: categories[0].description: holds the control character U+000A"),
        ('[[categories]]\nname = "a "\ndescription = "b"',
         "line 2: categories[0].name: is empty, or begins or ends with white space"),
        ('[[categories]]\nname = "a"\ncode = "S1"\ndescription = "b"',
         "line 3: categories[0].code: code 'S1' belongs to 'Violence' of the taxonomy"),
        ('[[categories]]\nname = "S1"\ncode = "S2"',
         "line 2: categories[0].name: 'Violence' is 'Violence' (S1) of the taxonomy"),
        ("[thresholds]\nresponse = 0.5\nprompt = true",
         "line 3: thresholds.prompt: expected a probability, found true/false"),
        ("[thresholds]\nprompt = nan", "line 2: thresholds.prompt: nan is no probability between 0 and 1"),
        ("[thresholds]\npromt = 0.5", "line 2: thresholds.promt: unknown key"),
        ("thresholds = 0.5", "line 1: thresholds: expected a table, found a number"),
        ("color = 1", "line 1: color: unknown key"),
        ("a = \nb = 1", "not valid TOML: Invalid value (at line 1, column 5)"),
        ("x = " + "[" * 5000, "not valid TOML: nested too deeply"),
    ],
)  # fmt: skip
def test_a_malformed_policy_is_refused_by_line_and_key(toml, message):
    with pytest.raises(PolicyError) as caught:
        Policy.from_toml(toml)
    assert str(caught.value).startswith(message)


def test_unknown_categories_get_a_hint():
    with pytest.raises(PolicyError) as caught:
        Policy.from_dict({"categories": ["Violense"]})
    assert caught.value.hint == "did you mean 'Violence'?"
    with pytest.raises(PolicyError) as caught:
        Policy.from_dict({"categories": ["weather"]})
    assert caught.value.hint == "describe it, or name a category of the taxonomy"


def test_a_file_is_named_in_its_errors(tmp_path):
    path = tmp_path / "policy.toml"
    with pytest.raises(PolicyError, match=r"policy\.toml: can not be read"):
        Policy.from_file(path)
    path.write_bytes(b"\xff")
    with pytest.raises(PolicyError, match=r"policy\.toml: can not be read"):
        Policy.from_file(path)
    path.write_text("[thresholds]\nprompt = 7")
    with pytest.raises(PolicyError, match=r"policy\.toml: line 2: thresholds\.prompt: 7 is no probability"):
        Policy.from_file(path)
    path.write_text("categories = ['S3']")
    assert [c.code for c in Policy.from_file(path).categories] == ["S3"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Category("x" * 101, description="d"), "name: has 101 characters; at most 100"),
        (lambda: Category("x", description="d" * 1001), "description: has 1001 characters; at most 1000"),
        (lambda: Category("x\u2028y", description="d"), "name: holds the control character U+2028"),
        (lambda: Category("x\ud800y", description="d"), "name: holds the control character U+D800"),
        (lambda: Category("x", description=""), "description: is empty, or begins or ends with white space"),
        (lambda: Category("violence"), "name: 'violence' is 'Violence' (S1) of the taxonomy"),
        (lambda: Thresholds(prompt=0), "prompt: 0 is no probability between 0 and 1"),
        (lambda: Policy.from_dict([1]), "a policy is a table, found a list"),  # type: ignore[arg-type]
        (lambda: Policy((CUSTOM, dataclasses.replace(CUSTOM, name="competitor-talk"))),
         "categories[1]: 'competitor-talk' repeats categories[0]"),
    ],
)  # fmt: skip
def test_the_classes_refuse_what_the_files_may_not_say(make, message):
    with pytest.raises(PolicyError) as caught:
        make()
    assert str(caught.value) == message


def test_what_decides():
    assert not Policy.default().by_categories
    assert Policy(Policy.default().categories[1:]).by_categories  # one left out
    custom = Category("Locks", description="Talks about locks.")
    assert Policy((*Policy.default().categories, custom)).by_categories  # one added
    described = (Category.of("Violence", description="Words of it."), *Policy.default().categories[1:])
    assert not Policy(described).by_categories
    assert not Policy((custom,), decided_by="verdict").by_categories
    assert Policy(decided_by="categories").by_categories
    policy = Policy.from_toml('decided_by = "verdict"\ncategories = ["S1"]')
    assert policy.decided_by == "verdict" and Policy.from_dict(policy.to_dict()) == policy
    assert "decided_by" not in Policy.default().to_dict()  # policies written before stay as they were
    with pytest.raises(
        PolicyError, match="line 2: decided_by: 'leaf' is not one of auto, verdict, categories"
    ):
        Policy.from_toml('categories = ["S1"]\ndecided_by = "leaf"')


def test_allowed_topics():
    text = """
        [[categories]]
        name = "Chess"
        description = "The game."
        allowed = true
    """
    policy = Policy.from_toml(text)
    assert policy == Policy((Category("Chess", description="The game.", allowed=True),))
    assert policy.by_categories and Policy.from_dict(policy.to_dict()) == policy
    forbidden = Policy((Category("Chess", description="The game."),))
    assert "allowed" not in forbidden.to_dict()["categories"][0]  # policies written before stay as they were
    assert policy.sha256 != forbidden.sha256
    for bad, message in (
        (
            text.replace("true", '"yes"'),
            r"line 5: categories\[0\].allowed: expected true or false, found text",
        ),
        (text.replace("Chess", "Violence"), r"line 5: categories\[0\].allowed: 'Violence' is a hazard"),
        ('decided_by = "verdict"' + text, "line 1: decided_by: allowed topics are found by the categories"),
    ):
        with pytest.raises(PolicyError, match=message):
            Policy.from_toml(bad)


def test_what_a_guard_can_not_take_is_told_with_file_and_line(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        '[[categories]]\nname = "S1"\n\n[[categories]]\nname = "Tea"\ndescription = "All."\nallowed = true\n'
    )
    policy = Policy.from_file(file)
    error = policy.refusal("categories[1].allowed", "no topics here", "leave it out")
    assert str(error) == f"{file}: line 7: categories[1].allowed: no topics here"
    assert error.hint == "leave it out"
    assert str(Policy().refusal("decided_by", "not here")) == "decided_by: not here"
    assert Policy.from_dict(policy.to_dict()) == policy  # where it came from is no part of it
