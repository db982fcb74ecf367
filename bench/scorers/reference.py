"""PyTorch and transformers as somebody would use them directly: the decoder of the parent, called as
documented.

Several prompts make one padded batch. With the policy cached, its keys and values are computed once and put
before every call.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel, DynamicCache
from transformers.utils import logging

from aegis_edge.bench.contender import Contender, Source
from aegis_edge.bench.paths import HiddenArray, PathScorer
from aegis_edge.scoring import IdArray, Scorer
from aegis_edge.scoring.reference import DTYPES

Cache = list[tuple[Tensor, Tensor]]


def contenders() -> list[Contender]:
    return [_contender(dtype, cached) for dtype in ("fp32", "bf16") for cached in (False, True)]


def _contender(dtype: str, cached: bool) -> Contender:
    def load(source: Source, threads: int) -> Scorer:
        torch.set_num_threads(threads)
        return PathScorer(f"reference-{dtype}", Torch(source.parent, dtype, cached), source)

    return Contender(
        name=f"reference-{dtype}" + ("-cached" if cached else ""),
        about=f"PyTorch, transformers, {dtype}; {'policy cached' if cached else 'whole prompt'}",
        load=load,
        packages=("torch", "transformers"),
        modules=("torch", "transformers"),
    )


class Torch:
    """See paths.Engine."""

    def __init__(self, folder: Path, dtype: str, cached: bool) -> None:
        self._decoder, self._is_cached = _decoder(folder, dtype), cached
        self.context: int = self._decoder.config.max_position_embeddings

    @torch.inference_mode()
    def prefix(self, root: IdArray) -> tuple[IdArray, Cache]:
        if not self._is_cached:
            return root, []
        cache = DynamicCache(config=self._decoder.config)
        self._decoder(input_ids=torch.from_numpy(root).long()[None], past_key_values=cache, use_cache=True)
        layers: list[Any] = cache.layers
        return root[:0], [(layer.keys, layer.values) for layer in layers]

    @torch.inference_mode()
    def run(
        self, prefix: tuple[IdArray, Cache], paths: Sequence[IdArray], slots: Sequence[Sequence[int]]
    ) -> HiddenArray:
        root, cached = prefix
        past = cached[0][0].shape[2] if cached else 0
        lengths = [len(root) + len(path) for path in paths]
        ids = torch.zeros(len(paths), max(lengths), dtype=torch.long)
        for row, path in zip(ids, paths, strict=True):
            row[: len(root)] = torch.from_numpy(root)
            row[len(root) : len(root) + len(path)] = torch.from_numpy(path)
        options: dict[str, Any] = {"use_cache": False}
        if len(set(lengths)) > 1:
            ends = torch.tensor(lengths)[:, None] + past
            options["attention_mask"] = (torch.arange(past + max(lengths))[None] < ends).long()
        if cached:
            batch = [(k.expand(len(paths), -1, -1, -1), v.expand(len(paths), -1, -1, -1)) for k, v in cached]
            cache = DynamicCache(ddp_cache_data=batch, config=self._decoder.config)
            options |= {"use_cache": True, "past_key_values": cache}
        states = self._decoder(input_ids=ids, **options).last_hidden_state
        rows = [i for i, own in enumerate(slots) for _ in own]
        columns = [len(root) + slot for own in slots for slot in own]
        found: HiddenArray = states[rows, columns].float().numpy().astype(np.float32, copy=False)
        return found


@lru_cache
def _decoder(folder: Path, dtype: str) -> Any:
    # Shared by the variants of a dtype: load time and memory are measured in processes of their own.
    logging.disable_progress_bar()
    model = AutoModel.from_pretrained(folder, dtype=DTYPES[dtype]).eval()
    if getattr(model.config, "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")  # the only one of transformers' that caps its scores
    return model
