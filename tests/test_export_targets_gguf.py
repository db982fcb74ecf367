"""A GGUF of a guard: every tensor read back with the gguf package, and verdicts with llama.cpp where it
is installed.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from rich.console import Console
from tiny_export import HEAD_DIM, HEADS, KV_HEADS, LAYERS, write_adapter, write_base
from tokenizers import Tokenizer, models, pre_tokenizers

from aegis_edge.errors import ExportError
from aegis_edge.export.foreign import block_int8
from aegis_edge.export.merge import Parent, load_parent
from aegis_edge.export.pipeline import export_guard
from aegis_edge.export.targets.gguf import FILE
from aegis_edge.exported import HEAD_FILE, exported_guard
from aegis_edge.guard import Guard

TALKS = [
    "How do I pick a lock?",
    "weapons and other things",
    "",
    "1234567890 " * 10,
    ("How?", "The user asks."),
]


@pytest.fixture(
    scope="module", params=[("llama", True), ("qwen2", False)], ids=["llama-tied", "qwen2-untied"]
)
def base(request, tmp_path_factory, tiny_tokenizer) -> tuple[str, str]:
    top = tmp_path_factory.mktemp(request.param[0])
    model = write_base(top / "tiny", tiny_tokenizer, *request.param)
    return str(top / "tiny"), str(write_adapter(top / "adapter", model))


def export(base: tuple[str, str], policy: Any, out: Path, scheme: str = "bf16") -> Path:
    lines = out.parent / "lines.txt"
    lines.write_text("\n".join(f"How do I ask question {i}?" for i in range(20)))
    console = Console(file=io.StringIO())
    export_guard(
        *base, policy=policy, out=out, target="gguf", quantize=scheme, calibration=lines, console=console
    )
    return out


def fields(reader: gguf.GGUFReader) -> dict[str, Any]:
    return {name: field.contents() for name, field in reader.fields.items()}


def head_pairs(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of transformers' halves put in pairs, by their numbers: pair i of a head is rows i and i + d /
    2.
    """
    d = len(rows) // heads
    order = [h * d + i + half * d // 2 for h in range(heads) for i in range(d // 2) for half in (0, 1)]
    return rows[order]


@pytest.mark.parametrize(("scheme", "error"), [("bf16", 0.003), ("f16", 0.0004), ("q8_0", 0.008)])
def test_every_tensor_is_the_parent_s(base, tiny_policy, tmp_path, scheme, error) -> None:
    folder = export(base, tiny_policy, tmp_path / "g", scheme)
    reader, parent = gguf.GGUFReader(folder / FILE), load_parent(*base)
    found = {t.name: torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type)) for t in reader.tensors}
    kind = parent.model.config.model_type
    state = parent.model.state_dict()
    wanted = {f"blk.{i}.{k}": v for i in range(LAYERS) for k, v in _layer(state, i, kind).items()}
    wanted["output_norm.weight"] = state["model.norm.weight"]
    tokens = json.loads((folder / HEAD_FILE).read_text())["head"]["tokens"]
    output = found["token_embd.weight" if kind == "llama" else "output.weight"]
    torch.testing.assert_close(output[tokens], parent.head.weight, rtol=0.005, atol=1e-4)
    assert len(output) == parent.model.config.vocab_size + 6
    assert set(found) == {*wanted, "token_embd.weight", *(["output.weight"] if kind == "qwen2" else [])}
    for name, right in wanted.items():
        assert (found[name] - right).norm() <= error * right.norm(), name
    types = {t.name: t.tensor_type.name for t in reader.tensors}
    assert types["blk.0.ffn_up.weight"] == scheme.upper() and types["blk.0.attn_norm.weight"] == "F32"


def _layer(state: dict[str, torch.Tensor], i: int, kind: str) -> dict[str, torch.Tensor]:
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    found = {}
    for theirs, ours in names.items():
        for part in ("weight", "bias"):
            tensor = state.get(f"model.layers.{i}.{theirs}.{part}")
            if tensor is not None:
                heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(ours)
                found[f"{ours}.{part}"] = head_pairs(tensor, heads) if heads and kind == "llama" else tensor
    return found


