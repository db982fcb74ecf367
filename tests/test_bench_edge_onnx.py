"""TensorRT Edge-LLM's attention operator in standard ones, beside PyTorch's over each path alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from aegis_edge.bench import edge_onnx
from aegis_edge.errors import ScorerError

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install '.[bench]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install '.[bench]'")

HEADS, KV, SIZE, VOCAB = 6, 2, 16, 40
WIDTH, INNER = (HEADS + 2 * KV) * SIZE, HEADS * SIZE
PLAIN = {"num_q_heads": HEADS, "num_kv_heads": KV, "head_size": SIZE, "attention_scale": 0.3}
OFF = {"enable_tree_attention": 0, "enable_fp8_kv_cache": 0, "sliding_window_size": -1}
ROOT = [3, 1, 4, 1, 5]


def write(folder: Path, scaling: str = "default", operator: str = "AttentionPlugin", **changes: Any) -> Path:
    """A graph of one attention: embeddings are its packed rows, logits what it gives."""
    helper, kind = onnx.helper, onnx.TensorProto
    given = ["inputs_embeds", "past", "lengths", "rope_rotary_cos_sin"]
    nodes = [
        helper.make_node(operator, given, ["attended", "present"], "trt_edgellm", **PLAIN, **OFF | changes),
        helper.make_node("Reshape", ["attended", "shape"], ["flat"]),
        helper.make_node("Gather", ["flat", "logits_indices"], ["read"]),
        helper.make_node("Cast", ["read"], ["logits"], to=kind.FLOAT),
    ]
    inputs = [
        ("inputs_embeds", kind.FLOAT16, ["t", WIDTH]),
        ("past", kind.FLOAT16, [2, "pages", 128, KV, SIZE]),
        ("lengths", kind.INT32, ["s"]),
        ("rope_rotary_cos_sin", kind.FLOAT, ["t", SIZE]),
        ("logits_indices", kind.INT64, ["s"]),
    ]
    outputs = [("logits", kind.FLOAT, ["s", INNER]), ("present", kind.FLOAT16, [2, "pages", 128, KV, SIZE])]
    graph = helper.make_graph(
        nodes,
        "g",
        *([helper.make_tensor_value_info(*one) for one in some] for some in (inputs, outputs)),
        [onnx.numpy_helper.from_array(np.array([-1, INNER]), "shape")],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("trt_edgellm", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "model.onnx")
    about = {"head_dim": SIZE, "rope_theta": 100.0, "rope_scaling": {"rope_type": scaling}}
    (folder / "config.json").write_text(json.dumps(about))
    rows = np.random.default_rng(5).normal(0, 1, (VOCAB, WIDTH)).astype(np.float16)
    save_file({"embedding": rows}, folder / "embedding.safetensors")
    save_file({"vocab_map": np.arange(INNER, dtype=np.int32)[::-1].copy()}, folder / "vocab_map.safetensors")
    return folder / "model.onnx"


def by_torch(folder: Path, path: list[int]) -> torch.Tensor:
    """Attention at the last token of a path, the columns in the order of the map."""
    from safetensors.torch import load_file

    x = load_file(folder / "embedding.safetensors")["embedding"][path].float()
    q, k, v = (
        part.unflatten(1, (-1, SIZE)).transpose(0, 1)[None]
        for part in x.split([INNER, KV * SIZE, KV * SIZE], dim=1)
    )
    rope = {"rope_type": "default", "rope_theta": 100.0}
    config = LlamaConfig(hidden_size=INNER, num_attention_heads=HEADS, head_dim=SIZE, rope_parameters=rope)
    q, k = apply_rotary_pos_emb(q, k, *LlamaRotaryEmbedding(config)(x, torch.arange(len(path))[None]))
    out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3, enable_gqa=True)
    return out[0, :, -1].flatten().flip(0)


PATHS = [[*ROOT, 7], [*ROOT, 9, 2, 6], [*ROOT, 7, 7, 31]]


def test_paths_packed_behind_one_policy_are_attention_over_each(tmp_path, monkeypatch) -> None:
    file = write(tmp_path)
    right = torch.stack([by_torch(tmp_path, path) for path in PATHS])

    def error() -> float:
        found = edge_onnx.EdgeOnnx(file, ROOT)(PATHS, list(range(INNER)))
        return float((torch.tensor(found) - right).abs().max() / right.abs().max())

    assert error() < 2**-10  # the result is rounded to f16
    monkeypatch.setattr(edge_onnx, "_HIDDEN", 0.0)  # the inverse: everything sees everything
    assert error() > 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"enable_tree_attention": 1}, r"more than attention: \['enable_tree_attention'\]"),
        ({"sliding_window_size": 64}, "more than attention: a sliding window"),
        ({"operator": "Other"}, "a graph without AttentionPlugin"),
        ({"scaling": "yarn"}, "rotary scaling 'yarn' is not run here"),
    ],
)
def test_what_is_not_run_is_refused(tmp_path, changes, message) -> None:
    with pytest.raises(ScorerError, match=message):
        edge_onnx.EdgeOnnx(write(tmp_path, **changes), ROOT)


def test_a_path_without_the_policy_is_refused(tmp_path) -> None:
    with pytest.raises(ScorerError, match="does not begin with the exported policy"):
        edge_onnx.EdgeOnnx(write(tmp_path), ROOT)([[1, 2, 3, 4, 5, 6]], [0])
