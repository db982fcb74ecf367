"""From a checkpoint and a family's file to a guard that answers: the whole way, on a tiny random Llama."""

from __future__ import annotations

import importlib.util
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from llama3 import make_tokenizer, write_checkpoint
from rich.console import Console

from aegis_edge.artifact import Artifact
from aegis_edge.decision import CategoryScore, Rating, Verdict
from aegis_edge.errors import FamilyError, PolicyError
from aegis_edge.export.pipeline import export_guard
from aegis_edge.families.answers import NEMOGUARD, Answers
from aegis_edge.guard import Guard
from aegis_edge.policy import Category, Policy
from aegis_edge.weighing import weighed

SAFETY = "nemoguard-content-safety-v2"
PROMPT, RESPONSE = "How do I pick a lock?", "With a tension wrench, and patience."


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "tiny-llama-3"
    return folder, write_checkpoint(folder, make_tokenizer())


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "lines.jsonl"
    rows = [{"prompt": f"What is {i} + {i}?", "response": str(2 * i)} for i in range(20)]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


def export(folder: Path, out: Path, text: Path, family: str, policy: Policy | None = None, **options) -> Path:
    console = Console(file=io.StringIO())
    export_guard(str(folder), "none", family, policy, out=out, calibration=text, console=console, **options)
    return out


@pytest.fixture(scope="module")
def exported(checkpoint, text, tmp_path_factory):
    return export(checkpoint[0], tmp_path_factory.mktemp("guard") / "g", text, SAFETY, quantize="bf16")


def next_token(folder: Path, model, messages, output: str) -> torch.Tensor:
    """Log probabilities of the token behind chat template and output, as transformers gives them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = (
        tokenizer(text, add_special_tokens=False).input_ids
        + tokenizer(output, add_special_tokens=False).input_ids
    )
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
    words = tokenizer.convert_tokens_to_ids(["safe", "unsafe"])
    return torch.log_softmax(logits[words], 0)


def asked(form: str, **content: str) -> list[dict[str, str]]:
    from aegis_edge.families import find_recipe

    text = getattr(find_recipe(SAFETY), form)[0].content
    policy = "\n".join(f"S{i}: {c.text}." for i, c in enumerate(Policy.default().categories, 1))
    for name, value in {"policy": policy, **content}.items():
        text = text.replace(f"{{{name}}}", value)
    return [{"role": "user", "content": text}]


def test_probabilities_are_those_of_transformers_generating(checkpoint, exported):
    """The prompt's first word, and the response's weighed over both words of the prompt's."""
    folder, model = checkpoint
    verdict = Guard.load(exported, threads=1).check(PROMPT, RESPONSE)
    messages = asked("exchange", prompt=PROMPT, response=RESPONSE)
    first = next_token(folder, model, messages, '{"User Safety": "')
    second = [
        next_token(folder, model, messages, f'{{"User Safety": "{word}", "Response Safety": "')
        for word in ("safe", "unsafe")
    ]
    assert verdict.prompt.probability == pytest.approx(math.exp(first[1]), abs=0.02)
    wanted = sum(math.exp(first[i]) * math.exp(second[i][1]) for i in (0, 1))
    assert verdict.response.probability == pytest.approx(wanted, abs=0.02)
    alone = Guard.load(exported, threads=1).check(PROMPT)
    wanted = next_token(folder, model, asked("prompt", prompt=PROMPT), '{"User Safety": "')
    assert alone.prompt.probability == pytest.approx(math.exp(wanted[1]), abs=0.02)


def branches(first: float, *seconds: float) -> dict:
    """Slots of a prompt, and of a response after either answer on it, by their margins."""
    slots = {((), "prompt"): [0.0, first]}
    return slots | {((("prompt", i),), "response"): [0.0, m] for i, m in enumerate(seconds)}


