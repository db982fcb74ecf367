"""Exports for NVIDIA's engines, which do not run here: their forms against what is published about them,
their weights against the parent's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
from safetensors.torch import load_file
from test_export_targets import Tiny, assert_close, load, torch_ask

from aegis_edge.cli import run
from aegis_edge.errors import ExportError
from aegis_edge.export.merge import load_parent
from aegis_edge.export.pipeline import export_guard
from aegis_edge.export.targets import tensorrt_llm_legacy
from aegis_edge.exported import HEAD_FILE, exported_guard


@pytest.fixture(
    scope="module", params=[("llama", True), ("qwen2", False)], ids=["llama-tied", "qwen2-untied"]
)
def tiny(request, tmp_path_factory, tiny_tokenizer, tiny_policy) -> Tiny:
    return Tiny(tmp_path_factory.mktemp(request.param[0]), tiny_tokenizer, tiny_policy, *request.param)


@pytest.mark.parametrize("scheme", ["bf16", "fp8"])
def test_tensorrt_llm_has_the_form_that_its_source_reads(tiny, scheme) -> None:
    folder = tiny.export("tensorrt-llm", scheme)
    quantization = json.loads((folder / "hf_quant_config.json").read_text())["quantization"]
    assert quantization["quant_algo"] == ("FP8" if scheme == "fp8" else None)
    assert quantization["exclude_modules"] == ["lm_head"] and quantization["kv_cache_quant_algo"] is None
    stored = load_file(folder / "model.safetensors")
    parent = load_parent(*tiny.parts).model.state_dict()
    for name in ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"):
        name = f"model.layers.1.{name}"
        weight = stored[f"{name}.weight"].float()
        if scheme == "fp8":
            assert stored[f"{name}.weight"].dtype == torch.float8_e4m3fn
            assert stored[f"{name}.input_scale"].shape == stored[f"{name}.weight_scale"].shape == ()
            weight = weight * stored[f"{name}.weight_scale"]
        error = (weight - parent[f"{name}.weight"]).norm() / parent[f"{name}.weight"].norm()
        assert error < (0.04 if scheme == "fp8" else 0.003)
    config = json.loads((folder / "config.json").read_text())
    assert (
        config["rope_theta"] == 10000.0 and config["torch_dtype"] == "bfloat16"
    )  # transformers 4 reads these


# The mandatory and usual fields of config.json, and their types: the table of TensorRT-LLM's
# docs/source/architecture/checkpoint.md, and LLaMAConfig's own.
LEGACY_FIELDS: dict[str, Any] = {
    **dict.fromkeys(("architecture", "dtype", "logits_dtype", "hidden_act", "position_embedding_type"), str),
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "hidden_size", "num_hidden_layers"), int),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "intermediate_size", "head_size"), int),
    **dict.fromkeys(("norm_epsilon", "rotary_base"), float),
    **dict.fromkeys(("mlp_bias", "attn_bias", "tie_word_embeddings"), bool),
    **dict.fromkeys(("mapping", "quantization"), dict),
    "rotary_scaling": (dict, type(None)),
}


@pytest.mark.parametrize("scheme", ["bf16", "fp8"])
def test_the_legacy_form_has_the_published_fields_and_names(tiny, scheme) -> None:
    folder = tiny.export("tensorrt-llm-legacy", scheme)
    parent = load_parent(*tiny.parts).model
    config = json.loads((folder / "config.json").read_text())
    is_qwen = parent.config.model_type == "qwen2"
    assert set(config) == {*LEGACY_FIELDS, *(["qwen_type"] if is_qwen else [])}
    for field, kind in LEGACY_FIELDS.items():
        assert isinstance(config[field], kind), field
    assert config["quantization"]["quant_algo"] == ("FP8" if scheme == "fp8" else None)
    assert config["attn_bias"] == is_qwen and config["mapping"]["world_size"] == 1
    stored, state = load_file(folder / "rank0.safetensors"), parent.state_dict()
    wanted = {"lm_head.weight": None, "transformer.vocab_embedding.weight": "model.embed_tokens"}
    wanted["transformer.ln_f.weight"] = "model.norm"
    for i in range(config["num_hidden_layers"]):
        for ours, theirs in (
            ("input_layernorm", "input_layernorm"),
            ("post_layernorm", "post_attention_layernorm"),
            ("attention.qkv", None),
            ("attention.dense", "self_attn.o_proj"),
            ("mlp.fc", "mlp.gate_proj"),
            ("mlp.gate", "mlp.up_proj"),
            ("mlp.proj", "mlp.down_proj"),
        ):
            name = f"transformer.layers.{i}.{ours}"
            wanted[f"{name}.weight"] = theirs and f"model.layers.{i}.{theirs}"
            if ours == "attention.qkv" and is_qwen:
                wanted[f"{name}.bias"] = None
            if scheme == "fp8" and "layernorm" not in ours:
                wanted |= dict.fromkeys(
                    (f"{name}.weights_scaling_factor", f"{name}.activation_scaling_factor")
                )
    assert set(stored) == set(wanted)
    tolerance = 0.04 if scheme == "fp8" else 0.003

    def close(name: str, right: Any) -> bool:
        weight = stored[f"{name}.weight"].float()
        scale = stored.get(f"{name}.weights_scaling_factor")
        assert scale is None or (scale.shape == (1,) and scale.dtype == torch.float32)
        weight = weight if scale is None else weight * scale
        return bool((weight[: len(right)] - right).norm() < tolerance * right.norm())

    for name, theirs in wanted.items():
        if theirs is not None:
            assert close(name.removesuffix(".weight"), state[f"{theirs}.weight"]), name
    heads = [state[f"model.layers.1.self_attn.{part}_proj.weight"] for part in "qkv"]
    assert close("transformer.layers.1.attention.qkv", torch.cat(heads))
    fp8 = stored["transformer.layers.1.mlp.fc.weight"].dtype == torch.float8_e4m3fn
    assert fp8 == (scheme == "fp8") and stored["lm_head.weight"].dtype == torch.bfloat16
    tokens = json.loads((folder / HEAD_FILE).read_text())["head"]["tokens"]
    rows = load_file(folder / "aegis_head.safetensors")["weight"]
    torch.testing.assert_close(stored["lm_head.weight"][tokens].float(), rows, rtol=0.01, atol=1e-4)


def test_legacy_is_an_option_of_one_target(tiny, capsys) -> None:
    out = str(tiny.top / "legacy")
    assert run(["export", "--target", "gguf", "--legacy", "--out", out]) == 3
    assert capsys.readouterr().err.splitlines() == [
        "error: --legacy is for --target tensorrt-llm, not gguf",
        "hint: leave it out",
    ]
    parts = ("--base", tiny.parts[0], "--adapter", tiny.parts[1], "--calibration", str(tiny.text))
    assert run(["export", *parts, "--target", "tensorrt-llm", "--legacy", "--out", out]) == 0
    assert (Path(out) / "rank0.safetensors").is_file()


def test_an_architecture_without_a_legacy_form_is_refused(tiny, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tensorrt_llm_legacy, "ARCHITECTURES", {})
    with pytest.raises(ExportError, match=r"--legacy has no form for \w+ForCausalLM"):
        export_guard(*tiny.parts, out=tmp_path / "g", target="tensorrt-llm-legacy", calibration=tiny.text)
    assert not (tmp_path / "g").exists()


def test_tensorrt_edge_keeps_the_rows_that_a_verdict_reads(tiny) -> None:
    """The map's form is what the tool's own reader wants: one dimension, whole numbers, none twice."""
    folder = tiny.export("tensorrt-edge")
    kept = load_file(folder / "vocab_map.safetensors")["vocab_map"]
    head = json.loads((folder / HEAD_FILE).read_text())["head"]
    about = json.loads((folder / "reduced_vocab.json").read_text())
    assert kept.dtype == torch.int32 and kept.dim() == 1 and len(set(kept.tolist())) == len(kept)
    assert kept[: len(head["rows"])].tolist() == head["tokens"] and int(kept.max()) < about["vocab_size"]
    assert about["reduced_vocab_size"] == len(kept)
    # The tool stops where there is no chat template; this one adds nothing.
    template = jinja2.Template((folder / "chat_template.jinja").read_text())
    assert template.render(messages=[{"role": "user", "content": " <|im_end|> as it is\n"}]) == (
        " <|im_end|> as it is\n"
    )
    # What an engine with this map returns: the rows of the logits, in its order.
    model = load(folder)
    assert model.config.vocab_size == about["vocab_size"]
    full = torch_ask(model)

    def ask(paths: list[list[int]], tokens: list[int]) -> list[list[float]]:
        place = {token: i for i, token in enumerate(kept.tolist())}
        return [[row[place[token]] for token in tokens] for row in full(paths, kept.tolist())]

    assert_close(exported_guard(folder, ask), tiny.parent_guard(), 0.02)
