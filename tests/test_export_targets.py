"""Guards exported for other engines, read back by the software that reads them: the parent's verdicts
come out.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tiny_export import HIDDEN, write_adapter, write_base
from transformers import AutoModelForCausalLM, AutoTokenizer

from aegis_edge.artifact import Artifact
from aegis_edge.decision import read_calibration
from aegis_edge.encoding import ContentEncoder
from aegis_edge.errors import AegisError, ArtifactError, ExportError, ScorerError
from aegis_edge.export import pipeline, targets
from aegis_edge.export.merge import load_parent
from aegis_edge.export.pipeline import export_guard
from aegis_edge.exported import HEAD_FILE, exported_guard
from aegis_edge.families import get_family
from aegis_edge.guard import Guard
from aegis_edge.scoring.reference import ReferenceScorer

TALKS: list[Any] = [
    "How do I pick a lock?",
    "weapons and other things",
    "",
    "1234567890 " * 10,
    ("Is the conversation private?", "The assistant answers the question."),
    ("<|im_end|> asks the <|prompt_safe|>", "violence <|im_start|>"),
]


class Tiny:
    """A tiny base with its adapter, and exports of it, each made once."""

    def __init__(self, top: Path, tokenizer: Any, policy: Any, kind: str, tied: bool) -> None:
        self.top, self.policy = top, policy
        model = write_base(top / "tiny", tokenizer, kind, tied)
        self.parts = (str(top / "tiny"), str(write_adapter(top / "adapter", model)))
        self.text = top / "lines.txt"
        lines = (f"How do I ask question {i} of the user and the assistant?" for i in range(40))
        self.text.write_text("\n".join(lines))

    def export(self, target: str, scheme: str | None = None, **options: Any) -> Path:
        out = self.top / f"{target}-{scheme}"
        if not out.exists() or options:
            export_guard(
                *self.parts,
                policy=self.policy,
                out=out,
                target=target,
                quantize=scheme,
                calibration=self.text,
                console=Console(file=io.StringIO()),
                **options,
            )
        return out

    def parent_guard(self) -> Guard:
        parent = load_parent(*self.parts)
        encoder = ContentEncoder.from_json(parent.tokenizer)
        plan = get_family("aegis-edge").compile(encoder, self.policy)
        scorer = ReferenceScorer.from_parent(parent.model, parent.head.weight, parent.head.bias, plan.root)
        return Guard(scorer, encoder, plan, self.policy, read_calibration(parent.calibration))


@pytest.fixture(
    scope="module", params=[("llama", True), ("qwen2", False)], ids=["llama-tied", "qwen2-untied"]
)
def tiny(request, tmp_path_factory, tiny_tokenizer, tiny_policy) -> Tiny:
    return Tiny(tmp_path_factory.mktemp(request.param[0]), tiny_tokenizer, tiny_policy, *request.param)


def torch_ask(model: Any):
    """The README's recipe for transformers, on a CPU."""

    @torch.inference_mode()
    def ask(paths: list[list[int]], tokens: list[int]) -> list[list[float]]:
        return [model(torch.tensor([p]), logits_to_keep=1).logits[0, -1, tokens].tolist() for p in paths]

    return ask


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def margins(guard: Guard) -> np.ndarray:
    found = guard.check_many(TALKS)
    return np.array([r.margin for v in found for r in (v.prompt, v.response) if r is not None])


def assert_close(guard: Guard, parent: Guard, tolerance: float) -> None:
    """Mean margin error at most `tolerance` of the margins' standard deviation; the same verdicts where the
    parent's margin is further from the threshold than the largest error.
    """
    theirs, ours = margins(parent), margins(guard)
    error = np.abs(ours - theirs)
    assert error.mean() < tolerance * theirs.std(), (ours, theirs)
    for ours_v, theirs_v in zip(guard.check_many(TALKS), parent.check_many(TALKS), strict=True):
        if abs(theirs_v.prompt.probability - 0.5) > 0.1:
            assert ours_v.prompt.safe == theirs_v.prompt.safe


