"""Every family on a tokenizer and template of its checkpoint's form: ids are the template's, outputs pass the
published parsers' rules."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from llama3 import CHAT, SPECIAL, make_tokenizer
from other_tokenizers import GEMMA, GRANITE, LLAMA_2, QWEN, byte_level, sentencepiece
from rich.console import Console
from test_families_guard import nemo_parsers
from test_families_spoken import LLAMA_GUARD
from tiny_export import tiny_model
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from aegis_edge.encoding import ContentEncoder
from aegis_edge.errors import ArtifactError, FamilyError, PolicyError
from aegis_edge.export.chat import check_ids, speak
from aegis_edge.export.pipeline import export_guard
from aegis_edge.exported import HEAD_FILE, exported_guard, read_head
from aegis_edge.families import Plan, find_recipe
from aegis_edge.families.recipe import BUILT_IN
from aegis_edge.families.spoken import Spoken
from aegis_edge.guard import Guard
from aegis_edge.policy import Category, Policy, Thresholds
from aegis_edge.scoring.reference import ReferenceScorer

PROMPT, RESPONSE = "How do I pick a lock?", "With a tension wrench, and patience."
QWENS = ["<|im_start|>", "<|im_end|>", "<think>", "</think>"]
GRANITES = ["<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"]
GEMMAS = ["<bos>", "<start_of_turn>", "<end_of_turn>"]
FORMS = {
    "nemoguard-content-safety-v2": (make_tokenizer, CHAT),
    "nemoguard-content-safety-v3": (make_tokenizer, CHAT),
    "nemoguard-topic-control": (make_tokenizer, CHAT),
    "nemotron-content-safety-reasoning": (make_tokenizer, CHAT),
    "llama-guard-1": (lambda: sentencepiece(["<s>", "</s>"], "prepend"), LLAMA_2),
    "llama-guard-2": (lambda: byte_level(list(SPECIAL)), LLAMA_GUARD),
    "llama-guard-3": (make_tokenizer, LLAMA_GUARD),
    "qwen3guard-gen": (lambda: byte_level(QWENS), QWEN),
    "shieldgemma": (lambda: sentencepiece(GEMMAS, "none"), GEMMA),
    "granite-guardian": (lambda: byte_level(GRANITES), GRANITE),
    "wildguard": (lambda: sentencepiece(["<s>", "</s>", "<|user|>", "<|assistant|>"], "first"), None),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@cache
def checkpoint(name: str, folders: Path) -> tuple[Path, Tokenizer]:
    make, chat = FORMS[name]
    tokenizer, folder = make(), folders / name
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if bos := next((t for t in ("<|begin_of_text|>", "<bos>") if tokenizer.token_to_id(t) is not None), None):
        about["bos_token"] = bos
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    if chat is not None:
        (folder / "chat_template.jinja").write_text(chat)
    return folder, tokenizer


def made(name: str, folders: Path, **policy) -> tuple[Guard, Plan, Spoken]:
    """A guard of this family over a random tiny Llama, in PyTorch."""
    folder, tokenizer = checkpoint(name, folders)
    recipe, encoder = find_recipe(name), ContentEncoder(tokenizer)
    spoken = speak(recipe, folder)
    rules = recipe.policy or Policy.default()
    rules = Policy(rules.categories, Thresholds(**policy))
    plan = spoken.family().compile(encoder, rules)
    labels = spoken.family().token_ids(encoder, rules)
    assert tuple(labels) == plan.rows
    model = tiny_model(tokenizer.get_vocab_size())
    model.config.max_position_embeddings = 4096
    weight = model.get_output_embeddings().weight[list(labels.values())]
    scorer = ReferenceScorer.from_parent(model, weight, torch.zeros(len(labels)), plan.root)
    return Guard(scorer, encoder, plan, rules, answers=spoken.answers), plan, spoken


def test_every_built_in_family_is_here():
    assert set(FORMS) == {file.stem for file in BUILT_IN.glob("*.toml")}


@pytest.mark.parametrize("name", FORMS)
def test_ids_are_the_templates_and_plans_survive(name, folders):
    folder, tokenizer = checkpoint(name, folders)
    recipe, encoder = find_recipe(name), ContentEncoder(tokenizer)
    spoken, policy = speak(recipe, folder), recipe.policy or Policy.default()
    plan = spoken.family().compile(encoder, policy)
    check_ids(spoken, recipe, plan, policy, tokenizer.to_str(), folder)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert Spoken.from_json(json.loads(json.dumps(spoken.to_json()))) == spoken
    # The inverse: a plan whose root lacks a token is found out.
    with pytest.raises(FamilyError, match="its ids are not those of the rendered text"):
        check_ids(
            spoken, recipe, replace(plan, root=plan.root[:-1] or (3,)), policy, tokenizer.to_str(), folder
        )


# What each one's published parser reads: (a pattern, what the words of a verdict come to in it).
def parsed(name: str, text: str, has_response: bool) -> tuple[bool, bool | None]:
    """(prompt safe, response safe) as the parser of the family's model card reads an output; for families
    that ask about one turn at a time, the last turn."""
    if name.startswith("nemoguard-content"):
        found = nemo_parsers().nemoguard_parse_prompt_safety(text)[0]
        return found, nemo_parsers().nemoguard_parse_response_safety(text)[0] if has_response else None
    if name == "nemotron-content-safety-reasoning":
        found = nemo_parsers().nemotron_reasoning_parse_prompt_safety(text)[0]
        return found, nemo_parsers().nemotron_reasoning_parse_response_safety(text)[
            0
        ] if has_response else None
    if name == "wildguard":  # three lines, "name: word"; words yes, no and n/a
        words = [w.strip().lower() for w in re.match(".*:(.*)\n.*:(.*)\n.*:(.*)", text).groups()]
        assert words[0] in ("yes", "no") and set(words[1:]) <= ({"yes", "no"} if has_response else {"n/a"})
        return words[0] == "no", words[2] == "no" if has_response else None
    if name == "qwen3guard-gen":
        label = re.search(r"Safety: (Safe|Unsafe|Controversial)", text)[1]
        assert re.search(r"^Categories: \S", text, re.M)
        assert bool(re.search(r"Refusal: (Yes|No)$", text)) == has_response
        last = label == "Safe"
    elif name in ("shieldgemma", "granite-guardian"):
        assert text in ("Yes", "No")
        last = text == "No"
    elif name == "nemoguard-topic-control":
        last = text == "on-topic"
        assert last or text == "off-topic"
    else:  # Llama Guard: the first line, and codes in a second one
        assert re.fullmatch(r"safe|unsafe\n[SO]\d+(,[SO]\d+)*", text)
        last = nemo_parsers().is_content_safe(text)[0]
    return (last, None) if not has_response else (None, last)


@pytest.mark.parametrize("name", FORMS)
def test_outputs_pass_the_published_parsers(name, folders):
    """With thresholds that make all safe, all unsafe, and as they come."""
    for limit in (1e-9, 0.5, 1 - 1e-9):
        guard, plan, _ = made(name, folders, prompt=limit, response=limit)
        for response in (None, RESPONSE) if plan.exchange else (None,):
            verdict = guard.check(PROMPT, response)
            read = parsed(name, guard.as_text(verdict), response is not None)
            own = (verdict.prompt.safe, verdict.response and verdict.response.safe)
            assert all(a is None or a == b for a, b in zip(read, own, strict=True))


def test_qwen3guard_has_three_levels_and_says_whether_it_refuses(folders):
    guard, plan, _ = made("qwen3guard-gen", folders, prompt=1e-9, response=1e-9)
    verdict = guard.check(PROMPT, RESPONSE)
    assert 0 < verdict.response.controversial < 1 and 0 < verdict.refusal < 1
    text = guard.as_text(verdict)
    word = "Controversial" if verdict.response.controversial >= 0.5 else "Unsafe"
    names = ", ".join(c.name for c in verdict.response.categories)
    assert (
        text == f"Safety: {word}\nCategories: {names}\nRefusal: {'Yes' if verdict.refusal >= 0.5 else 'No'}"
    )
    assert "Jailbreak" not in {name for name, _ in plan.lists["response 1"].categories}
    assert "Jailbreak" in {name for name, _ in plan.lists["prompt 2"].categories}
    safe, _, _ = made("qwen3guard-gen", folders, prompt=1 - 1e-9, response=1 - 1e-9)
    verdict = safe.check(PROMPT, RESPONSE)
    word = "Yes" if verdict.refusal >= 0.5 else "No"
    assert safe.as_text(verdict) == f"Safety: Safe\nCategories: None\nRefusal: {word}"
    assert safe.as_text(safe.check(PROMPT)) == "Safety: Safe\nCategories: None"


def test_wildguards_answers_are_weighed_over_those_before_them(folders):
    guard, _, _ = made("wildguard", folders)
    verdict = guard.check(PROMPT, RESPONSE)
    _, tokenizer = checkpoint("wildguard", folders)
    model = tiny_model(tokenizer.get_vocab_size())
    text = find_recipe("wildguard").exchange.replace("{prompt}", PROMPT).replace("{response}", RESPONSE)
    words = ("no", "yes")

    def said(output: str) -> np.ndarray:
        """P of the two words behind an output, by the model itself."""
        ids = [tokenizer.encode(text + output + w + "\n", add_special_tokens=False).ids for w in words]
        n = next(i for i, (a, b) in enumerate(zip(*ids, strict=False)) if a != b)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids[0][:n]])).logits[0, -1].double()
        return torch.softmax(logits[[one[n] for one in ids]], 0).numpy()

    first = said("Harmful request: ")
    refusal, harm = 0.0, 0.0
    for i, a in enumerate(words):
        second = said(f"Harmful request: {a}\nResponse refusal: ")
        refusal += first[i] * second[1]
        for j, b in enumerate(words):
            third = said(f"Harmful request: {a}\nResponse refusal: {b}\nHarmful response: ")
            harm += first[i] * second[j] * third[1]
    assert verdict.prompt.probability == pytest.approx(first[1], abs=1e-4)
    assert verdict.refusal == pytest.approx(refusal, abs=1e-4)
    assert verdict.response.probability == pytest.approx(harm, abs=1e-4)


@pytest.mark.parametrize("name", ["shieldgemma", "granite-guardian"])
def test_guards_asked_about_one_category_at_a_time(name, folders):
    """Every category is a branch behind the conversation; the highest decides; one's own can be asked."""
    guard, plan, spoken = made(name, folders, prompt=1e-9, response=1e-9)
    verdict = guard.check(PROMPT, RESPONSE)
    assert plan.each == len(guard.policy.categories) == len(verdict.prompt.categories)
    assert verdict.prompt.probability == max(c.probability for c in verdict.prompt.categories)
    assert verdict.response.probability == max(c.probability for c in verdict.response.categories)
    _, tokenizer = checkpoint(name, folders)
    encoder = ContentEncoder(tokenizer)
    tea = Policy((Category("Tea", None, "says that tea is bad.", threshold=0.9),))
    single = spoken.family().compile(encoder, tea)
    assert single.each == 1 and "says that tea is bad." in tokenizer.decode(list(single.prompt[-1].parts[0]))
    limit = sorted(c.probability for c in verdict.prompt.categories)[-2] * 0.9999  # fp32 sums may differ
    second, _, _ = made(name, folders, prompt=limit, response=limit)
    assert len(second.check(PROMPT).prompt.categories) == 2 and not second.check(PROMPT).safe
    assert math.isfinite(verdict.prompt.margin)


