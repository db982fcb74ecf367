"""GGUF for llama.cpp, written with the `gguf` package."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from aegis_edge.errors import ExportError
from aegis_edge.export.architecture import rope_parameters
from aegis_edge.export.foreign import BLOCK, F16, Q8
from aegis_edge.export.quantise import Bf16
from aegis_edge.export.targets import Build, Target
from aegis_edge.export.targets.checkpoint import rows_of, save_head
from aegis_edge.export.targets.readme import python_recipe, readme
from aegis_edge.export.targets.vocabulary import Vocabulary, with_labels
from aegis_edge.export.trunk import Projection

FILE = "guard.gguf"
# Our matrix -> GGUF's names of its parts.
_PARTS = {
    "qkv": ("attn_q", "attn_k", "attn_v"),
    "o": ("attn_output",),
    "gate_up": ("ffn_gate", "ffn_up"),
    "down": ("ffn_down",),
}
_TYPE = gguf.GGMLQuantizationType
_FILE_TYPES = {
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}

_LOAD = """
from llama_cpp import Llama, llama_get_logits

llm = Llama("guard.gguf", n_ctx={context}, n_batch={context}, verbose=False)
"""
_ASK = """
found = []
for path in paths:
    kept = llm.longest_token_prefix(llm.input_ids[: llm.n_tokens], path[:-1])  # the policy, at least
    llm._ctx.kv_cache_seq_rm(-1, kept, -1)
    llm.n_tokens = kept
    llm.eval(path[kept:])
    logits = llama_get_logits(llm._ctx.ctx)  # of the last token
    found.append([logits[token] for token in tokens])
return found
"""
_SERVER = """
Behind `llama-server -m guard.gguf`, `/completion` takes ids and keeps the policy in its cache:

```
{"prompt": IDS, "n_predict": 1, "cache_prompt": true, "temperature": 0, "n_probs": 20,
 "logit_bias": [[SAFE, 100], [UNSAFE, 100]], "post_sampling_probs": true, "samplers": []}
```

