"""What TensorRT Edge-LLM 0.11 makes ONNX and engines from: the bf16 checkpoint, and the vocabulary cut to
what a verdict reads.

Its `-reduce-vocab` counts words of a news data set; a guard knows which rows it needs. So the map is written
here, in its form (`vocab_map` int32, token of each row kept): the label tokens, in the head's order, then the
tokens that end a text, which its runtime wants to be there. The tool stops at a checkpoint without a chat
template; the one written here adds nothing to what it is given.
"""

from __future__ import annotations

from pathlib import Path

import torch

from aegis_edge.export.targets import Build, Target
from aegis_edge.export.targets.checkpoint import save_checkpoint, save_head, write_json
from aegis_edge.export.targets.readme import readme
from aegis_edge.export.targets.vocabulary import Vocabulary, with_labels
from aegis_edge.export.write import save_tensors

MAP = "vocab_map.safetensors"  # both names are the tool's
INFO = "reduced_vocab.json"
TEMPLATE = "chat_template.jinja"
_AS_IT_IS = "{% for message in messages %}{{ message.content }}{% endfor %}"

_RUN = """On any machine, in an environment of its own (it pins PyTorch and transformers):

```
pip install "tensorrt-edgellm[export]==0.11.0"
tensorrt-edgellm-export . onnx --reduced-vocab-dir .
```

`onnx/llm` then has the decoder with an LM head of {count} rows. Row i is token `vocab_map[i]` of
`{map}`; the labels are rows 0 to {last}, in the order of aegis_head.json. Copy `onnx` to the target
machine, a Jetson or a GPU with TensorRT, and build its engine there as TensorRT Edge-LLM's documentation
says for that machine:

```
tensorrt-edgellm-build --help
```

The policy is the same in every prompt: its runtime can keep a system prompt's keys and values, and every
check start from them. Give it ids, never text. `aegis_edge.exported.exported_guard(".", ask)` makes verdicts
of logits in Python: `ask(paths, tokens)` gives, for each path of ids, those of `tokens` behind its last.
"""
_CHECKED = """Run, by the project's tests on a CPU: the folder loads in transformers, and verdicts from the
kept rows alone are the parent's, on a small random model. By hand, once, on the default guard: the export of
tensorrt-edgellm 0.11.0 to its end (logits of 7 rows come out), and its ONNX graph in ONNX Runtime, its
`AttentionPlugin` nodes replaced by standard operators. Not run: the plugin itself, an engine, its runtime,
`tensorrt-edgellm-build`, or anything on a GPU; nor the tool's own `-reduce-vocab`, which counts a news data
set and takes no tokens. `python -m aegis_edge.bench.exports .` compares `onnx` with the parent.
"""


def write(build: Build, folder: Path) -> None:
    """Fill `folder`."""
    vocabulary = with_labels(build)
    save_checkpoint(build, vocabulary, folder)
    save_head(build, vocabulary, folder)
    kept = kept_tokens(build, vocabulary)
    save_tensors(folder / MAP, {"vocab_map": torch.tensor(kept, dtype=torch.int32)})
    about = {"vocab_size": len(vocabulary.embed), "reduced_vocab_size": len(kept), "method": "labels"}
    write_json(folder / INFO, about)
    (folder / TEMPLATE).write_text(_AS_IT_IS, encoding="utf-8")
    files = {
        "config.json": "the decoder",
        "model.safetensors": "weights in bf16, the label rows in the LM head",
        MAP: f"the {len(kept)} tokens whose rows of the LM head are kept",
        INFO: "how many those are, as the tool writes it",
        TEMPLATE: "content as it is; the tool wants one, a guard does not",
    }
    run = _RUN.format(count=len(kept), last=len(vocabulary.tokens) - 1, map=MAP)
    text = readme(build, vocabulary, engine="TensorRT Edge-LLM", files=files, run=run, checked=_CHECKED)
    (folder / "README.md").write_text(text, encoding="utf-8")


def kept_tokens(build: Build, vocabulary: Vocabulary) -> list[int]:
    """The label tokens in the head's order, then those that end a text, each once."""
    ends = build.parent.model.config.eos_token_id
    more = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    return list(dict.fromkeys([*vocabulary.tokens, *more]))


TARGET = Target(write, schemes=("bf16",))