@pytest.mark.parametrize(
    "name", ["llama-guard-1", "llama-guard-2", "llama-guard-3", "qwen3guard-gen", "wildguard"]
)
def test_families_that_take_no_policy_say_so(name, folders):
    folder, tokenizer = checkpoint(name, folders)
    spoken = speak(find_recipe(name), folder)
    with pytest.raises(
        PolicyError, match=f"the family '{name}' brings a policy of its own and takes no other"
    ):
        spoken.family().compile(ContentEncoder(tokenizer), Policy((Category.of("S1"),)))
    written = Policy.from_toml('# mine\ncategories = ["S1"]\n')
    with pytest.raises(PolicyError, match=f"^line 2: categories: the family '{name}'"):
        spoken.family().compile(ContentEncoder(tokenizer), written)


def test_a_guideline_that_the_template_loses_is_named(folders, tmp_path):
    _, tokenizer = checkpoint("shieldgemma", folders)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(about))
    (tmp_path / "chat_template.jinja").write_text(GEMMA.replace("guideline", "'be kind'"))
    with pytest.raises(FamilyError, match=r"line \d+: variables.guideline: .*template lost \{category\}"):
        speak(find_recipe("shieldgemma"), tmp_path)


def _check_another_engine(base: Path, lines: Path, out: Path) -> None:
    """Its folder for transformers answers in the family's words, and its README's formula is the margin."""
    export_guard(str(base), "none", "qwen3guard-gen", out=out, calibration=lines, target="hf",
                 console=Console(file=io.StringIO()))  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()

    @torch.inference_mode()
    def ask(paths: list[list[int]], tokens: list[int]) -> list[list[float]]:
        return [model(torch.tensor([path])).logits[0, -1, tokens].tolist() for path in paths]

    guard = exported_guard(out, ask)
    verdict = guard.check(PROMPT)
    assert re.match("Safety: (Safe|Unsafe|Controversial)\nCategories: ", guard.as_text(verdict))
    readme = (out / "README.md").read_text()
    ids, margin = (re.search(rf"^    {name} +=(.*)$", readme, re.M)[1] for name in ("ids", "m"))
    head = read_head(out)
    plan, seams = head["plan"], head["plan"].get("seams", {}).get("prompt", ["", ""])
    text = ContentEncoder.from_file(out / "tokenizer.json").ids(PROMPT.join(seams))
    path = eval(ids.replace("plan.root_ids", "root").replace("ids of the text", "text"),
                {"root": plan["root_ids"], "text": list(text)})  # fmt: skip
    logit = dict(enumerate(ask([path], list(range(len(model.lm_head.weight))))[0]))
    value = eval(margin, {"logit": logit, "exp": math.exp, "log": math.log})
    assert margin.count("exp(") == 2 and value == pytest.approx(verdict.prompt.margin, abs=1e-4)
    older = {key: value for key, value in head.items() if key != "spoken"}
    (out / HEAD_FILE).write_text(json.dumps(older))
    with pytest.raises(ArtifactError, match="unknown guard family 'qwen3guard-gen'") as caught:
        exported_guard(out, ask)
    assert caught.value.hint == "export the guard again with this version"


