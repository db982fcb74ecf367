"""ONNX Runtime GenAI: the parent through its own model builder, int4 and int8 weights at accuracy level 4.

Hidden states are an output beside the logits, and the label rows are applied to them in fp32. The LM head,
which GenAI insists on, multiplies the last token alone. The policy stays in the generator's cache, and within
a call what a sequence shares with the one before it: the same prompt asked again is computed again. Several
conversations run one after another.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from aegis_edge.bench.contender import Contender, Source
from aegis_edge.bench.paths import HiddenArray, PathScorer, shared
from aegis_edge.errors import ScorerError
from aegis_edge.scoring import IdArray, Scorer

# bits -> what the builder is told besides. int4: of the ways it has to round, the one that flipped the fewest
# verdicts of the default guard (k_quant 1 of 32, mixed with int8 9, rtn 7, the default 18).
VARIANTS: dict[str, tuple[str, ...]] = {"int4": ("algo_config=k_quant",), "int8": ()}
# accuracy_level 4: activations are int8 too. prune_lm_head: the head sees the last token only.
OPTIONS = ("accuracy_level=4", "prune_lm_head=true", "include_hidden_states=true")
_CAUSAL = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM"}


def contenders() -> list[Contender]:
    return [
        Contender(
            name=f"ort_genai-{bits}",
            about=f"ONNX Runtime GenAI, {bits} weights in blocks of 32, accuracy level 4; policy cached",
            load=partial(_load, bits),
            packages=("onnxruntime", "onnxruntime-genai"),
            modules=("onnxruntime_genai", "onnx", "onnx_ir"),
            prepare=partial(_prepare, bits),
        )
        for bits in VARIANTS
    ]


def _folder(source: Source, name: str) -> Path:
    return source.work / f"ort_genai-{source.parent.name}" / name


def _prepare(bits: str, source: Source) -> None:
    folder, causal = _folder(source, bits), _folder(source, "source")
    if folder.is_dir():
        return
    _causal_folder(source, causal)
    fresh = folder.with_suffix(".new")
    shutil.rmtree(fresh, ignore_errors=True)
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(causal), "-o", str(fresh)]
    command += ["-p", bits, "-e", "cpu", "-c", str(_folder(source, "cache")), "--extra_options", *OPTIONS]
    command += VARIANTS[bits]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not (fresh / "genai_config.json").is_file():
        raise ScorerError(
            f"ONNX Runtime GenAI's builder failed on {bits}: {done.stderr.strip()[-2000:]}",
            hint="leave it out of --scorers, or install another version of onnxruntime-genai",
        )
    fresh.rename(folder)


def _causal_folder(source: Source, folder: Path) -> None:
    """The parent as the builder wants it: a causal model, tied so that its unread head needs no weights."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = json.loads((source.parent / "config.json").read_text("utf-8"))
    # The builder asks for ids of control tokens; a check generates nothing, so any will do.
    ids = {name: config.get(name) or 0 for name in ("bos_token_id", "eos_token_id")}
    config |= {"architectures": [_CAUSAL[config["model_type"]]], "tie_word_embeddings": True, **ids}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "model.safetensors").symlink_to((source.parent / "model.safetensors").resolve())
    shutil.copy(source.guard / "tokenizer.json", folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


def _load(bits: str, source: Source, threads: int) -> Scorer:
    return PathScorer(f"ort_genai-{bits}", OrtGenai(_folder(source, bits), source, threads), source)


class OrtGenai:
    """See paths.Engine. One generator, whose cache holds the sequence that was run last."""

    def __init__(self, folder: Path, source: Source, threads: int) -> None:
        import onnxruntime_genai as genai

        self.context: int = source.manifest["model"]["context"]
        config = genai.Config(str(folder))
        options = {"session_options": {"intra_op_num_threads": threads}}
        config.overlay(json.dumps({"model": {"decoder": options}}))
        model = genai.Model(config)
        parameters = genai.GeneratorParams(model)
        parameters.set_search_options(max_length=self.context, batch_size=1)
        self._generator = genai.Generator(model, parameters)
        self._held = np.empty(0, np.int32)

    def prefix(self, root: IdArray) -> IdArray:
        return root

    def run(self, prefix: IdArray, paths: Sequence[IdArray], slots: Sequence[Sequence[int]]) -> HiddenArray:
        found = []
        known = len(prefix)
        for path, own in zip(paths, slots, strict=True):
            ids = np.concatenate([prefix, path]).astype(np.int32)
            # Every slot has to be among the tokens that are run now.
            kept = min(shared(self._held, ids), len(prefix) + own[0], known)
            if kept < len(self._held):
                self._generator.rewind_to(kept)
            self._held = np.empty(0, np.int32)  # unknown, should the call fail
            self._generator.append_tokens(ids[kept:])
            self._held, known = ids, len(ids)
            hidden = self._generator.get_output("hidden_states")[0]
            found.append(hidden[[len(prefix) + slot - kept for slot in own]])
        return np.concatenate(found).astype(np.float32, copy=False)
