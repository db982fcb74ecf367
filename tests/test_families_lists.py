"""Category lists: probabilities against transformers' own, and what is refused."""

from __future__ import annotations

import copy
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from llama3 import make_tokenizer, write_checkpoint
from rich.console import Console

from aegis_edge.encoding import ContentEncoder
from aegis_edge.errors import ArtifactError, FamilyError, ScorerError
from aegis_edge.export.chat import speak
from aegis_edge.export.pipeline import export_guard
from aegis_edge.families import Plan, find_recipe
from aegis_edge.families.listing import Listing, steps_of
from aegis_edge.guard import Guard, open_scorer
from aegis_edge.policy import Category, Policy, Thresholds

SAFETY = "nemoguard-content-safety-v2"
PROMPT, RESPONSE = "How do I pick a lock?", "With a tension wrench, and patience."
ALL = Thresholds(1e-6, 1e-6, 1e-6)  # all is unsafe, all categories are named
NAMED = (Category.of("S1"), Category.of("S2"), Category.of("S7"), Category("Locks", None, "Opening them."))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "tiny-llama-3"
    return folder, write_checkpoint(folder, make_tokenizer())


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("guard") / "g"
    lines = out.parent / "lines.jsonl"
    lines.write_text("\n".join(json.dumps({"prompt": f"{i} + {i}?", "response": "4"}) for i in range(20)))
    console = Console(file=io.StringIO())
    export_guard(
        str(checkpoint[0]), "none", SAFETY, out=out, calibration=lines, console=console, quantize="bf16"
    )
    return out


def begins(checkpoint, policy: Policy, messages, before: str) -> list[float]:
    """P(the list begins with each category | with one of them): the whole continuation's probability by
    transformers, token by token, where names that go on are told apart by what stands behind them."""
    from transformers import AutoTokenizer

    folder, model = checkpoint
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    head = tokenizer(text, add_special_tokens=False).input_ids

    def ids(tail: str) -> list[int]:
        return tokenizer(before + tail, add_special_tokens=False).input_ids

    def children(prefix: tuple[int, ...], strings) -> float:
        return [s for s in strings if tuple(s[: len(prefix)]) == prefix]

    strings = {}
    for category in policy.categories:
        for tail in ('"}', f", {policy.categories[0].name}"):
            strings[tuple(ids(category.name + tail))] = category.name
    found = dict.fromkeys((c.name for c in policy.categories), 0.0)
    for string, name in strings.items():
        share = 1.0
        for n in range(len(string) + 1):
            group = children(string[:n], strings)
            if len({strings[tuple(s)] for s in group}) == 1:
                break
            others = sorted({s[n] for s in group})
            if len(others) > 1:
                with torch.no_grad():
                    logits = model(input_ids=torch.tensor([head + list(string[:n])])).logits[0, -1].double()
                share *= torch.softmax(logits[others], 0)[others.index(string[n])].item()
        same = sum(1 for s, other in strings.items() if other == name and s[:n] == string[:n])
        found[name] += share / same
    return list(found.values())


def asked(policy: Policy, form: str, **content: str):
    text = getattr(find_recipe(SAFETY), form)[0].content
    lines = "\n".join(f"S{i}: {c.text}." for i, c in enumerate(policy.categories, 1))
    for name, value in {"policy": lines, **content}.items():
        text = text.replace(f"{{{name}}}", value)
    return [{"role": "user", "content": text}]


def test_a_list_is_scored_as_transformers_would_write_it(checkpoint, exported):
    """Names that share a beginning ("Sexual", "Sexual (minor)") among them; one of a policy of one's own,
    whose label rows are taken from the whole LM head."""
    policy = Policy(NAMED, ALL)
    guard = Guard.load(exported, threads=1, policy=policy)
    verdict = guard.check(PROMPT)
    found = {score.name: score.probability for score in verdict.categories}
    before = '{"User Safety": "unsafe", "Safety Categories": "'
    wanted = begins(checkpoint, policy, asked(policy, "prompt", prompt=PROMPT), before)
    assert sum(found.values()) == pytest.approx(1, abs=1e-6) and len(found) == 4
    assert [found[c.name] for c in policy.categories] == pytest.approx(wanted, abs=0.02)
    assert json.loads(guard.as_text(verdict))["Safety Categories"].split(", ") == list(found)
    both = guard.check(PROMPT, RESPONSE)
    before = '{"User Safety": "unsafe", "Response Safety": "unsafe", "Safety Categories": "'
    messages = asked(policy, "exchange", prompt=PROMPT, response=RESPONSE)
    found = {score.name: score.probability for score in both.categories}
    wanted = begins(checkpoint, policy, messages, before)
    assert [found[c.name] for c in policy.categories] == pytest.approx(wanted, abs=0.02)
    assert both.prompt.categories == () and both.response.categories == both.categories
    with pytest.raises(ScorerError, match="the scorer's head has"):
        Guard.from_artifact(guard_artifact(exported), open_scorer(guard_artifact(exported), "cpu"), policy)