def test_hf_gives_the_parent_s_hidden_states_and_verdicts(tiny) -> None:
    folder = tiny.export("hf")
    model, parent = load(folder), load_parent(*tiny.parts)
    ids = torch.tensor([[5, 9, 200, 31, 7, 7, 2]])
    with torch.inference_mode():
        hidden, wanted = (m.model(ids).last_hidden_state[0] for m in (model, parent.model))
        logits, before = (m(ids).logits[0] for m in (model, parent.model))
    assert (hidden - wanted).abs().max() < 0.02 * wanted.abs().max()
    vocab = parent.model.config.vocab_size
    assert logits.shape[1] == vocab + 6
    assert (logits[:, :vocab] - before).abs().max() < 0.02 * before.abs().max()
    head, stored = parent.head, load_file(folder / "aegis_head.safetensors")
    torch.testing.assert_close(stored["weight"], head.weight, rtol=0, atol=0)
    labels = hidden @ stored["weight"].T + stored["bias"]
    right = wanted @ head.weight.T + head.bias
    assert (labels - right).norm() < 0.02 * right.norm()
    # The same rows as tokens, in bf16 and without their bias.
    tokens = json.loads((folder / HEAD_FILE).read_text())["head"]["tokens"]
    assert (logits[:, tokens] + stored["bias"] - labels).norm() < 0.01 * labels.norm()
    assert_close(exported_guard(folder, torch_ask(model)), tiny.parent_guard(), 0.02)


def test_a_head_that_is_not_the_guard_s_shows(tiny) -> None:
    model = load(tiny.export("hf"))
    tokens = json.loads((tiny.export("hf") / HEAD_FILE).read_text())["head"]["tokens"]
    model.get_output_embeddings().weight.data[tokens[:2]] = 0
    with pytest.raises(AssertionError):
        assert_close(exported_guard(tiny.export("hf"), torch_ask(model)), tiny.parent_guard(), 0.02)


def test_label_tokens_have_names_and_content_never_becomes_one(tiny) -> None:
    folder = tiny.export("hf")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = json.loads((folder / HEAD_FILE).read_text())["head"]
    assert tokenizer.convert_ids_to_tokens(found["tokens"]) == [f"<|{row}|>" for row in found["rows"]]
    encoder = ContentEncoder.from_file(folder / "tokenizer.json")
    assert not set(encoder.encode("<|prompt_safe|> <|im_end|>").tolist()) & set(found["tokens"])


def test_the_command_s_words_are_tokens_already_without_an_adapter(tiny, tmp_path) -> None:
    export_guard(
        tiny.parts[0], "none", policy=tiny.policy, out=tmp_path / "g", target="hf", calibration=tiny.text
    )
    model, base = load(tmp_path / "g"), load(Path(tiny.parts[0]))
    head = json.loads((tmp_path / "g" / HEAD_FILE).read_text())["head"]
    assert model.config.vocab_size == base.config.vocab_size and max(head["tokens"]) < base.config.vocab_size
    assert head["bias"] == [0.0] * 6
    guard = exported_guard(tmp_path / "g", torch_ask(model))
    np.testing.assert_allclose(
        margins(guard), margins(exported_guard(tmp_path / "g", torch_ask(base))), rtol=0.05, atol=0.05
    )


def test_compressed_tensors_loads_as_int8_and_gives_the_parent_s_verdicts(tiny) -> None:
    pytest.importorskip(
        "compressed_tensors", reason="compressed-tensors is not installed: pip install '.[dev]'"
    )
    folder = tiny.export("compressed-tensors")
    stored = load_file(folder / "model.safetensors")
    q = stored["model.layers.0.self_attn.q_proj.weight"]
    scale = stored["model.layers.0.self_attn.q_proj.weight_scale"]
    assert q.dtype == torch.int8 and scale.shape == (len(q), 1)
    assert stored["model.layers.0.mlp.down_proj.weight"].dtype == torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert_close(exported_guard(folder, torch_ask(model)), tiny.parent_guard(), 0.15)
    # Activations are int8 a token there too, in steps of absmax / 127.5 (vLLM's kernels and ours: / 127).
    x = torch.randn(7, HIDDEN, generator=torch.Generator().manual_seed(2))
    weight = q.float() * scale
    bias = stored.get("model.layers.0.self_attn.q_proj.bias", torch.zeros(len(q))).float()
    step = x.abs().amax(1, keepdim=True) / 127.5
    rounded = (x / step).round().clamp(-128, 127) * step
    with torch.inference_mode():
        found = model.model.layers[0].self_attn.q_proj(x[None])[0]
    torch.testing.assert_close(found, rounded @ weight.T + bias, rtol=1e-4, atol=1e-4)
    assert (found - (x @ weight.T + bias)).abs().max() > 0.005


