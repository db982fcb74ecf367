"""A decoder over Triton kernels, for NVIDIA GPUs: one packed pass over the token tree an `extend`.

Weights are the artefact's, multiplied out to a floating dtype as the reference scorer has them; matrix
products are PyTorch's, and norms, rotary, attention and the head kernels of `kernels/triton`. Keys and values
stay on the device, the policy's are computed once a scorer. With TRITON_INTERPRET=1 the same code runs on the
CPU, for tests.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear, silu
from triton.errors import TritonError
from triton.runtime.interpreter import InterpretedFunction

from aegis_edge.errors import ScorerError
from aegis_edge.families.plan import Plan
from aegis_edge.features import Features
from aegis_edge.scoring import IdArray, LogitArray, Segment, TreeShape
from aegis_edge.scoring.dequantise import decoder_of
from aegis_edge.scoring.vocabulary import Vocabulary
from aegis_edge.triton.rms_norm import rms_norm
from aegis_edge.triton.rope import rope
from aegis_edge.triton.tree_attention import part_kernel, queries_a_tile, tree_attention
from aegis_edge.triton.tree_plan import plan
from aegis_edge.triton.verdict_head import verdict_head, vocabulary_log_sum_exp

if TYPE_CHECKING:
    from aegis_edge.artifact import Artifact

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ROOTS_KEPT = 8  # custom policies


@dataclass(frozen=True, eq=False)
class Layer:
    """Matrices [out, in] in the scorer's dtype, norms float32 [hidden], the bias [qkv rows] or None."""

    input_norm: Tensor
    qkv: Tensor
    bias: Tensor | None
    o: Tensor
    post_norm: Tensor
    gate_up: Tensor
    down: Tensor


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
    ) -> None:
        """decoder: a LlamaModel; head_weight [rows, hidden], head_bias [rows]; root: the policy's ids.

        dtype: of weights, activations, keys and values: "fp32", "fp16" or "bf16"; None: bf16 on a GPU, fp32
        in the interpreter, which has no bf16 arithmetic. The residual stream, norms, softmaxes and the head
        are fp32 always. vocabulary: the whole LM head, where label mass is wanted.
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
        self.layers = [_layer(layer, put, kind) for layer in decoder.layers]
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
        self._root = np.array(list(root), np.int32)
        self._root_kv = self._compute_root(self._root)

    @classmethod
    def from_artifact(
        cls, artifact: Artifact, *, dtype: str | None = None, vocabulary: Vocabulary | None = None
    ) -> CudaScorer:
        """From an artefact: its weights as they are stored, in floating point; activations not quantised."""
        weight, bias = (torch.from_numpy(artifact.tensor(f"head.{part}")) for part in ("weight", "bias"))
        lacking = Features.of(artifact.manifest["model"]).names()
        if lacking:
            raise ScorerError(
                f"the cuda scorer has Llama's decoder alone; this guard needs {', '.join(lacking)}",
                hint="use --scorer cpu",
            )
        root = Plan.from_json(artifact.manifest["family"]["plan"]).root
        return cls(decoder_of(artifact), weight, bias, root, dtype=dtype, vocabulary=vocabulary)

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
        with self._lock, _scoring():
            lengths = [len(one) for one in ids]
            made = plan(ranges, parents, lengths, base, queries_a_tile(self.heads // self.kv_heads))
            packed = np.empty(sum(lengths), np.int64)
            for start, one in zip(made.starts, ids, strict=True):
                packed[start : start + len(one)] = one
            reads = [s + slot for s, some in zip(made.starts, slots, strict=True) for slot in some]
            hidden = self._hidden(packed, made.positions, made.tiles, made.levels, pool, base, bool(reads))
            if not reads:
                return np.empty((0, self.rows), np.float32), None, made.starts
            where = torch.tensor(reads, dtype=torch.int32, device=self.device)
            logits = torch.empty((len(reads), self.rows), device=self.device)
            normed = hidden.new_empty((len(reads), hidden.shape[1]))
            head = (self.norm, self.eps, self.head_weight, self.head_bias, self.groups)
            verdict_head(hidden, where, *head, logits, torch.empty_like(logits), normed)
            total = None
            if self.vocabulary is not None:
                normed = normed if self.unembed is None else normed @ self.unembed
                total = vocabulary_log_sum_exp(normed, self.lm_head).cpu().numpy()
            return logits.cpu().numpy(), total, made.starts

    def _hidden(
        self,
        ids: np.ndarray,
        positions: np.ndarray,
        tiles: np.ndarray,
        levels: np.ndarray,
        pool: Tensor,
        base: int,
        wanted: bool,
    ) -> Tensor:
        """The residual stream after the last layer, float32 [T, hidden]; unfinished unless `wanted`."""
        ids_, where, table, depth = (
            torch.from_numpy(array).to(self.device) for array in (ids, positions, tiles, levels)
        )
        x = self.embedding[ids_].float()
        normed = torch.empty(x.shape, dtype=self.dtype, device=self.device)
        inner, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attended = torch.empty((len(x), inner), dtype=self.dtype, device=self.device)
        new = slice(base, base + len(x))
        deepest = int(levels.max())
        delta: Tensor | None = None
        for index, (layer, (keys, values)) in enumerate(zip(self.layers, pool, strict=True)):
            rms_norm(x, layer.input_norm, self.eps, normed, delta)
            qkv = linear(normed, layer.qkv, layer.bias)
            rope(qkv, where, self.cosine, self.sine, self.heads + self.kv_heads)
            keys[new], values[new] = qkv[:, inner : inner + kv], qkv[:, inner + kv :]
            if index == len(self.layers) - 1 and not wanted:
                return x  # keys and values are there, and nothing else is asked for
            tree_attention(
                qkv, keys, values, table, depth, deepest, base, self.heads, self.kv_heads, attended
            )
            rms_norm(x, layer.post_norm, self.eps, normed, linear(attended, layer.o))
            gate, up = linear(normed, layer.gate_up).chunk(2, dim=-1)
            delta = linear(silu(gate) * up, layer.down)
        return x if delta is None else x + delta


class CudaTree:
    """A token tree whose keys and values are on the device."""

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


def _layer(layer: Any, put: Any, dtype: torch.dtype) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    biased = parts[0].bias is not None
    return Layer(
        put(layer.input_layernorm.weight),
        put(torch.cat([part.weight for part in parts]), dtype),
        put(torch.cat([part.bias for part in parts]), dtype) if biased else None,
        put(attention.o_proj.weight, dtype),
        put(layer.post_attention_layernorm.weight),
        put(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]), dtype),
        put(mlp.down_proj.weight, dtype),
    )


@contextmanager
def _scoring() -> Iterator[None]:
    """What PyTorch and Triton raise while a pass runs, memory that ran out among it, as ScorerError."""
    try:
        yield
    except (RuntimeError, ValueError, TritonError) as error:
        raise ScorerError(f"the cuda scorer failed: {error}") from error
