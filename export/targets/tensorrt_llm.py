"""What TensorRT-LLM's LLM API takes: a Hugging Face checkpoint and ModelOpt's hf_quant_config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aegis_edge.export.targets import Build, Target
from aegis_edge.export.targets.checkpoint import save_checkpoint, save_head, write_json
from aegis_edge.export.targets.readme import python_recipe, readme
from aegis_edge.export.targets.vocabulary import with_labels

_LOAD = """
from tensorrt_llm import LLM, SamplingParams
from tensorrt_llm.llmapi import KvCacheConfig

# Block reuse keeps the policy's keys and values from one request to the next, whole blocks of 32 tokens of
# them.
llm = LLM(".", kv_cache_config=KvCacheConfig(enable_block_reuse=True, free_gpu_memory_fraction=0.3))
"""
_ASK = """
options = SamplingParams(max_tokens=1, end_id=-1, return_generation_logits=True, detokenize=False)
answers = llm.generate([{"prompt_token_ids": path} for path in paths], options, use_tqdm=False)
return [answer.outputs[0].generation_logits[0, tokens].float().tolist() for answer in answers]
"""
_RUN = """TensorRT-LLM 1.2 or newer, with the PyTorch backend: no engine is built. FP8 needs a GPU of compute
capability 8.9 or more; `--quantize bf16` runs on the others.

```
pip install tensorrt-llm aegis-edge --extra-index-url https://pypi.nvidia.com
```

"""
_WARM = """
The first check computes the policy and leaves it in the cache: run one at start. Cached and fresh keys and
values need not give the same bits there (TensorRT-LLM issue 15503 saw logits move by 0.16), so measure
thresholds with reuse on.
"""
_CHECKED = """Run, by the project's tests on a CPU: names, shapes and types of all tensors, and the fields of
hf_quant_config.json as TensorRT-LLM's source reads them; the weights, multiplied out, are compared with the
parent's. Not run: TensorRT-LLM itself, which does not install without NVIDIA's index and a GPU. No line of
the recipe above has been executed.
"""


def write(build: Build, folder: Path) -> None:
    """Fill `folder`."""
    vocabulary = with_labels(build)
    save_checkpoint(build, vocabulary, folder)
    write_json(folder / "hf_quant_config.json", quant_config(build.scheme))
    save_head(build, vocabulary, folder)
    files = {
        "config.json": "the decoder",
        "model.safetensors": f"weights in {build.scheme}, embeddings and LM head in bf16",
        "hf_quant_config.json": "the quantisation, in ModelOpt's form",
    }
    run = _RUN + python_recipe(_LOAD, _ASK) + _WARM
    text = readme(build, vocabulary, engine="TensorRT-LLM", files=files, run=run, checked=_CHECKED)
    (folder / "README.md").write_text(text, encoding="utf-8")


def quant_config(scheme: str) -> dict[str, Any]:
    """The content of hf_quant_config.json; keys and values stay in bf16."""
    return {
        "producer": {"name": "aegis-edge", "version": "0.1.0"},
        "quantization": {
            "quant_algo": "FP8" if scheme == "fp8" else None,
            "kv_cache_quant_algo": None,
            "exclude_modules": ["lm_head"],
        },
    }


TARGET = Target(write, schemes=("bf16", "fp8"))