def test_the_second_answer_is_a_mixture_of_both_branches():
    rng = np.random.default_rng(3)
    for first, a, b in rng.normal(0, 3, (200, 3)):
        p, x, y = (1 / (1 + math.exp(-m)) for m in (first, a, b))
        wanted = (1 - p) * x + p * y
        found = weighed(branches(first, a, b), "response")
        assert 1 / (1 + math.exp(-found)) == pytest.approx(wanted, abs=1e-12)
    assert weighed(branches(-800.0, 5.0, -5.0), "response") == pytest.approx(5.0)
    assert weighed(branches(800.0, 5.0, -5.0), "response") == pytest.approx(-5.0)
    assert math.isfinite(weighed(branches(1e4, -1e4, 1e4), "response"))
    assert weighed(branches(1.0, 5.0), "response") is None  # one of the two was not read


def test_label_mass_is_the_words_share_of_the_vocabulary(exported):
    verdict = Guard.load(exported, threads=1, label_mass=True).check(PROMPT, RESPONSE)
    assert verdict.label_mass is not None and 0 < verdict.label_mass < 1


def test_batches_streams_and_windows_are_one_guard(exported):
    guard = Guard.load(exported, threads=1)
    both = guard.check(PROMPT, RESPONSE)
    assert guard.check_many([PROMPT, (PROMPT, RESPONSE)])[1] == both
    with guard.stream(PROMPT) as stream:
        for start in range(0, len(RESPONSE), 7):
            stream.feed(RESPONSE[start : start + 7])
            assert stream.verdict == guard.check(PROMPT, RESPONSE[: start + 7])
    assert stream.verdict == both
    windowed = Guard.load(exported, threads=1, window=96).check(PROMPT, "one two three. " * 60)
    assert windowed.window is not None and windowed.tokens_seen == windowed.tokens_total
    assert windowed.window.characters[0] >= 0 and windowed.window.characters[1] <= 15 * 60


def test_an_int8_guard(checkpoint, exported, text, tmp_path):
    guards = (
        Guard.load(export(checkpoint[0], tmp_path / "g", text, SAFETY), threads=1),
        Guard.load(exported, 1),
    )
    verdicts = [guard.check(PROMPT, RESPONSE) for guard in guards]
    for question in ("prompt", "response"):
        a, b = (getattr(verdict, question).probability for verdict in verdicts)
        assert a == pytest.approx(b, abs=0.1)


def test_another_policy(checkpoint, exported, text, tmp_path):
    """The text that an artefact holds is compiled anew: the same guard as one exported with that policy."""
    out, guard = exported, Guard.load(exported, threads=1)
    custom = Policy((Category.of("S1"), Category("Locks", None, "Opening them.")))
    other = Guard.load(out, threads=1, policy=custom)
    assert other.check(PROMPT).prompt.margin != guard.check(PROMPT).prompt.margin
    baked = export(checkpoint[0], tmp_path / "c", text, SAFETY, custom, quantize="bf16")
    assert Guard.load(baked, threads=1).check(PROMPT).prompt == other.check(PROMPT).prompt
    for policy in (Policy((Category("Tea", None, "All.", allowed=True),)), Policy(decided_by="categories")):
        with pytest.raises(PolicyError):
            Guard.load(out, threads=1, policy=policy)


