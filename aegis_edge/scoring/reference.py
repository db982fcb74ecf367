"""The reference scorer: PyTorch and transformers, slow and obvious. What it computes is what is right.

Every `extend` runs the plain model over one packed sequence: the root, the ancestors of the new nodes, the
new nodes. A mask lets each token see itself and what lies between it and the root; its position is its depth.
Nothing is kept from one call to the next.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from aegis_edge.errors import ScorerError
from aegis_edge.families.plan import Plan
from aegis_edge.features import Features
from aegis_edge.scoring import IdArray, LogitArray, Segment, TreeShape
from aegis_edge.scoring.dequantise import decoder_of
from aegis_edge.scoring.vocabulary import Vocabulary, softcapped

if TYPE_CHECKING:
    from aegis_edge.artifact import Artifact

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class ReferenceScorer:
    """A decoder of transformers under a head of label rows. Safe to use from several threads.

    With `cache_root` the root's keys and values are computed once and kept: a variant for benchmarks, what
    somebody who works with PyTorch directly would do.
    """

    name = "reference"

    def __init__(
        self,
        decoder: Any,
        head_weight: Tensor,
        head_bias: Tensor,
        root: Iterable[int],
        *,
        cache_root: bool = False,
        vocabulary: Vocabulary | None = None,
        softcap: float = 0.0,
    ) -> None:
        """decoder: a model without LM head, in evaluation mode; head_weight [rows, hidden], head_bias
        [rows]; vocabulary: the whole LM head, where label mass is wanted; softcap: of the label logits, 0:
        none."""
        self._vocabulary = vocabulary
        self._decoder = decoder
        self._softcap = softcap
        if getattr(decoder.config, "attn_logit_softcapping", None):
            decoder.set_attn_implementation("eager")  # the only one of transformers' that caps its scores
        # In fp32 whatever the decoder's dtype: it is a few rows, and rounding it would add noise of its own.
        self._head_weight = head_weight.detach().to(torch.float32)
        self._head_bias = head_bias.detach().to(torch.float32)
        expected = (len(self._head_bias), decoder.config.hidden_size)
        if tuple(self._head_weight.shape) != expected:
            raise ScorerError(f"the head is {list(self._head_weight.shape)}, expected {list(expected)}")
        self._root = np.array(list(root), np.int32)
        self._cache_root = cache_root
        self._caches: dict[bytes, DynamicCache] = {}
        self.rows = len(self._head_bias)
        self.context: int = decoder.config.max_position_embeddings
        self.vocab: int = decoder.config.vocab_size

    @classmethod
    def from_parent(
        cls,
        model: Any,
        head_weight: Tensor,
        head_bias: Tensor,
        root: Iterable[int],
        *,
        dtype: str = "fp32",
        cache_root: bool = False,
        softcap: float = 0.0,
    ) -> ReferenceScorer:
        """From an unquantised decoder of transformers, with its LM head or without, its adapter merged; it is
        copied."""
        decoder = _in_dtype(copy.deepcopy(getattr(model, "model", model)), dtype)
        return cls(decoder, head_weight, head_bias, root, cache_root=cache_root, softcap=softcap)

    @classmethod
    def from_artifact(
        cls,
        artifact: Artifact,
        *,
        dtype: str = "fp32",
        cache_root: bool = False,
        vocabulary: Vocabulary | None = None,
    ) -> ReferenceScorer:
        """From an artefact: its weights as they are stored, in floating point; activations not quantised."""
        weight, bias = (torch.from_numpy(artifact.tensor(f"head.{part}")) for part in ("weight", "bias"))
        root = Plan.from_json(artifact.manifest["family"]["plan"]).root
        decoder = _in_dtype(decoder_of(artifact), dtype)
        cap = Features.of(artifact.manifest["model"]).logit_softcap
        return cls(decoder, weight, bias, root, cache_root=cache_root, vocabulary=vocabulary, softcap=cap)

    def tree(self, root: IdArray | None = None) -> ReferenceTree:
        """A new tree over the policy the scorer was made for, or over int32 ids [n]."""
        return ReferenceTree(self, self._root if root is None else root)

    @torch.inference_mode()
    def logits(
        self, nodes: Sequence[IdArray], parents: Sequence[int], slots: Sequence[int]
    ) -> tuple[LogitArray, LogitArray | None]:
        """Label logits float32 [len(slots), rows] of one packed pass, and the vocabulary's log-sum-exp.

        Node 0 is the root and parents come before their children; slots index the packed tokens, root
        included.
        """
        ids = torch.from_numpy(np.concatenate(nodes)).long()[None]
        positions, mask = _positions_and_mask([len(node) for node in nodes], parents)
        mask = mask.to(self._decoder.dtype)[None, None]
        # What a cached root leaves to compute: queries of the other tokens, keys and values of all.
        done = len(nodes[0]) if self._cache_root else 0
        out = self._decoder(
            input_ids=ids[:, done:],
            position_ids=positions[None, done:],
            attention_mask=_masks(self._decoder, mask, positions, done),
            past_key_values=copy.deepcopy(self._cached(nodes[0])) if self._cache_root else None,
            use_cache=self._cache_root,
        )
        hidden = out.last_hidden_state[0, [slot - done for slot in slots]].float()
        logits = softcapped((hidden @ self._head_weight.T + self._head_bias).numpy(), self._softcap)
        total = None if self._vocabulary is None else self._vocabulary.log_sum_exp(hidden.numpy())
        return logits, total

    def _cached(self, root: IdArray) -> DynamicCache:
        key = root.tobytes()
        if key not in self._caches:
            cache = DynamicCache()  # without a config, which would drop what a sliding window has passed
            ids = torch.from_numpy(root).long()[None]
            self._decoder(input_ids=ids, past_key_values=cache, use_cache=True)
            self._caches[key] = cache
        return self._caches[key]


class ReferenceTree:
    """The ids of a tree's nodes; the model runs when a call reads something."""

    can_grow = False

    def __init__(self, scorer: ReferenceScorer, root: IdArray) -> None:
        self._scorer = scorer
        self._shape = TreeShape(root, scorer.context, scorer.vocab)
        self._nodes = [root]
        self.log_sum_exp: LogitArray | None = None

    def extend(self, segments: Sequence[Segment]) -> LogitArray:
        """See scoring.Tree."""
        first = len(self._nodes)
        self._shape.add(segments)
        self._nodes += [segment.ids for segment in segments]
        reading = [first + i for i, segment in enumerate(segments) if segment.slots]
        if not reading:
            return np.empty((0, self._scorer.rows), np.float32)
        # The nodes that matter: those read, and their ancestors up to the root.
        needed = {0}
        for node in reading:
            while node not in needed:
                needed.add(node)
                node = self._shape.parents[node]
        order = sorted(needed)
        place = {node: i for i, node in enumerate(order)}
        starts = np.cumsum([0, *(len(self._nodes[node]) for node in order)])
        slots = [int(starts[place[node]]) + slot for node in reading for slot in segments[node - first].slots]
        parents = [place.get(self._shape.parents[node], -1) for node in order]
        logits, self.log_sum_exp = self._scorer.logits([self._nodes[node] for node in order], parents, slots)
        return logits

    def truncate(self, nodes: int) -> None:
        """See scoring.Tree."""
        self._shape.truncate(nodes)
        del self._nodes[nodes:]