The bias lifts both labels over all other tokens; the difference of their log-probabilities is the margin
before its bias.
"""
_CHECKED = """Run, by the project's tests on a CPU: every tensor is read back with the `gguf` package and
compared; where llama-cpp-python is installed, it loads the file and `exported_guard` over the recipe above
gives the parent's verdicts, on a small random model. Not run: llama-server, and llama.cpp on a GPU.
"""


def write(build: Build, folder: Path) -> None:
    """Fill `folder`. Raises ExportError for a tokenizer or a RoPE scaling that GGUF has no form for."""
    vocabulary = with_labels(build)
    save_gguf(build, vocabulary, folder / FILE)
    save_head(build, vocabulary, folder)
    (folder / "tokenizer.json").write_text(vocabulary.tokenizer, encoding="utf-8")
    context = build.trunk.dims.context
    run = (
        "```\npip install llama-cpp-python aegis-edge\n```\n\n"
        + python_recipe(_LOAD.format(context=context), _ASK)
        + _SERVER
    )
    files = {FILE: f"weights in {build.scheme}, embeddings and label rows in 16 bits"}
    text = readme(build, vocabulary, engine="llama.cpp", files=files, run=run, checked=_CHECKED)
    (folder / "README.md").write_text(text, encoding="utf-8")


def save_gguf(build: Build, vocabulary: Vocabulary, file: Path) -> None:
    """The whole model in one file."""
    kind = "qwen2" if build.parent.model.config.model_type == "qwen2" else "llama"
    writer = gguf.GGUFWriter(file, kind)
    _add_header(writer, build, vocabulary)
    _add_tokenizer(writer, build, vocabulary)
    factors = rope_factors(build)
    if factors is not None:
        if kind != "llama":
            raise ExportError(f"GGUF has no form for scaled RoPE in {kind!r} models")
        writer.add_tensor("rope_freqs.weight", factors)
    for name, tensor in _tensors(build, vocabulary, permuted=kind == "llama"):
        array, raw = _stored(tensor)
        writer.add_tensor(name, array, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_header(writer: gguf.GGUFWriter, build: Build, vocabulary: Vocabulary) -> None:
    dims = build.trunk.dims
    writer.add_name(f"Guard on {build.provenance['base']['model']}")
    writer.add_file_type(_FILE_TYPES[build.scheme])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(dims.context)
    writer.add_embedding_length(dims.hidden)
    writer.add_block_count(dims.layers)
    writer.add_feed_forward_length(dims.intermediate)
    writer.add_head_count(dims.heads)
    writer.add_head_count_kv(dims.kv_heads)
    writer.add_key_length(dims.head_dim)
    writer.add_value_length(dims.head_dim)
    writer.add_rope_dimension_count(dims.head_dim)
    writer.add_rope_freq_base(dims.rope_theta)
    writer.add_layer_norm_rms_eps(dims.norm_eps)
    writer.add_vocab_size(len(vocabulary.embed))


def _add_tokenizer(writer: gguf.GGUFWriter, build: Build, vocabulary: Vocabulary) -> None:
    """Enough for llama.cpp to load and to print tokens; content is encoded outside (see the README)."""
    found = json.loads(vocabulary.tokenizer)
    model, added = found["model"], found["added_tokens"]
    if model.get("type") != "BPE" or "ByteLevel" not in json.dumps(found.get("pre_tokenizer")):
        raise ExportError(
            "--target gguf takes byte-level BPE tokenizers only", hint="--target hf has no such limit"
        )
    tokens = [f"[PAD{i}]" for i in range(len(vocabulary.embed))]
    types = [gguf.TokenType.UNUSED] * len(tokens)
    for token, i in model["vocab"].items():
        tokens[i], types[i] = token, gguf.TokenType.NORMAL
    for entry in added:
        tokens[entry["id"]] = entry["content"]
        types[entry["id"]] = gguf.TokenType.CONTROL if entry["special"] else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm" if "Digits" in json.dumps(found["pre_tokenizer"]) else "default")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(
        [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    )
    writer.add_add_bos_token(False)
    end = build.parent.model.config.eos_token_id
    # llama.cpp wants one; nothing is generated, so any control token does where the base names none.
    writer.add_eos_token_id(end if isinstance(end, int) else vocabulary.tokens[0])


def rope_factors(build: Build) -> np.ndarray | None:
    """What llama.cpp divides each frequency by, float32 [head_dim / 2]; None for plain RoPE."""
    config, dims = build.parent.model.config, build.trunk.dims
    if rope_parameters(config)[1] is None:
        return None
    plain = dims.rope_theta ** (-torch.arange(0, dims.head_dim, 2).double() / dims.head_dim)
    scaled = build.parent.model.model.rotary_emb.inv_freq.double()
    return (plain / scaled).float().numpy()


def _tensors(
    build: Build, vocabulary: Vocabulary, permuted: bool
) -> Iterator[tuple[str, Tensor | tuple[Tensor, Tensor]]]:
    """GGUF's name and tensor of everything; blocks of q8_0 as (int8 [N, K], f16 scale [N, K / 32])."""
    trunk, dims = build.trunk, build.trunk.dims
    wide = torch.bfloat16 if build.scheme == "bf16" else torch.float16
    yield "token_embd.weight", vocabulary.embed.to(wide)
    if vocabulary.lm_head is not None:
        yield "output.weight", vocabulary.lm_head.to(wide)
    ones = torch.ones(dims.hidden)
    yield "output_norm.weight", ones if trunk.final_norm is None else trunk.final_norm
    for i, layer in enumerate(trunk.layers):
        for norm, ours in (("attn_norm", layer.input_norm), ("ffn_norm", layer.post_norm)):
            yield f"blk.{i}.{norm}.weight", ones if ours is None else ours
        for part, names in _PARTS.items():
            pieces = [tensor.split(rows_of(dims, part)) for tensor in _parts_of(getattr(layer, part))]
            bias = getattr(layer, part).bias
            for j, name in enumerate(names):
                # Llama's files hold each head's rotary pairs side by side, transformers half a head apart.
                heads = {"attn_q": dims.heads, "attn_k": dims.kv_heads}.get(name, 0) if permuted else 0
                piece = tuple(_side_by_side(tensors[j], heads) for tensors in pieces)
                yield f"blk.{i}.{name}.weight", piece[0] if len(piece) == 1 else (piece[0], piece[1])
                if bias is not None:
                    yield f"blk.{i}.{name}.bias", bias.split(rows_of(dims, part))[j].float()


def _parts_of(projection: Projection) -> tuple[Tensor, ...]:
    match projection:
        case Bf16() | F16():
            return (projection.weight,)
        case Q8():
            return projection.weight, projection.scale
    raise TypeError(f"{type(projection).__name__} has no form in GGUF")


def _side_by_side(rows: Tensor, heads: int) -> Tensor:
    """Rows i and i + d/2 of every head brought together; heads 0: as they are."""
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2) if heads else rows


def _stored(tensor: Tensor | tuple[Tensor, Tensor]) -> tuple[np.ndarray, Any]:
    """The array that the writer takes, and its type where the array's own does not say it."""
    if isinstance(tensor, tuple):
        values, scale = tensor
        blocks = values.contiguous().view(torch.uint8).unflatten(-1, (-1, BLOCK))
        sizes = scale.contiguous().view(torch.uint8).unflatten(-1, (-1, 2))
        return torch.cat((sizes, blocks), -1).flatten(-2).numpy(), _TYPE.Q8_0
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.uint8).numpy(), _TYPE.BF16
    return tensor.contiguous().numpy(), None


TARGET = Target(write, schemes=("bf16", "q8_0", "f16"))
