"""OpenVINO: the parent as one graph whose policy is a cache handed in, int8 in three ways.

The graph is written out here (`Decoder`), because a check wants what no generation pipeline offers: keys and
values of the policy as inputs, and the hidden states of some rows as output.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from aegis_edge.bench import prompts
from aegis_edge.bench.contender import Contender, Source
from aegis_edge.bench.paths import HiddenArray, PathScorer
from aegis_edge.scoring import IdArray, Scorer

# Conversations that NNCF sees when it chooses ranges for activations.
CALIBRATION = 48
# variant -> (file, what it is, properties of the compiled model)
VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "dynamic": (
        "int8",
        "int8 weights, activations quantised in groups of 64 at run time",
        {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 64},
    ),
    "bf16": (
        "int8",
        "int8 weights, bf16 arithmetic",
        {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0, "INFERENCE_PRECISION_HINT": "bf16"},
    ),
    "w8a8": ("w8a8", "NNCF post-training quantisation of weights and activations", {}),
}


def contenders() -> list[Contender]:
    return [
        Contender(
            name=f"openvino-{variant}",
            about=f"OpenVINO, {about}; policy cached",
            load=partial(_load, variant),
            packages=("openvino", "nncf"),
            modules=("openvino", "nncf"),
            prepare=partial(_prepare, file),
        )
        for variant, (file, about, _) in VARIANTS.items()
    ]


class Decoder(nn.Module):
    """The parent's decoder. Tokens [1, T] after a past [L, Hkv, P, d] -> hidden states [S, H] at `slots`, and
    the tokens' own keys and values [L, Hkv, T, d]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, ids: Tensor, positions: Tensor, mask: Tensor, past_k: Tensor, past_v: Tensor, slots: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        model, config = self.model, self.model.config
        heads, shared, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        hidden = model.embed_tokens(ids)
        cos, sin = model.rotary_emb(hidden, positions)
        keys, values = [], []
        for number, layer in enumerate(model.layers):
            attention = layer.self_attn
            x = layer.input_layernorm(hidden)
            q = attention.q_proj(x).view(1, -1, heads, size).transpose(1, 2)
            k = attention.k_proj(x).view(1, -1, shared, size).transpose(1, 2)
            v = attention.v_proj(x).view(1, -1, shared, size).transpose(1, 2)
            q, k = apply_rotary_pos_emb(q, k, cos, sin)
            keys.append(k)
            values.append(v)
            k = torch.cat((past_k[number][None], k), 2).repeat_interleave(heads // shared, 1)
            v = torch.cat((past_v[number][None], v), 2).repeat_interleave(heads // shared, 1)
            mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            hidden = hidden + attention.o_proj(mixed.transpose(1, 2).reshape(1, -1, heads * size))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        found = model.norm(hidden[0].index_select(0, slots))
        return found, torch.cat(keys), torch.cat(values)


def inputs(ids: IdArray, past: tuple[np.ndarray, np.ndarray], slots: Sequence[int]) -> dict[str, np.ndarray]:
    """The graph's inputs for ids int32 [T] after a past of k and v [L, Hkv, P, d]."""
    depth = past[0].shape[2]
    positions = np.arange(depth, depth + len(ids))
    mask = np.where(np.arange(depth + len(ids))[None] <= positions[:, None], 0.0, -np.inf)
    return {
        "ids": ids.astype(np.int64)[None],
        "positions": positions.astype(np.int64)[None],
        "mask": mask.astype(np.float32)[None, None],
        "past_k": past[0],
        "past_v": past[1],
        "slots": np.array(slots, np.int64),
    }


def no_past(model: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """k and v [L, Hkv, 0, d]. model: the manifest's section."""
    empty = np.zeros((model["layers"], model["kv_heads"], 0, model["head_dim"]), np.float32)
    return empty, empty


def _file(source: Source, scheme: str) -> Path:
    return source.work / f"openvino-{source.parent.name}" / f"{scheme}.xml"


def _prepare(scheme: str, source: Source) -> None:
    file = _file(source, scheme)
    if file.is_file():
        return
    import nncf
    import openvino

    model = AutoModel.from_pretrained(source.parent, dtype=torch.float32).eval()
    past = no_past(source.manifest["model"])
    root = inputs(source.root, past, [len(source.root) - 1])
    with torch.inference_mode():
        example = {name: torch.from_numpy(value) for name, value in root.items()}
        graph = openvino.convert_model(Decoder(model), example_input=example)
        _, keys, values = Decoder(model)(**example)
    for port, name in zip(graph.outputs, ("hidden", "keys", "values"), strict=True):
        port.set_names({name})
    cached = (keys.numpy(), values.numpy())
    if scheme == "int8":
        graph = nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_SYM)
    else:
        graph = nncf.quantize(
            graph, nncf.Dataset(_calibration(source, cached)), model_type=nncf.ModelType.TRANSFORMER
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    openvino.save_model(graph, file, compress_to_fp16=False)


def _calibration(source: Source, cached: tuple[np.ndarray, np.ndarray]) -> list[dict[str, np.ndarray]]:
    from aegis_edge.artifact import Artifact
    from aegis_edge.bench.guards import Text

    text = Text(Artifact.open(source.guard, verify=False))
    end = np.array(text.plan.prompt[-1].parts[0], np.int32)
    found = []
    for talk in prompts.sample(CALIBRATION, prompts.SEED + 1):
        ids = np.concatenate([text.encoder.encode(talk.prompt), end])
        found.append(inputs(ids, cached, [len(ids) - 1]))
    return found


def _load(variant: str, source: Source, threads: int) -> Scorer:
    scheme, _, properties = VARIANTS[variant]
    engine = OpenVino(_file(source, scheme), {**properties, "INFERENCE_NUM_THREADS": threads}, source)
    return PathScorer(f"openvino-{variant}", engine, source)


class OpenVino:
    """See paths.Engine. Several paths run one after another: a padded batch is slower with this graph."""

    def __init__(self, file: Path, properties: dict[str, Any], source: Source) -> None:
        import openvino

        model = source.manifest["model"]
        self.context: int = model["context"]
        self._past = no_past(model)
        core = openvino.Core()
        whole = core.read_model(file)
        properties = {"PERFORMANCE_HINT": "LATENCY", **properties}
        # A check needs no keys and values of its own: without them as outputs they are never gathered.
        check = openvino.Model([whole.get_results()[0]], whole.get_parameters(), "check")
        self._check = core.compile_model(check, "CPU", properties).create_infer_request()
        self._compile_whole = partial(core.compile_model, whole, "CPU", properties)

    def prefix(self, root: IdArray) -> tuple[np.ndarray, np.ndarray]:
        found = self._compile_whole()(inputs(root, self._past, [len(root) - 1]))
        return found["keys"].copy(), found["values"].copy()

    def run(
        self,
        prefix: tuple[np.ndarray, np.ndarray],
        paths: Sequence[IdArray],
        slots: Sequence[Sequence[int]],
    ) -> HiddenArray:
        found = []
        for path, own in zip(paths, slots, strict=True):
            result = self._check.infer(inputs(path, prefix, own), share_inputs=True)
            found.append(result["hidden"].copy())
        return np.concatenate(found)
