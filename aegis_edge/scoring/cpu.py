"""The compiled runtime as a scorer: an artefact's weights handed to C++ tensor by tensor, and its trees."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from aegis_edge import _native
from aegis_edge.errors import ScorerError
from aegis_edge.features import Features
from aegis_edge.scoring import IdArray, LogitArray, Segment, TreeShape
from aegis_edge.scoring.rope import inverse_frequencies
from aegis_edge.scoring.vocabulary import Vocabulary, softcapped

LINEARS = ("qkv", "o", "gate_up", "down")
NORMS = ("input_norm", "post_norm", "q_norm", "k_norm", "attention_out_norm", "mlp_out_norm")
ROOTS_KEPT = 8  # custom policies; one of 150 tokens takes 3.5 MB of the 135M model
RootKv = tuple[np.ndarray, np.ndarray]


class Store(Protocol):
    """Keys and values of policies that outlive a process; see `kept.py`."""

    def read(self, root: IdArray, isa: str) -> RootKv | None: ...
    def write(self, root: IdArray, isa: str, kv: RootKv) -> None: ...


class Weights(Protocol):
    """What an artefact offers to an engine."""

    @property
    def manifest(self) -> Mapping[str, Any]: ...
    def tensor_names(self) -> Sequence[str]: ...
    def tensor(self, name: str) -> np.ndarray: ...
    def map_tensor(self, name: str) -> np.ndarray: ...


def load_model(weights: Weights, threads: int) -> _native.Model:
    """Pack an artefact's weights for this CPU, a layer a thread: at most one tensor a thread beside them."""
    manifest = weights.manifest
    shape, names = manifest["model"], set(weights.tensor_names())
    features = Features.of(shape)
    model = _native.Model(
        **{
            key: shape[key]
            for key in ("layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate", "vocab")
        },
        context=shape["context"],
        rows=len(manifest["head"]["rows"]),
        norm_eps=shape["norm_eps"],
        hadamard_block=manifest["quantization"]["hadamard_block"],
        rope_scale=list(features.rope_factors) or [1.0],
        inverse_frequency=inverse_frequencies(weights).reshape(-1),
        threads=threads,
        gelu=features.activation == "gelu_tanh",
        qk_norm=features.qk_norm,
        out_norms=features.out_norms,
        softcap=features.attention_softcap,
        input_block=features.input_block,
        windows=list(features.windows),
        rope_of=list(features.rope_of),
    )

    def load_layer(layer: int) -> None:  # reading and packing release the GIL
        for name in LINEARS:
            _set_linear(model, weights, names, layer, name)
        for norm in NORMS:
            if f"layers.{layer}.{norm}.weight" in names:
                model.set_norm(layer, norm, weights.tensor(f"layers.{layer}.{norm}.weight"))

    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(load_layer, layer) for layer in range(shape["layers"])]:
            done.result()
    if "final_norm.weight" in names:
        model.set_norm(-1, "final_norm", weights.tensor("final_norm.weight"))
    model.set_embedding(weights.map_tensor("embed_tokens.weight"))
    model.set_head(weights.tensor("head.weight"), weights.tensor("head.bias"))
    model.check_complete()
    return model


def _set_linear(model: _native.Model, weights: Weights, names: set[str], layer: int, name: str) -> None:
    prefix = f"layers.{layer}.{name}"
    weight = weights.tensor(f"{prefix}.weight")
    if f"{prefix}.group_scale" in names:
        model.set_int4(
            layer, name, weight, weights.tensor(f"{prefix}.group_scale"), weights.tensor(f"{prefix}.scale")
        )
    elif weight.dtype == np.int8:
        model.set_int8(layer, name, weight, weights.tensor(f"{prefix}.scale"))
    else:
        model.set_bf16(layer, name, weight)
    if f"{prefix}.bias" in names:
        model.set_bias(layer, name, weights.tensor(f"{prefix}.bias"))


@contextmanager
def _scoring() -> Iterator[None]:
    """The runtime's refusals, a forked process and memory that ran out as the one error of scorers."""
    try:
        yield
    except (ValueError, RuntimeError, MemoryError) as error:
        raise ScorerError(str(error)) from error