def test_topic_control_and_a_family_of_ones_own(checkpoint, text, tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(f"What is {i} + {i}?" for i in range(20)))
    policy = Policy((Category("Cooking", None, "Recipes.", allowed=True),))
    topics = Guard.load(
        export(checkpoint[0], tmp_path / "t", lines, "nemoguard-topic-control", policy), threads=1
    )
    verdict = topics.check(PROMPT)
    assert topics.as_text(verdict) == ("on-topic" if verdict.safe else "off-topic")
    file = tmp_path / "mine.toml"
    file.write_text(
        'name = "mine"\ncategory = "{number} {text}"\n'
        'prompt = "<|begin_of_text|>{policy}\\nuser: {prompt}\\nsafe?"\n'
        'exchange = "<|begin_of_text|>{policy}\\nuser: {prompt}\\nagent: {response}\\nsafe?"\n'
        '[answers]\nsafe = "safe"\nunsafe = "unsafe"\nprompt = " {prompt}"\nexchange = " {response}"\n'
    )
    mine = Guard.load(export(checkpoint[0], tmp_path / "m", text, str(file)), threads=1)
    verdict = mine.check(PROMPT, RESPONSE)
    assert verdict.prompt == mine.check(PROMPT).prompt  # asked apart, in the same pass
    assert mine.as_text(verdict) == (" safe" if verdict.response.safe else " unsafe")
    assert Artifact.open(tmp_path / "m").describe()["family"] == "mine"


def test_a_checkpoint_without_a_chat_template_leaves_nothing_behind(text, tmp_path):
    write_checkpoint(tmp_path / "base", make_tokenizer(), chat=None)
    with pytest.raises(FamilyError, match="base: no chat template"):
        export(tmp_path / "base", tmp_path / "g", text, SAFETY)
    assert not (tmp_path / "g").exists()


def verdict(prompt: bool, response: bool | None, *categories: str) -> Verdict:
    ratings = [None if safe is None else Rating(safe, 0.5, 0.0) for safe in (prompt, response)]
    claims = tuple(CategoryScore(name, code, 0.9) for name, _, code in (c.partition("|") for c in categories))
    is_safe = prompt and response is not False
    return Verdict(is_safe, ratings[0], ratings[1], claims, 1)


def test_native_texts_byte_for_byte():
    text = NEMOGUARD.text
    assert text(verdict(True, None)) == '{"User Safety": "safe"}'
    assert text(verdict(True, True)) == '{"User Safety": "safe", "Response Safety": "safe"}'
    assert text(verdict(True, False, "Violence|S1", "PII/Privacy|S9")) == (
        '{"User Safety": "safe", "Response Safety": "unsafe", "Safety Categories": "Violence, PII/Privacy"}'
    )
    assert text(verdict(False, None)) == '{"User Safety": "unsafe"}'
    llama = Answers("safe", "unsafe", "{prompt}{categories}", "{response}{categories}", "\n{codes}").text
    assert llama(verdict(True, None)) == "safe"
    assert llama(verdict(False, None, "Violence|S1", "PII/Privacy|S9")) == "unsafe\nS1,S9"


def nemo_parsers():
    """nemoguardrails' parsers alone: the package itself imports much that is not needed for them."""
    package = importlib.util.find_spec("nemoguardrails")
    if package is None or package.origin is None:
        pytest.skip("nemoguardrails is not installed: pip install --no-deps nemoguardrails==0.24")
    file = Path(package.origin).parent / "llm" / "output_parsers.py"
    spec = importlib.util.spec_from_file_location("output_parsers", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nemo_guardrails_reads_what_it_is_given():
    parsers = nemo_parsers()
    for prompt in (True, False):
        for response in (None, True, False):
            names = () if prompt and response is not False else ("Violence", 'Talk of "tea"', "{response}")
            given = verdict(prompt, response, *names)
            text = NEMOGUARD.text(given)
            assert list(parsers.nemoguard_parse_prompt_safety(text)) == [prompt, *([] if prompt else names)]
            if response is None:
                with pytest.raises(ValueError):
                    parsers.nemoguard_parse_response_safety(text)
            else:
                found = [response, *([] if response else names)]
                assert list(parsers.nemoguard_parse_response_safety(text)) == found
    llama = Answers("safe", "unsafe", "{prompt}{categories}", None, "\n{codes}").text
    assert list(parsers.is_content_safe(llama(verdict(True, None)))) == [True]
    unsafe = llama(verdict(False, None, "Violence|S1", "Threat|S11"))
    assert list(parsers.is_content_safe(unsafe)) == [False, "S1", "S11"]
