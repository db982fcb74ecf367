"""Guards exported for other engines beside the bf16 parent: flips and margins on generated prompts.

    python -m aegis_edge.bench.exports FOLDER... [--base BASE] [--adapter DIR] [--prompts 100]

A folder is read by what reads it on a CPU: transformers (with compressed-tensors), llama.cpp, ONNX Runtime
(where `tensorrt-edgellm-export . onnx` was run in it: `edge_onnx.py`), or, where its engine needs a GPU,
`tensorrt.py`'s own reading of the format. Exits with 1 where more than LIMIT of the verdicts differ.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from aegis_edge.bench import edge_onnx, fidelity, prompts
from aegis_edge.bench.guards import NEVER
from aegis_edge.bench.parent import check_same
from aegis_edge.conversation import Conversation
from aegis_edge.decision import Rating
from aegis_edge.errors import AegisError, ScorerError
from aegis_edge.exported import exported_guard, family_in, read_head
from aegis_edge.policy import Policy
from aegis_edge.scoring.tokens import Ask

if TYPE_CHECKING:
    from aegis_edge.export.merge import Parent

LIMIT = 0.01
_BATCH = 16


class Transformers:
    """A model of transformers as `Ask`. The policy's keys and values are kept.

    head: rows [R, hidden] to read in place of the model's own LM head, without their bias.
    """

    def __init__(self, model: Any, root: Sequence[int], head: Tensor | None = None) -> None:
        from transformers import DynamicCache

        self._model, self._root, self._head = model.eval(), list(root), head
        self._cache = DynamicCache(config=model.config)
        with torch.inference_mode():
            model(torch.tensor([self._root]), past_key_values=self._cache, use_cache=True, logits_to_keep=1)

    @torch.inference_mode()
    def __call__(self, paths: list[list[int]], tokens: list[int]) -> list[list[float]]:
        """See scoring.tokens.Ask; every path begins with the policy."""
        return [self._logits(path, tokens).float().tolist() for path in paths]

    def _logits(self, path: list[int], tokens: list[int]) -> Tensor:
        before = len(self._root)
        if path[:before] != self._root:
            raise ScorerError("a path that does not begin with the exported policy")
        ids, kept = torch.tensor([path[before:]]), copy.deepcopy(self._cache)
        if self._head is None:
            out = self._model(ids, past_key_values=kept, use_cache=True, logits_to_keep=1)
            logits: Tensor = out.logits[0, -1, tokens]
            return logits
        out = self._model.base_model(ids, past_key_values=kept, use_cache=True)
        return self._head @ out.last_hidden_state[0, -1].float()


def parent_ask(parent: Parent, root: Sequence[int]) -> Ask:
    """The parent in bf16, its label rows in fp32 as everywhere. Its weights are rounded in place."""
    for parameter in parent.model.parameters():
        parameter.data = parameter.data.bfloat16()  # parameters alone: rotary frequencies stay fp32
    return Transformers(parent.model, root, parent.head.weight.float())


def reader(folder: Path, root: Sequence[int]) -> tuple[str, Ask]:
    """(what reads the folder, the same as `Ask`). Raises ScorerError where that is not installed."""
    if (folder / "guard.gguf").is_file():
        return "llama.cpp", _llama_cpp(folder / "guard.gguf", root)
    if (folder / edge_onnx.GRAPH).is_file():
        return "ONNX Runtime", _onnx(folder / edge_onnx.GRAPH, root)
    for file, load in _READERS.items():
        if (folder / file).is_file():
            name, model = load(folder)
            return name, Transformers(model, root)
    raise ScorerError(f"{folder}: no checkpoint in it", hint="name a folder that `aegis-edge export` wrote")


def _llama_cpp(file: Path, root: Sequence[int]) -> Ask:
    try:
        from aegis_edge.bench.scorers.llama_cpp import LlamaCpp

        engine = LlamaCpp(file, torch.get_num_threads(), int(read_head(file.parent)["model"]["context"]))
    except ModuleNotFoundError as error:
        raise ScorerError(f"{file} needs {error.name}", hint="pip install llama-cpp-python") from error
    engine.policies.add(tuple(root))
    return engine.ask


def _onnx(file: Path, root: Sequence[int]) -> Ask:
    try:
        return edge_onnx.EdgeOnnx(file, root)
    except ModuleNotFoundError as error:
        raise ScorerError(f"{file} needs {error.name}", hint="pip install onnx onnxruntime") from error


def _tensorrt(folder: Path) -> tuple[str, Any]:
    from aegis_edge.bench import tensorrt

    return "its tensors, in fp32", tensorrt.model_of(folder)


def _transformers(folder: Path) -> tuple[str, Any]:
    from transformers import AutoConfig, AutoModelForCausalLM

    quantised = hasattr(AutoConfig.from_pretrained(folder), "quantization_config")
    if not quantised:
        return "transformers, bf16", AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    try:
        # In fp32: it simulates int8 products in the model's dtype, where a GPU's are exact.
        return "transformers, int8 simulated in fp32", AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32
        )
    except ImportError as error:
        raise ScorerError(
            f"{folder}: transformers needs compressed-tensors", hint="pip install compressed-tensors"
        ) from error


# A file that only this format has -> how it is read; in this order.
_READERS: dict[str, Callable[[Path], tuple[str, Any]]] = {
    "rank0.safetensors": _tensorrt,
    "hf_quant_config.json": _tensorrt,
    "model.safetensors": _transformers,
}


def ratings(folder: Path, ask: Ask, conversations: Sequence[Conversation]) -> list[Rating]:
    """The prompts' ratings by the folder's own thresholds. Where the verdict decides, categories are not
    asked for."""
    head = read_head(folder)
    policy = Policy.from_dict(head["policy"])
    by_verdict = not (policy.by_categories or head["plan"].get("each"))
    guard = exported_guard(folder, ask, thresholds=NEVER if by_verdict else None)
    batches = (conversations[i : i + _BATCH] for i in range(0, len(conversations), _BATCH))
    found = [verdict.prompt for batch in batches for verdict in guard.check_many(batch)]
    limit = policy.thresholds.prompt
    return [replace(one, safe=one.probability < limit) for one in found] if by_verdict else found


def compare(
    folders: Sequence[Path],
    base: str | None,
    adapter: str | None,
    count: int,
    show: Callable[[Path, str, fidelity.Fidelity], None],
) -> bool:
    """Whether no folder's flips are above LIMIT; each is shown when it is done.

    base, adapter  as `aegis-edge export` takes them, for all folders
    Raises AegisError; ScorerError where the parent is not the one a folder was made from.
    """
    from aegis_edge.export.base import DEFAULT_BASE
    from aegis_edge.export.merge import load_parent

    conversations = prompts.sample(count)
    parents: dict[str, tuple[list[Rating], dict[str, Any]]] = {}  # by plan and policy: ratings, provenance
    agrees = True
    for folder in folders:
        head = read_head(folder)
        root, key = head["plan"]["root_ids"], str((head["plan"], head["policy"]))
        if key not in parents:
            policy = Policy.from_dict(head["policy"])
            parent = load_parent(base or DEFAULT_BASE, adapter, family_in(head), policy)
            found = ratings(folder, parent_ask(parent, root), conversations)
            parents[key] = found, parent.provenance
        theirs, made_from = parents[key]
        for part in ("base", "adapter"):
            check_same(part, head["provenance"][part], made_from[part])
        name, ask = reader(folder, root)
        moved = fidelity.compare(theirs, ratings(folder, ask, conversations))
        show(folder, name, moved)
        agrees &= moved.flips <= LIMIT
    return agrees


def main(arguments: Sequence[str]) -> int:
    """0: all agree, 1: one does not, 3: an error."""
    parser = argparse.ArgumentParser(prog="python -m aegis_edge.bench.exports", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--base", help="as `aegis-edge export` takes it; the default guard's where left out")
    parser.add_argument("--adapter", help="the same")
    parser.add_argument("--prompts", type=int, default=100)
    given = parser.parse_args(arguments)
    print("| folder | read by | verdicts | flips | outside 0.3 to 0.7 | margin error | its share | worst |")
    print("|---|---|---|---|---|---|---|---|", flush=True)

    def show(folder: Path, name: str, f: fidelity.Fidelity) -> None:
        cells = (f"{f.flips:.1%}", f.far_flips, f"{f.margin_error:.4f}", f"{f.relative_error:.2%}")
        row = (folder.name, name, f.verdicts, *cells, f"{f.worst:.3f}")
        print(f"| {' | '.join(map(str, row))} |", flush=True)

    try:
        return int(not compare(given.folders, given.base, given.adapter, given.prompts, show))
    except AegisError as error:
        print(f"error: {error}", *([f"hint: {error.hint}"] if error.hint else []), sep="\n", file=sys.stderr)
        return 3


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