class CpuScorer:
    """An artefact's guard in the compiled runtime.

    root     int32 [P]: the policy's ids. Its KV is the artefact's where `policy_kv` is given (bf16 as uint16:
             k [L, Hkv, ceil(P/16), d/2, 16, 2], v [L, Hkv, ceil(P/2), d, 2]), else it is computed.
    threads  of the team that every check uses; None: all this process may use.
    vocabulary  the whole LM head, where label mass is wanted.
    store    where other policies' keys and values are kept; None: in this process alone.
    Safe to use from several threads: passes queue up for the team. The GIL is released while one runs.
    """

    name = "cpu"

    def __init__(
        self,
        weights: Weights,
        root: IdArray,
        policy_kv: RootKv | None = None,
        threads: int | None = None,
        vocabulary: Vocabulary | None = None,
        store: Store | None = None,
    ) -> None:
        self.vocabulary, self._store = vocabulary, store
        self.manifest = weights.manifest
        self.softcap = Features.of(weights.manifest["model"]).logit_softcap
        self.threads = threads or _native.usable_threads()
        try:
            self.model = load_model(weights, self.threads)
        except ValueError as error:
            raise ScorerError(str(error)) from error
        self.isa: str = self.model.isa
        self.root = np.ascontiguousarray(root, np.int32)
        self._lock = threading.Lock()
        self._roots: OrderedDict[bytes, RootKv] = OrderedDict()
        self._root_kv = policy_kv if policy_kv is not None else self._compute_root(self.root)

    @property
    def rows(self) -> int:
        return len(self.manifest["head"]["rows"])

    @property
    def context(self) -> int:
        return int(self.manifest["model"]["context"])

    @property
    def vocab(self) -> int:
        return int(self.manifest["model"]["vocab"])

    def tree(self, root: IdArray | None = None) -> CpuTree:
        if root is None:
            return CpuTree(self, self.root, self._root_kv)
        return CpuTree(self, root, self._cached_root(root))

    def _cached_root(self, root: IdArray) -> RootKv:
        """A custom policy's KV, computed on first use; the latest few are kept."""
        key = root.tobytes()
        with self._lock:
            if key in self._roots:
                self._roots.move_to_end(key)
                return self._roots[key]
        kv = None if self._store is None else self._store.read(root, self.isa)
        if kv is None:
            kv = self._compute_root(root)
            if self._store is not None:
                self._store.write(root, self.isa, kv)
        with self._lock:
            self._roots[key] = kv
            while len(self._roots) > ROOTS_KEPT:
                self._roots.popitem(last=False)
        return kv

    def root_kv(self) -> RootKv:
        """The policy's keys and values, as `policy.safetensors` stores them."""
        return self._root_kv

    def _compute_root(self, root: IdArray) -> RootKv:
        TreeShape(root, self.context, self.vocab)
        with _scoring():
            keys, values = self.model.compute_root(np.ascontiguousarray(root, np.int32))
        return keys, values


class CpuTree:
    """A token tree in the compiled runtime."""

    can_grow = True

    def __init__(self, scorer: CpuScorer, root: IdArray, kv: RootKv) -> None:
        self._shape = TreeShape(root, scorer.context, scorer.vocab, can_grow=True)
        self._vocabulary = scorer.vocabulary
        self._softcap = scorer.softcap
        self.log_sum_exp: LogitArray | None = None
        self._tree = _native.Tree(scorer.model, *kv, len(root))

    def extend(self, segments: Sequence[Segment]) -> LogitArray:
        before = self._shape.parents, self._shape.ends
        self._shape.add(segments)
        ids = np.concatenate([s.ids for s in segments])
        lengths = [len(s.ids) for s in segments]
        offsets = np.zeros(len(segments) + 1, np.int32)
        np.cumsum(lengths, out=offsets[1:])
        parents = np.array([s.parent for s in segments], np.int32)
        slots = np.array(
            [start + slot for start, s in zip(offsets.tolist(), segments, strict=False) for slot in s.slots],
            np.int32,
        )
        order = None
        if len(slots) > 1 and not (np.diff(slots) > 0).all():  # a segment may name its slots in any order
            slots, order = np.unique(slots, return_inverse=True)
        kept = room = None
        if any(s.kept is not None or s.room for s in segments):
            kept = np.array([-1 if s.kept is None else s.kept for s in segments], np.int32)
            room = np.array([min(s.room, self._shape.context) for s in segments], np.int32)
        try:
            with _scoring():
                logits, hidden = self._tree.extend(
                    ids, offsets, parents, slots, self._vocabulary is not None, kept, room
                )
        except ScorerError:
            self._shape.parents, self._shape.ends = before
            raise
        if order is not None:
            logits, hidden = logits[order], None if hidden is None else hidden[order]
        if self._vocabulary is not None and hidden is not None:
            self.log_sum_exp = self._vocabulary.log_sum_exp(hidden)
        return softcapped(logits, self._softcap)

    def truncate(self, nodes: int) -> None:
        self._shape.truncate(nodes)
        with _scoring():
            self._tree.truncate(nodes)