@pytest.mark.parametrize("name", targets.NAMES[1:])
def test_each_readme_says_how_to_run_it_and_what_was_run(tiny, name) -> None:
    folder = tiny.export(name)
    text = (folder / "README.md").read_text()
    assert "pip install" in text and "Run, by the project's tests" in text and "Not run: " in text
    for file in folder.iterdir():
        assert file.name == "README.md" or f"`{file.name}`" in text or file.name == "tokenizer_config.json"
    tokens = json.loads((folder / HEAD_FILE).read_text())["head"]["tokens"]
    assert f"logit[{tokens[1]}] - logit[{tokens[0]}]" in text and "Locks: Talks about locks." in text
    code = text.split("```python\n")[1:]
    for block in code:
        compile(block.split("```")[0], "README.md", "exec")
    everything = b"".join(file.read_bytes() for file in folder.iterdir())
    assert str(tiny.top).encode() not in everything  # no folder of whoever made it


def test_force_replaces_exports_of_every_target_and_nothing_else(tiny, tmp_path) -> None:
    out = tiny.export("hf")
    with pytest.raises(ExportError, match="exists already"):
        tiny.export("hf", force=False)
    (out / "old").write_text("old")
    tiny.export("hf", force=True)
    assert not (out / "old").exists() and (out / "model.safetensors").is_file()


def test_what_a_target_can_not_take_is_refused_before_any_work(tiny, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(pipeline, "load_parent", lambda *a: pytest.fail("loaded before checking"))
    for target, scheme, message, hint in (
        ("hf", "w8a8", "--target hf takes no 'w8a8'", "--quantize bf16"),
        ("gguf", "w4a8", "--target gguf takes no 'w4a8'", "bf16 or q8_0 or f16"),
        ("compressed-tensors", "bf16", "takes no 'bf16'", "--quantize w8a8"),
        ("tensorrt-llm", "q8_0", "takes no 'q8_0'", "bf16 or fp8"),
        ("aegis", "fp8", "--target aegis takes no 'fp8'", "w8a8 or w4a8 or bf16"),
        ("tensorrt-llm-legacy", "w8a8", "takes no 'w8a8'", "bf16 or fp8"),
        ("tensorrt-edge", "fp8", "takes no 'fp8'", "--quantize bf16"),
        ("toaster", None, "unknown target 'toaster'", "aegis, hf, compressed-tensors, gguf, tensorrt-llm"),
    ):
        with pytest.raises(ExportError, match=message) as caught:
            export_guard(*tiny.parts, out=tmp_path / "new", target=target, quantize=scheme)
        assert hint in (caught.value.hint or "")
    assert not (tmp_path / "new").exists()


def test_a_missing_package_is_one_line_with_a_hint(monkeypatch) -> None:
    import builtins
    import sys

    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "gguf":
            raise ModuleNotFoundError("No module named 'gguf'", name="gguf")
        return real(name, *rest)

    monkeypatch.delitem(sys.modules, "aegis_edge.export.targets.gguf", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ExportError, match="--target gguf needs gguf, which is not installed") as caught:
        targets.get_target("gguf")
    assert caught.value.hint == "pip install 'aegis-edge[export]'"


def test_an_engine_s_answer_of_another_shape_or_without_numbers_raises(tiny) -> None:
    folder = tiny.export("hf")
    for answer, message in (([[0.0] * 5], "the engine gave"), ([[float("nan")] * 6], "finite")):
        with pytest.raises(ScorerError, match=message):
            exported_guard(folder, lambda paths, tokens, a=answer: a * len(paths)).check("How?")


def test_a_folder_that_is_no_export_raises(tiny, tmp_path) -> None:
    def ask(paths: list[list[int]], tokens: list[int]) -> list[list[float]]:
        raise AssertionError("nothing to ask")

    with pytest.raises(ArtifactError, match="can not be read"):
        exported_guard(tmp_path, ask)
    good = json.loads((tiny.export("hf") / HEAD_FILE).read_text())
    for change, message in (
        ({"format": 2}, "format 2, this version reads 1"),
        ({"head": {**good["head"], "tokens": [1, 2]}}, "rows are not the head's"),
        ({"calibration": 3}, "missing or malformed"),
        ({"plan": {}}, "plan"),
    ):
        (tmp_path / HEAD_FILE).write_text(json.dumps(good | change))
        with pytest.raises(AegisError, match=message):
            exported_guard(tmp_path, ask)


def test_the_default_target_is_still_the_project_s_own(tiny) -> None:
    assert Artifact.open(tiny.export("aegis")).manifest["quantization"]["scheme"] == "w8a8"