def _positions_and_mask(lengths: Sequence[int], parents: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Depth of each token, int64 [T], and the additive mask float32 [T, T]: 0 where row may see column, else
    -inf."""
    count = len(lengths)
    sees = torch.eye(count, dtype=torch.bool)
    depths = [0] * count
    for node in range(1, count):
        sees[node] |= sees[parents[node]]
        depths[node] = depths[parents[node]] + lengths[parents[node]]
    node_of = torch.repeat_interleave(torch.arange(count), torch.tensor(lengths))
    positions = torch.cat([depth + torch.arange(n) for depth, n in zip(depths, lengths, strict=True)])
    # Within a node this is the causal rule; an ancestor's tokens are less deep anyway.
    allowed = sees[node_of][:, node_of] & (positions[None, :] <= positions[:, None])
    return positions, torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf"))


def _masks(decoder: Any, mask: Tensor, positions: Tensor, done: int) -> Tensor | dict[str, Tensor]:
    """What the decoder takes as its mask, for the queries from `done` on.

    A mask of four dimensions goes through transformers as it is, so a sliding window must be in it; models of
    two kinds of layers take one a kind.
    """
    config, whole = decoder.config, mask[:, :, done:]
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if not window or (kinds is not None and "sliding_attention" not in kinds):
        return whole
    distance = positions[done:, None] - positions[None]
    near = whole.masked_fill(distance >= window, float("-inf"))
    return near if kinds is None else {"full_attention": whole, "sliding_attention": near}


def _in_dtype(decoder: Any, dtype: str) -> Any:
    """The decoder in `dtype`, with fresh rotary frequencies: those must not be rounded to bf16."""
    for parameter in decoder.parameters():
        parameter.data = parameter.data.to(DTYPES[dtype])
    if hasattr(decoder, "rotary_emb"):
        decoder.rotary_emb = type(decoder.rotary_emb)(config=decoder.config)
    return decoder.eval()
