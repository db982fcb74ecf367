"""The merged guard in bf16 as transformers reads it, for any engine that takes such folders."""

from __future__ import annotations

from pathlib import Path

from aegis_edge.export.targets import Build, Target
from aegis_edge.export.targets.checkpoint import save_checkpoint, save_head
from aegis_edge.export.targets.readme import python_recipe, readme
from aegis_edge.export.targets.vocabulary import with_labels

_LOAD = """
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(".", dtype=torch.bfloat16, device_map="auto").eval()
"""
_ASK = """
found = []
for path in paths:
    with torch.inference_mode():
        logits = model(torch.tensor([path], device=model.device), logits_to_keep=1).logits
    found.append(logits[0, -1, tokens].float().tolist())
return found
"""
VLLM = """vLLM caches the policy's keys and values by itself (prefix caching is its default):

```
pip install vllm aegis-edge
```

"""
VLLM_LOAD = """
from vllm import LLM, SamplingParams

llm = LLM(".", enable_prefix_caching=True, logprobs_mode="raw_logits", max_logprobs=8)
"""
VLLM_ASK = """
options = SamplingParams(max_tokens=1, temperature=0, logprob_token_ids=tokens, detokenize=False)
answers = llm.generate([{"prompt_token_ids": path} for path in paths], options, use_tqdm=False)
return [[answer.outputs[0].logprobs[0][token].logprob for token in tokens] for answer in answers]
"""
_CHECKED = """Run, by the project's tests on a CPU: the folder loads in transformers and in `exported_guard`
over the recipe for transformers above; hidden states, label logits and verdicts are compared with the
parent's, on a small random model. Not run: vLLM, or anything on a GPU.
"""


def write(build: Build, folder: Path) -> None:
    """Fill `folder`."""
    vocabulary = with_labels(build)
    save_checkpoint(build, vocabulary, folder)
    save_head(build, vocabulary, folder)
    run = (
        "```\npip install transformers accelerate aegis-edge\n```\n\n"
        + python_recipe(_LOAD, _ASK)
        + "\n"
        + VLLM
        + python_recipe(VLLM_LOAD, VLLM_ASK)
    )
    files = {
        "config.json": "the decoder",
        "model.safetensors": "weights in bf16, the label rows in the LM head",
    }
    text = readme(build, vocabulary, engine="transformers and vLLM", files=files, run=run, checked=_CHECKED)
    (folder / "README.md").write_text(text, encoding="utf-8")


TARGET = Target(write, schemes=("bf16",))