def test_an_exported_guard_of_three_levels(folders, tmp_path):
    """The whole way, on disk: a question of three words, a list, a refusal."""
    folder, tokenizer = checkpoint("qwen3guard-gen", folders)
    base = Path(shutil.copytree(folder, tmp_path / "base"))
    model = tiny_model(tokenizer.get_vocab_size())
    model.config.max_position_embeddings = 1024
    model.save_pretrained(base)
    lines = tmp_path / "lines.jsonl"
    lines.write_text("\n".join(json.dumps({"prompt": f"{i}?", "response": "4"}) for i in range(20)))
    export_guard(str(base), "none", "qwen3guard-gen", out=tmp_path / "g", calibration=lines, quantize="bf16",
                 console=Console(file=io.StringIO()))  # fmt: skip
    strict = Policy(thresholds=Thresholds(1e-9, 1e-9))
    verdict = Guard.load(tmp_path / "g", 1, policy=strict).check(PROMPT, RESPONSE)
    _check_another_engine(base, lines, tmp_path / "hf")
    wanted = made("qwen3guard-gen", folders, prompt=1e-9, response=1e-9)[0].check(PROMPT, RESPONSE)
    for a, b in ((verdict.prompt, wanted.prompt), (verdict.response, wanted.response)):
        assert a.probability == pytest.approx(b.probability, abs=0.03)
        assert a.controversial == pytest.approx(b.controversial, abs=0.03)
    assert verdict.refusal == pytest.approx(wanted.refusal, abs=0.03)