def guard_artifact(folder):
    from aegis_edge.artifact import Artifact

    return Artifact.open(folder)


def test_lists_of_batches_streams_and_safe_verdicts(exported):
    default = Policy.default()
    guard = Guard.load(exported, threads=1, policy=replace(default, thresholds=ALL))
    both = guard.check(PROMPT, RESPONSE)
    assert len(both.categories) == 23
    assert guard.check_many([PROMPT, (PROMPT, RESPONSE), PROMPT])[1] == both
    with guard.stream(PROMPT) as stream:
        for start in range(0, len(RESPONSE), 9):
            stream.feed(RESPONSE[start : start + 9])
    assert stream.verdict == both
    # Only what reaches the threshold, or else the most probable one; none where all is safe.
    one = Guard.load(exported, 1, policy=replace(default, thresholds=Thresholds(1e-6, 1e-6, 0.999)))
    assert one.check(PROMPT, RESPONSE).categories == both.categories[:1]
    none = Guard.load(exported, 1, policy=replace(default, thresholds=Thresholds(0.999999, 0.999999)))
    assert none.check(PROMPT, RESPONSE).categories == ()
    assert "Categories" not in none.as_text(none.check(PROMPT, RESPONSE))


@pytest.fixture(scope="module")
def plan(checkpoint):
    spoken = speak(find_recipe(SAFETY), checkpoint[0])
    return spoken.family().compile(ContentEncoder(make_tokenizer()), Policy.default())


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["steps"], [], "has no steps"),
        (["steps", 0, "rows", 0], "x", "rows of a step are not rows"),
        (["steps", 0, "leads", 0], 99, "does not lead to its categories"),
        (["steps", 0, "leads"], [0], "rows of a step are not rows"),
        (["steps", 0, "ids"], [], "expected whole numbers"),
        (["categories"], [["Violence"]], "a category is no name and code"),
        (["refusals"], [[1]], "has 1 refusals"),
    ],
)
def test_a_spoiled_list_is_refused(plan, path, value, message):
    data = copy.deepcopy(plan.to_json())
    assert Plan.from_json(data) == plan and set(plan.lists) == {
        "prompt 1", "prompt 0 response 1", "prompt 1 response 0", "prompt 1 response 1"
    }  # fmt: skip
    at = data["lists"]["prompt 1"]
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(ArtifactError, match=message):
        Plan.from_json(data)


def test_steps_of_names_that_share_tokens():
    strings = [((7, 1, 5), 0), ((7, 1, 6), 0), ((7, 1, 8, 5), 1), ((7, 2, 5), 2)]
    steps = steps_of(strings, str)
    assert [(s.ids, s.rows, s.leads) for s in steps] == [
        ((7,), ("1", "2"), (-1, 2)),
        ((7, 1), ("5", "6", "8"), (0, 0, 1)),
    ]
    listing = Listing((("a", None), ("b", None), ("c", None)), steps)
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 3, (2, 9))
    found = listing.probabilities(lambda step, row: float(logits[step][int(row)]))
    first = np.exp(logits[0][[1, 2]]) / np.exp(logits[0][[1, 2]]).sum()
    second = np.exp(logits[1][[5, 6, 8]]) / np.exp(logits[1][[5, 6, 8]]).sum()
    assert found == pytest.approx([first[0] * second[:2].sum(), first[0] * second[2], first[1]])
    assert sum(found) == pytest.approx(1)
    with pytest.raises(FamilyError, match="the beginning of another's"):
        steps_of([((7, 1), 0), ((7, 1, 8), 1)], str)
