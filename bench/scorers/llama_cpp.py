"""llama.cpp through llama-cpp-python: the parent as GGUF, quantised by llama.cpp's own quantiser at its
defaults.

The label rows are tokens of the vocabulary, as an export writes them; only the last position's logits are
asked for. The policy stays in the cache, and within a call what a sequence shares with the one before it: the
same prompt asked again is computed again. Several conversations run one after another.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from aegis_edge.bench.contender import Contender, Source
from aegis_edge.bench.paths import shared
from aegis_edge.errors import ScorerError
from aegis_edge.scoring import IdArray, Scorer
from aegis_edge.scoring.tokens import TokenScorer, TokenTree

# variant -> (llama.cpp's name of the file type, what it is)
VARIANTS = {
    "q8_0": ("Q8_0", "int8 in blocks of 32"),
    "q4_0": ("Q4_0", "int4 in blocks of 32"),
}


def contenders() -> list[Contender]:
    return [
        Contender(
            name=f"llama_cpp-{variant}",
            about=f"llama.cpp, {about}; policy cached",
            load=partial(_load, variant),
            packages=("llama_cpp_python",),
            modules=("llama_cpp",),
            prepare=partial(_prepare, variant),
            install="CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python",
        )
        for variant, (_, about) in VARIANTS.items()
    ]


def _file(source: Source, variant: str) -> Path:
    return source.work / f"llama_cpp-{source.parent.name}" / f"{variant}.gguf"


def _prepare(variant: str, source: Source) -> None:
    file = _file(source, variant)
    if file.is_file():
        return
    import llama_cpp

    file.parent.mkdir(parents=True, exist_ok=True)
    whole = _file(source, "f16")
    if not whole.is_file():
        write_f16(source, whole)
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{VARIANTS[variant][0]}")
    fresh = file.with_suffix(".new")
    failed = llama_cpp.llama_model_quantize(str(whole).encode(), str(fresh).encode(), ctypes.byref(options))
    if failed:
        raise ScorerError(f"llama.cpp could not quantise {whole.name} to {variant}")
    fresh.rename(file)


def write_f16(source: Source, file: Path) -> None:
    """The parent as GGUF in f16, its label rows as tokens; their numbers and the bias go into tokens.json."""
    from transformers import AutoModel

    from aegis_edge.export.foreign import F16
    from aegis_edge.export.merge import Head, Parent
    from aegis_edge.export.simulate import Fidelity
    from aegis_edge.export.targets import Build
    from aegis_edge.export.targets.gguf import save_gguf
    from aegis_edge.export.targets.vocabulary import with_labels
    from aegis_edge.export.trunk import PROJECTIONS, trunk_of
    from aegis_edge.families import Plan
    from aegis_edge.policy import Policy

    decoder = AutoModel.from_pretrained(source.parent, dtype=torch.float32).eval()
    weight, bias = (torch.from_numpy(part) for part in source.head())
    manifest = source.manifest
    plan = Plan.from_json(manifest["family"]["plan"])
    model = SimpleNamespace(model=decoder, config=decoder.config)
    # The guard's own tokenizer: the bench gives its ids to every engine.
    tokenizer = (source.guard / "tokenizer.json").read_text("utf-8")
    parent = Parent(model, tokenizer, Head("trained", plan.rows, weight, bias), {}, {})
    trunk = trunk_of(model, weight, bias)
    for layer in trunk.layers:
        for name in PROJECTIONS:
            dense = getattr(layer, name)
            setattr(layer, name, F16(dense.weight.half(), dense.bias))
    build = Build(
        parent,
        trunk,
        manifest["family"]["name"],
        plan,
        Policy.from_dict(manifest["policy"]),
        "f16",
        Fidelity(0, 0.0, 0, 0.0, 0.0),
        {},
        {"base": {"model": source.parent.name}},
    )
    vocabulary = with_labels(build)
    facts = {"tokens": list(vocabulary.tokens), "bias": bias.tolist()}
    (file.parent / "tokens.json").write_text(json.dumps(facts), encoding="utf-8")
    fresh = file.with_suffix(".new")
    save_gguf(build, vocabulary, fresh)
    fresh.rename(file)


def _load(variant: str, source: Source, threads: int) -> Scorer:
    file = _file(source, variant)
    facts = json.loads((file.parent / "tokens.json").read_text("utf-8"))
    model = source.manifest["model"]
    engine = LlamaCpp(file, threads, model["context"])
    return LlamaCppScorer(
        engine, facts["tokens"], facts["bias"], source.root, model["context"], model["vocab"]
    )


class LlamaCppScorer(TokenScorer):
    """Tells the engine which policies there are."""

    def __init__(self, engine: LlamaCpp, *arguments: Any) -> None:
        super().__init__(engine.ask, *arguments)
        self._engine = engine

    def tree(self, root: IdArray | None = None) -> TokenTree:
        tree = super().tree(root)
        self._engine.policies.add(tuple(tree.root))
        return tree


class LlamaCpp:
    """One sequence in llama.cpp's cache. policies: beginnings of sequences that may stay there from one call
    to the next."""

    def __init__(self, file: Path, threads: int, context: int) -> None:
        from llama_cpp import Llama

        self.policies: set[tuple[int, ...]] = set()
        self._llama = Llama(
            str(file),
            n_ctx=context,
            n_batch=context,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )

    def ask(self, paths: list[list[int]], tokens: list[int]) -> Sequence[Sequence[float]]:
        """See scoring.tokens.Ask."""
        llama, found = self._llama, []
        known = max((len(ids) for ids in self.policies if tuple(paths[0][: len(ids)]) == ids), default=0)
        for path in paths:
            kept = min(known, shared(llama.input_ids[: llama.n_tokens], np.array(path[:-1], np.int32)))
            llama.n_tokens = kept  # eval drops what lies behind
            known = len(path)
            llama.eval(path[kept:])
            logits = llama._ctx.get_logits()  # of the last token: no other was asked for
            found.append([logits[token] for token in tokens])
        return found
