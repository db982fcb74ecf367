from __future__ import annotations

from collections import Counter

import pytest

from aegis_edge.taxonomy import HAZARDS, find, fold, suggest

# https://platform.openai.com/docs/guides/moderation lists these thirteen.
OPENAI = {
    *("harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent"),
    *("self-harm", "self-harm/intent", "self-harm/instructions", "sexual", "sexual/minors"),
    *("violence", "violence/graphic"),
}


def test_twelve_core_nine_fine_grained_and_two_more_in_code_order():
    assert Counter(h.group for h in HAZARDS) == {
        "core": 12,
        "fine-grained": 9,
        "needs caution": 1,
        "other": 1,
    }
    assert [h.code for h in HAZARDS] == [f"S{n}" for n in range(1, 24)]


def test_no_name_alias_or_code_means_two_things():
    owners: dict[str, set[str]] = {}
    for hazard in HAZARDS:
        for name in (hazard.name, hazard.code, *hazard.aliases):
            owners.setdefault(fold(name), set()).add(hazard.code)
            assert find(name) is hazard
    assert all(len(codes) == 1 for codes in owners.values())


@pytest.mark.parametrize(
    ("written", "code"),
    [
        ("Guns/Illegal Weapons", "S4"),
        ("guns and illegal weapons", "S4"),
        ("Sexual Minor", "S7"),
        ("sexual (minor)", "S7"),
        ("SUICIDE AND SELF-HARM", "S6"),
        ("Suicide/Self-Harm", "S6"),
        ("political/misinfo/conspiracy", "S19"),
        ("pii", "S9"),
        ("hate", "S8"),
        ("s23", "S23"),
        (" S1: ", "S1"),
        ("High_Risk_Gov_Decision_Making", "S18"),
        ("Ｖｉｏｌｅｎｃｅ", "S1"),
        ("Unauthorised Advice", "S21"),
    ],
)
def test_spelling_variants_are_found(written, code):
    hazard = find(written)
    assert hazard is not None and hazard.code == code


@pytest.mark.parametrize(
    "written", ["", "and", "S0", "S24", "S 1", "weather", "sex", "gun", "violence violence"]
)
def test_what_is_not_in_the_taxonomy_is_not_guessed(written):
    assert find(written) is None


def test_a_misspelt_name_gets_a_suggestion_and_a_strange_one_none():
    assert suggest("Violense") == "Violence"
    assert suggest("weather") is None


def test_openai_categories_are_real_and_the_unmapped_stay_unmapped():
    assert {h.openai for h in HAZARDS} - {None} <= OPENAI
    unmapped = [h.name for h in HAZARDS if h.openai is None]
    assert {"PII/Privacy", "Profanity", "Needs Caution", "Other"} <= set(unmapped)
