"""A decoder over Triton kernels, for NVIDIA GPUs: one packed pass over the token tree an `extend`.

Matrices that the artefact has as integers are multiplied as such, with the compiled runtime's second digits;
others are in floating point and PyTorch's. Norms, rotary, attention and the head are kernels of
`kernels/triton`. Keys and values stay on the device, the policy's are computed once a scorer. With
TRITON_INTERPRET=1 the same code runs on the CPU, for tests.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from triton.errors import TritonError
from triton.runtime.interpreter import InterpretedFunction

from aegis_edge.errors import ScorerError
from aegis_edge.families.plan import Plan
from aegis_edge.features import Features
from aegis_edge.scoring import IdArray, LogitArray, Segment, TreeShape
from aegis_edge.scoring.cuda_graphs import Graphs, Outputs, cuda_record, size_for
from aegis_edge.scoring.cuda_layers import Fine, dense_layer, int8_matrices
from aegis_edge.scoring.cuda_pass import Sizes, pack
from aegis_edge.scoring.dequantise import decoder_of
from aegis_edge.scoring.vocabulary import Vocabulary
from aegis_edge.triton.rope import rope
from aegis_edge.triton.tree_attention import part_kernel, queries_a_tile, tree_attention
from aegis_edge.triton.verdict_head import verdict_head, vocabulary_log_sum_exp

if TYPE_CHECKING:
    from aegis_edge.artifact import Artifact

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ROOTS_KEPT = 8  # custom policies


GRAPHS = "AEGIS_EDGE_CUDA_GRAPHS"  # 0: no pass is recorded


class CudaScorer:
    """An artefact's guard on a GPU. Safe to use from several threads: passes queue up."""

    name = "cuda"

    def __init__(
        self,
        decoder: Any,
        head_weight: Tensor,
        head_bias: Tensor,
        root: Iterable[int],
        *,
        dtype: str | None = None,
        vocabulary: Vocabulary | None = None,
        integers: Artifact | None = None,
    ) -> None:
        """decoder: a LlamaModel; head_weight [rows, hidden], head_bias [rows]; root: the policy's ids.

        dtype: of weights, activations, keys and values: "fp32", "fp16" or "bf16"; None: bf16 on a GPU, fp32
        in the interpreter, which has no bf16 arithmetic. The residual stream, norms, softmaxes and the head
        are fp32 always. vocabulary: the whole LM head, where label mass is wanted. integers: the artefact
        that the decoder was made of, whose integer matrices take the place of the decoder's.
        """
        device, usual = _device()
        config = decoder.config
        kind = DTYPES[dtype or usual]

        def put(tensor: Tensor, to: torch.dtype = torch.float32) -> Tensor:
            return tensor.detach().to(device, to).contiguous()

        self.device, self.dtype, self.vocabulary = device, kind, vocabulary
        self.rows, self.context, self.vocab = (
            len(head_bias),
            config.max_position_embeddings,
            config.vocab_size,
        )
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
        self.eps = config.rms_norm_eps
        if tuple(head_weight.shape) != (self.rows, config.hidden_size):
            raise ScorerError(
                f"the head is {list(head_weight.shape)}, expected {[self.rows, config.hidden_size]}"
            )
        self.embedding = put(decoder.embed_tokens.weight, kind)
        self.layers = [dense_layer(layer, put, kind) for layer in decoder.layers]
        if integers is not None:
            for i, layer in enumerate(self.layers):
                found: Any = int8_matrices(integers, i, put, kind)
                self.layers[i] = replace(layer, **found)
        self.norm, self.head_weight, self.head_bias = (
            put(t) for t in (decoder.norm.weight, head_weight, head_bias)
        )
        self.groups = torch.zeros(
            self.rows, dtype=torch.int32, device=device
        )  # probabilities are not read here
        rotary = type(decoder.rotary_emb)(config=config)  # afresh: the decoder's may be on no device
        angles = torch.outer(torch.arange(self.context), rotary.inv_freq.float())
        factor = rotary.attention_scaling
        self.cosine, self.sine = put(angles.cos() * factor), put(angles.sin() * factor)
        if vocabulary is not None:
            rows = torch.from_numpy(vocabulary.rows.view(np.int16)).view(torch.bfloat16)
            self.lm_head = rows.to(device) if device.type == "cuda" else rows.float()
            self.unembed = None if vocabulary.unembed is None else put(torch.from_numpy(vocabulary.unembed))
        self._lock = threading.RLock()
        self._roots: OrderedDict[bytes, Tensor] = OrderedDict()
        has_graphs = device.type == "cuda" and os.environ.get(GRAPHS) != "0"
        self._graphs = Graphs(self._run, self.pool, cuda_record()) if has_graphs else None
        self._root = np.array(list(root), np.int32)
        self._root_kv = self._compute_root(self._root)

    @classmethod
    def from_artifact(
        cls,
        artifact: Artifact,
        *,
        dtype: str | None = None,
        vocabulary: Vocabulary | None = None,
        int8: bool = True,
    ) -> CudaScorer:
        """From an artefact. int8: multiply its integer matrices as integers, activations rounded to int8 as
        the compiled runtime does; else everything is in floating point, as in the reference scorer."""
        weight, bias = (torch.from_numpy(artifact.tensor(f"head.{part}")) for part in ("weight", "bias"))
        lacking = Features.of(artifact.manifest["model"]).names()
        if lacking:
            raise ScorerError(
                f"the cuda scorer has Llama's decoder alone; this guard needs {', '.join(lacking)}",
                hint="use --scorer cpu",
            )
        root = Plan.from_json(artifact.manifest["family"]["plan"]).root
        decoder, integers = decoder_of(artifact), artifact if int8 else None
        return cls(decoder, weight, bias, root, dtype=dtype, vocabulary=vocabulary, integers=integers)

    def tree(self, root: IdArray | None = None) -> CudaTree:
        """A new tree over the policy the scorer was made for, or over int32 ids [n], kept for later trees."""
        if root is None:
            return CudaTree(self, self._root, self._root_kv)
        key = root.tobytes()
        with self._lock:
            if key not in self._roots:
                self._roots[key] = self._compute_root(root)
            self._roots.move_to_end(key)
            while len(self._roots) > ROOTS_KEPT:
                self._roots.popitem(last=False)
            return CudaTree(self, root, self._roots[key])

    def pool(self, rows: int) -> Tensor:
        """Room for keys and values, [layers, 2, rows, kv_heads * head_dim]."""
        shape = (len(self.layers), 2, rows, self.kv_heads * self.head_dim)
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def _compute_root(self, root: IdArray) -> Tensor:
        TreeShape(root, self.context, self.vocab)
        pool = self.pool(len(root))
        self.forward([], [-1], [root], [()], pool, 0)
        return pool

    @torch.inference_mode()
    def forward(
        self,
        ranges: Sequence[tuple[int, int]],
        parents: Sequence[int],
        ids: Sequence[IdArray],
        slots: Sequence[Sequence[int]],
        pool: Tensor,
        base: int,
    ) -> tuple[LogitArray, LogitArray | None, tuple[int, ...]]:
        """Add nodes of `ids` behind the old ones, whose rows of the pool are `ranges`, from row `base` on.

        Returns the logits float32 [slots, rows], the vocabulary's log-sum-exp [slots] or None, and the new
        nodes' first rows relative to `base`.
        """
        queries = queries_a_tile(self.heads // self.kv_heads)
        with self._lock, _scoring():
            graphs = self._graphs
            size = None if graphs is None else size_for(sum(map(len, ids)), base, queries)
            if graphs is not None and size is not None:
                one = pack(ranges, parents, ids, slots, size.base, queries)
                if size.holds(one.sizes) and one.sizes.slots and graphs.worth(size):
                    new = pool[:, :, base : base + one.sizes.tokens]
                    return *self._read(graphs(one, size, pool[:, :, :base], new)), one.starts
            one = pack(ranges, parents, ids, slots, base, queries)
            flat = torch.from_numpy(one.flat(one.sizes)).to(self.device)
            return *self._read(self._run(flat, one.sizes, pool)), one.starts

    def _read(self, outputs: Outputs) -> tuple[LogitArray, LogitArray | None]:
        """A pass's logits float32 [slots, rows] and the vocabulary's log-sum-exp [slots], on the host."""
        logits, normed = outputs
        if self.vocabulary is None or not len(normed):
            return logits.cpu().numpy(), None
        normed = normed if self.unembed is None else normed @ self.unembed
        return logits.cpu().numpy(), vocabulary_log_sum_exp(normed, self.lm_head).cpu().numpy()

    def _run(self, flat: Tensor, sizes: Sizes, pool: Tensor) -> Outputs:
        """One pass: the logits [slots, rows], and [slots, hidden] after the final norm. `flat` holds what
        `Sizes.views` says; nothing here looks at what is in it, so that a pass can be recorded."""
        ids, positions, levels, low_of, slots, tiles = sizes.views(flat)
        fine = Fine(low_of, sizes.fine)
        x = self.embedding[ids].float()
        logits = x.new_empty((sizes.slots, self.rows))
        normed = x.new_empty((sizes.slots, x.shape[1]))
        inner, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        new = slice(sizes.base, sizes.base + sizes.tokens)
        tree = (tiles, levels, sizes.deepest, sizes.base, self.heads, self.kv_heads)
        delta: Tensor | None = None
        for index, (layer, (keys, values)) in enumerate(zip(self.layers, pool, strict=True)):
            qkv = layer.qkv.normed(x, layer.input_norm, self.eps, delta, fine)
            rope(qkv, positions, self.cosine, self.sine, self.heads + self.kv_heads)
            keys[new], values[new] = qkv[:, inner : inner + kv], qkv[:, inner + kv :]
            if index == len(self.layers) - 1 and not sizes.slots:
                return logits, normed  # keys and values are there, and nothing else is asked for
            attended = torch.empty((len(x), inner), dtype=layer.o.takes, device=self.device)
            tree_attention(qkv, keys, values, *tree, attended)
            added = layer.o(attended, fine)
            delta = layer.down(layer.gate_up.gated(x, layer.post_norm, self.eps, added, fine), fine)
        head = (self.norm, self.eps, self.head_weight, self.head_bias, self.groups)
        x = x if delta is None else x + delta
        verdict_head(x, slots, *head, logits, torch.empty_like(logits), normed)
        return logits, normed


class CudaTree:
    """A token tree whose keys and values are on the device."""

    can_grow = False

    def __init__(self, scorer: CudaScorer, root: IdArray, kv: Tensor) -> None:
        self._scorer = scorer
        self._shape = TreeShape(root, scorer.context, scorer.vocab)
        self._ranges = [(0, len(root))]  # rows of the pool, of each node
        self._pool = scorer.pool(2 * len(root))
        self._pool[:, :, : len(root)] = kv
        self.log_sum_exp: LogitArray | None = None

    def extend(self, segments: Sequence[Segment]) -> LogitArray:
        """See scoring.Tree."""
        self._shape.add(segments)
        self.log_sum_exp = None
        if not segments:
            return np.empty((0, self._scorer.rows), np.float32)
        base = max(end for _, end in self._ranges)
        ids = [segment.ids for segment in segments]
        slots = [segment.slots for segment in segments]
        try:
            self._reserve(base + sum(map(len, ids)))
            logits, self.log_sum_exp, starts = self._scorer.forward(
                self._ranges, self._shape.parents, ids, slots, self._pool, base
            )
        except ScorerError:
            self._shape.truncate(len(self._ranges))
            raise
        self._ranges += [
            (base + start, base + start + len(one)) for start, one in zip(starts, ids, strict=True)
        ]
        return logits

    def truncate(self, nodes: int) -> None:
        """See scoring.Tree."""
        self._shape.truncate(nodes)
        del self._ranges[nodes:]

    def _reserve(self, rows: int) -> None:
        have = self._pool.shape[2]
        if rows > have:
            with _scoring():
                pool = self._scorer.pool(max(rows, 2 * have))
            pool[:, :, :have] = self._pool
            self._pool = pool


def _device() -> tuple[torch.device, str]:
    """Where kernels run, and the usual dtype there. Raises ScorerError where they run nowhere."""
    if isinstance(part_kernel, InterpretedFunction):
        return torch.device("cpu"), "fp32"
    if torch.version.cuda is None:
        raise ScorerError(
            f"the cuda scorer needs PyTorch for CUDA; {torch.__version__} is installed",
            hint="pip install torch from https://download.pytorch.org/whl, or use --scorer cpu",
        )
    if not torch.cuda.is_available():
        raise ScorerError(
            "the cuda scorer found no NVIDIA GPU, or no driver for it",
            hint="try nvidia-smi, or use --scorer cpu",
        )
    return torch.device("cuda"), "bf16"


@contextmanager
def _scoring() -> Iterator[None]:
    """What PyTorch and Triton raise while a pass runs, memory that ran out among it, as ScorerError."""
    try:
        yield
    except (RuntimeError, ValueError, TritonError) as error:
        raise ScorerError(f"the cuda scorer failed: {error}") from error
