"""The older form of TensorRT-LLM's checkpoints, of 1.2 and before: its own config.json and rank0.safetensors,
which `trtllm-build` turns into an engine.

Fields and names are those of TensorRT-LLM's docs/source/architecture/checkpoint.md and, for Llama's parts, of
tensorrt_llm/models/llama: fc is the gate projection, gate the up projection, proj the down projection.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aegis_edge.errors import ExportError
from aegis_edge.export.architecture import rope_parameters
from aegis_edge.export.foreign import Fp8
from aegis_edge.export.quantise import Bf16
from aegis_edge.export.targets import Build, Target
from aegis_edge.export.targets.checkpoint import rows_of, save_head, save_tokenizer, write_json
from aegis_edge.export.targets.readme import python_recipe, readme
from aegis_edge.export.targets.vocabulary import Vocabulary, with_labels
from aegis_edge.export.trunk import Projection
from aegis_edge.export.write import save_tensors

# transformers' architecture -> fields that only its class has.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"mlp_bias": False},
    "Qwen2ForCausalLM": {"mlp_bias": False, "qwen_type": "qwen2"},
}
# Our matrix -> TensorRT-LLM's names of its parts.
_PARTS = {
    "qkv": ("attention.qkv",),
    "o": ("attention.dense",),
    "gate_up": ("mlp.fc", "mlp.gate"),
    "down": ("mlp.proj",),
}

_LOAD = """
from tensorrt_llm import SamplingParams
from tensorrt_llm._tensorrt_engine import LLM  # before 1.0: from tensorrt_llm import LLM
from tensorrt_llm.llmapi import KvCacheConfig

llm = LLM("engine", tokenizer=".", kv_cache_config=KvCacheConfig(enable_block_reuse=True))
"""
_ASK = """
options = SamplingParams(max_tokens=1, end_id=-1, return_generation_logits=True, detokenize=False)
answers = llm.generate([{"prompt_token_ids": path} for path in paths], options, use_tqdm=False)
return [answer.outputs[0].generation_logits[0, tokens].float().tolist() for answer in answers]
"""
_RUN = """TensorRT-LLM 1.2 or before, on the GPU that will run the guard: an engine is of one kind of GPU.
Newer versions have no engines; `aegis-edge export --target tensorrt-llm` without `--legacy` is for them.

```
pip install "tensorrt-llm<1.3" aegis-edge --extra-index-url https://pypi.nvidia.com
trtllm-build --checkpoint_dir . --output_dir engine --gemm_plugin auto --gather_generation_logits \\
  --use_paged_context_fmha enable --max_batch_size 64 --max_input_len {most} --max_seq_len {context}
```

Paged attention is what lets the policy's keys and values be used again.

"""
_CHECKED = """Run, by the project's tests on a CPU: every field of config.json against the published table
of the format, every tensor's name, type and shape, and the weights against the parent's, on a small random
model. Not run: TensorRT-LLM, which does not install without NVIDIA's index and a GPU: neither
`trtllm-build` nor a line of the recipe above has been executed.
"""


def write(build: Build, folder: Path) -> None:
    """Fill `folder`. Raises ExportError for an architecture that ARCHITECTURES has not."""
    vocabulary = with_labels(build)
    write_json(folder / "config.json", config_of(build, vocabulary))
    save_tensors(folder / "rank0.safetensors", dict(tensors_of(build, vocabulary)))
    save_tokenizer(build, vocabulary, folder)
    save_head(build, vocabulary, folder)
    files = {
        "config.json": "the decoder, in TensorRT-LLM's own form",
        "rank0.safetensors": f"weights in {build.scheme}, for one GPU; embeddings and LM head in bf16",
    }
    context = build.trunk.dims.context
    run = _RUN.format(most=context - 1, context=context) + python_recipe(_LOAD, _ASK)
    text = readme(
        build, vocabulary, engine="TensorRT-LLM 1.2 and before", files=files, run=run, checked=_CHECKED
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def config_of(build: Build, vocabulary: Vocabulary) -> dict[str, Any]:
    """The content of config.json."""
    dims, config = build.trunk.dims, build.parent.model.config
    name = type(build.parent.model).__name__
    if name not in ARCHITECTURES:
        raise ExportError(
            f"--legacy has no form for {name}", hint="--target tensorrt-llm without it, or --target hf"
        )
    theta, scaling = rope_parameters(config)
    return ARCHITECTURES[name] | {
        "architecture": name,
        "dtype": "bfloat16",
        "logits_dtype": "float32",
        "vocab_size": len(vocabulary.embed),
        "max_position_embeddings": dims.context,
        "hidden_size": dims.hidden,
        "num_hidden_layers": dims.layers,
        "num_attention_heads": dims.heads,
        "num_key_value_heads": dims.kv_heads,
        "head_size": dims.head_dim,
        "hidden_act": "silu",
        "intermediate_size": dims.intermediate,
        "norm_epsilon": dims.norm_eps,
        "position_embedding_type": "rope_gpt_neox",
        "rotary_base": theta,
        "rotary_scaling": scaling,
        "attn_bias": getattr(build.trunk.layers[0].qkv, "bias", None) is not None,
        "tie_word_embeddings": False,  # the LM head is written out
        "mapping": {"world_size": 1, "tp_size": 1, "pp_size": 1},
        "quantization": {
            "quant_algo": "FP8" if build.scheme == "fp8" else None,
            "kv_cache_quant_algo": None,
            "exclude_modules": ["lm_head", "*.vocab_embedding"] if build.scheme == "fp8" else None,
        },
    }


def tensors_of(build: Build, vocabulary: Vocabulary) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of everything on the one rank; matrices are [out, in]."""
    trunk = build.trunk
    ones = torch.ones(trunk.dims.hidden)
    yield "transformer.vocab_embedding.weight", vocabulary.embed.bfloat16()
    for i, layer in enumerate(trunk.layers):
        name = f"transformer.layers.{i}"
        for norm, ours in (("input_layernorm", layer.input_norm), ("post_layernorm", layer.post_norm)):
            yield f"{name}.{norm}.weight", (ones if ours is None else ours).bfloat16()
        for part, targets in _PARTS.items():
            rows = [sum(rows_of(trunk.dims, part))] if len(targets) == 1 else rows_of(trunk.dims, part)
            for target, piece in zip(targets, _split(getattr(layer, part), rows), strict=True):
                for key, tensor in piece.items():
                    yield f"{name}.{target}.{key}", tensor
    yield "transformer.ln_f.weight", (ones if trunk.final_norm is None else trunk.final_norm).bfloat16()
    yield "lm_head.weight", vocabulary.output.bfloat16().clone()


def _split(projection: Projection, rows: list[int]) -> Iterator[dict[str, Tensor]]:
    """A projection's tensors in pieces of so many rows."""
    if not isinstance(projection, Bf16 | Fp8):
        raise TypeError(f"{type(projection).__name__} has no form in a TensorRT-LLM checkpoint")
    biases = [None] * len(rows) if projection.bias is None else projection.bias.bfloat16().split(rows)
    for weight, bias in zip(projection.weight.split(rows), biases, strict=True):
        piece = {"weight": weight.contiguous()} | ({} if bias is None else {"bias": bias.contiguous()})
        if isinstance(projection, Fp8):
            piece["weights_scaling_factor"] = projection.scale.float().reshape(1).clone()
            piece["activation_scaling_factor"] = projection.input_scale.float().reshape(1).clone()
        yield piece


TARGET = Target(write, schemes=("bf16", "fp8"))
