"""W8A8 as vLLM reads it: compressed-tensors `int-quantized`, int8 weights a channel, int8 activations a
token.

Norms are folded and rotations too, which cost another engine nothing. The Hadamard transform before `down`
and second digits are steps of this project's runtime alone, so `down`, whose inputs have the outliers, stays
in bf16: in int8 it moved the default guard's margins twice as far (round to nearest, 272 verdicts: 16.2 % of
their standard deviation against 8.6 %).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aegis_edge.export.targets import Build, Target
from aegis_edge.export.targets.checkpoint import save_checkpoint, save_head
from aegis_edge.export.targets.hf import VLLM, VLLM_ASK, VLLM_LOAD
from aegis_edge.export.targets.readme import python_recipe, readme
from aegis_edge.export.targets.vocabulary import with_labels

_CHECKED = """Run, by the project's tests on a CPU: transformers with compressed-tensors loads such a folder
and quantises activations as its configuration says; verdicts are compared with the parent's, on a small
random model. Not run: vLLM and its int8 kernels, or anything on a GPU.
"""


def write(build: Build, folder: Path) -> None:
    """Fill `folder`."""
    vocabulary = with_labels(build)
    save_checkpoint(build, vocabulary, folder, quantization_config())
    save_head(build, vocabulary, folder)
    files = {
        "config.json": "the decoder, with compressed-tensors' quantization_config",
        "model.safetensors": "int8 weights with a scale a row; down_proj, embeddings and LM head in bf16",
    }
    run = VLLM + python_recipe(VLLM_LOAD, VLLM_ASK)
    text = readme(build, vocabulary, engine="vLLM", files=files, run=run, checked=_CHECKED)
    (folder / "README.md").write_text(text, encoding="utf-8")


def quantization_config() -> dict[str, Any]:
    """The quantization_config of config.json, as compressed-tensors 0.20 writes it."""
    int8 = {"num_bits": 8, "type": "int", "symmetric": True, "group_size": None, "block_structure": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": ["lm_head", "re:.*down_proj$"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": int8 | {"strategy": "channel", "dynamic": False},
                "input_activations": int8 | {"strategy": "token", "dynamic": True},
                "output_activations": None,
            }
        },
    }


TARGET = Target(write, schemes=("w8a8",), kept=("down",))