def test_the_header_says_what_the_model_is(base, tiny_policy, tmp_path, tiny_tokenizer) -> None:
    folder = export(base, tiny_policy, tmp_path / "g")
    found = fields(gguf.GGUFReader(folder / FILE))
    kind = found["general.architecture"]
    sizes = {
        "block_count": LAYERS,
        "context_length": 512,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.key_length": HEAD_DIM,
        "rope.dimension_count": HEAD_DIM,
    }
    assert {name: found[f"{kind}.{name}"] for name in sizes} == sizes
    tokens, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    vocab = tiny_tokenizer.get_vocab(with_added_tokens=True)
    assert all(tokens[i] == token for token, i in vocab.items())
    assert tokens[-6:-4] == ["<|prompt_safe|>", "<|prompt_unsafe|>"]
    assert (
        set(types[-6:]) == {gguf.TokenType.CONTROL}
        and types[vocab["<tool_call>"]] == gguf.TokenType.USER_DEFINED
    )
    assert str(tmp_path).encode() not in (folder / FILE).read_bytes()


def test_q8_0_is_the_gguf_package_s_own(tmp_path) -> None:
    """The same bytes as its quantiser gives, ties of rounding aside."""
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(4))
    weight[3, 32:64] = 0
    values, scale = block_int8(weight)
    mine = values.float() * scale.float().repeat_interleave(32, 1)
    packed = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType.Q8_0)
    theirs = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_allclose(mine.numpy(), theirs, atol=1e-6)


def test_a_width_that_blocks_do_not_divide_is_refused() -> None:
    with pytest.raises(ExportError, match="blocks of 32, which do not divide a width of 48"):
        block_int8(torch.ones(2, 48))


def test_a_tokenizer_without_bytes_is_refused(tiny_policy) -> None:
    from aegis_edge.export.targets.gguf import _add_tokenizer
    from aegis_edge.export.targets.vocabulary import Vocabulary

    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    vocabulary = Vocabulary(tokenizer.to_str(), (0,), torch.zeros(1, 32), None)
    writer: Any = None
    with pytest.raises(ExportError, match="byte-level BPE tokenizers only"):
        _add_tokenizer(writer, writer, vocabulary)


def _margins(guard: Guard) -> np.ndarray:
    return np.array([v.prompt.margin for v in guard.check_many(TALKS)])


@pytest.mark.parametrize(("scheme", "tolerance"), [("bf16", 0.06), ("q8_0", 0.25)])
def test_llama_cpp_gives_the_parent_s_verdicts(base, tiny_policy, tmp_path, scheme, tolerance) -> None:
    """The README's own recipe, run as it stands; q8_0 as far as rounding allows on a random model."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: it compiles for minutes")
    folder = export(base, tiny_policy, tmp_path / "g", scheme)
    recipe = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    recipe = recipe.replace('"guard.gguf"', repr(str(folder / FILE))).replace('(".", ask)', "(FOLDER, ask)")
    names: dict[str, Any] = {"FOLDER": folder, "print": lambda verdict: None}
    exec(compile(recipe, "README.md", "exec"), names)
    guard: Guard = names["guard"]
    theirs = _margins(_parent_guard(load_parent(*base), folder))
    ours = _margins(guard)
    assert np.abs(ours - theirs).mean() < tolerance * theirs.std(), (ours, theirs)
    np.testing.assert_allclose(_margins(guard), ours, atol=0.02 * theirs.std())  # with the policy cached


def _parent_guard(parent: Parent, folder: Path) -> Guard:
    def ask(paths: list[list[int]], tokens: list[int]) -> list[list[float]]:
        found = []
        for path in paths:
            with torch.inference_mode():
                hidden = parent.model.model(torch.tensor([path])).last_hidden_state[0, -1]
            found.append((parent.head.weight @ hidden).tolist())
        return found

    return exported_guard(folder, ask)
