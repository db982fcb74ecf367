"""What the compiled runtime refuses: each by its message, and nothing changed by it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from native_model import ROWS, SHAPE, RandomWeights, i32, ids

from aegis_edge import _native
from aegis_edge.scoring.cpu import load_model
from aegis_edge.scoring.rope import frequencies

MODEL_KEYS = (
    "layers",
    "hidden",
    "heads",
    "kv_heads",
    "head_dim",
    "intermediate",
    "vocab",
    "context",
    "norm_eps",
)


def empty_model(**changes: Any) -> _native.Model:
    arguments = {key: SHAPE[key] for key in MODEL_KEYS}
    arguments |= {"rows": 3, "hadamard_block": 32, "rope_scale": [1.0], "threads": 1}
    arguments["inverse_frequency"] = frequencies(SHAPE)
    return _native.Model(**{**arguments, **changes})


@pytest.fixture(scope="module")
def model() -> _native.Model:
    return load_model(RandomWeights("w8a8"), 1)


@pytest.fixture
def tree(model: _native.Model) -> _native.Tree:
    return _native.Tree(model, *model.compute_root(ids(20, 1)), 20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "layers must be"),
        ({"hidden": 60}, "hidden must be a multiple of 16"),
        ({"heads": 5}, "kv_heads must divide heads"),
        ({"kv_heads": 0}, "kv_heads must divide heads"),
        ({"head_dim": 24}, "head_dim must be"),
        ({"intermediate": 2**30}, "intermediate must be"),
        ({"vocab": 0}, "vocab must be"),
        ({"context": -1}, "context must be"),
        ({"rows": 0}, "rows must be"),
        ({"norm_eps": float("nan")}, "norm_eps must be"),
        ({"hadamard_block": 64}, "hadamard_block must be"),
        ({"inverse_frequency": np.ones(15, np.float32)}, "inverse_frequency must have"),
        ({"threads": 0}, "threads must be 1 to 1024"),
        ({"threads": 1025}, "threads must be 1 to 1024"),
    ],
)
def test_a_bad_shape_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        empty_model(**changes)


WEIGHT, SCALE = np.ones((64, 128), np.int8), np.ones(64, np.float32)
NIBBLES = np.full((64, 64), 0x99, np.uint8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.set_int8(0, "o", WEIGHT[:32], SCALE), "o rows: 32 where the model has 64"),
        (lambda m: m.set_int8(0, "o", WEIGHT[:, :64].copy(), SCALE), "o columns: 64 where the model has 128"),
        (lambda m: m.set_int8(0, "o", WEIGHT, SCALE[:63]), "o scales: 63 where the model has 64"),
        (lambda m: m.set_int8(0, "q", WEIGHT, SCALE), "no linear layer is called q"),
        (lambda m: m.set_int8(2, "o", WEIGHT, SCALE), "no layer 2"),
        (lambda m: m.set_int8(-1, "o", WEIGHT, SCALE), "no layer -1"),
        (lambda m: m.set_int4(0, "o", NIBBLES, np.ones((64, 3), np.uint8), SCALE), "groups must divide"),
        (lambda m: m.set_int4(0, "o", NIBBLES, np.ones((64, 64), np.uint8), SCALE), "groups must divide"),
        (
            lambda m: m.set_int4(0, "o", NIBBLES, np.ones((64, 32), np.uint8), SCALE),
            "groups must divide the columns into multiples of 8",
        ),
        (lambda m: m.set_int4(0, "o", NIBBLES, np.ones((64, 0), np.uint8), SCALE), "groups must divide"),
        (lambda m: m.set_int4(0, "o", NIBBLES, np.ones((63, 4), np.uint8), SCALE), "group scale rows: 63"),
        (
            lambda m: m.set_int4(0, "o", WEIGHT.view(np.uint8), np.ones((64, 4), np.uint8), SCALE),
            "columns: 128",
        ),
        (lambda m: m.set_bf16(0, "down", np.ones((64, 95), np.uint16)), "down columns: 95"),
        (lambda m: m.set_bias(0, "qkv", np.ones(255, np.float32)), "qkv biases: 255"),
        (lambda m: m.set_bias(0, "qkv", np.ones(256, np.float32)), "weight must be set before the bias"),
        (lambda m: m.set_norm(0, "input_norm", np.ones(63, np.float32)), "input_norm weights: 63"),
        (lambda m: m.set_norm(0, "final_norm", np.ones(64, np.float32)), "no norm is called final_norm"),
        (lambda m: m.set_norm(-1, "input_norm", np.ones(64, np.float32)), "no norm is called input_norm"),
        (lambda m: m.set_norm(7, "input_norm", np.ones(64, np.float32)), "no layer 7"),
        (lambda m: m.set_embedding(np.ones((70, 64), np.uint16)), "embedding rows: 70"),
        (lambda m: m.set_head(np.ones((3, 63), np.float32), np.ones(3, np.float32)), "head columns: 63"),
        (lambda m: m.set_head(np.ones((3, 64), np.float32), np.ones(2, np.float32)), "head biases: 2"),
        (lambda m: m.compute_root(i32()), "a root needs at least one token"),
        (lambda m: m.compute_root(i32(1)), "weight missing: layer 0 q"),
        (lambda m: m.check_complete(), "weight missing: layer 0 q"),
    ],
)
def test_bad_weights_are_refused(call: Callable[[_native.Model], Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call(empty_model())


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.set_int8(0, "o", WEIGHT.astype(np.float32), SCALE),
        lambda m: m.set_int8(0, "o", WEIGHT.view(np.uint8), SCALE),
        lambda m: m.set_int8(0, "o", WEIGHT, SCALE.astype(np.float64)),
        lambda m: m.set_int8(0, "o", np.ones((64, 256), np.int8)[:, ::2], SCALE),
        lambda m: m.set_int8(0, "o", WEIGHT.ravel(), SCALE),
        lambda m: m.set_int8(0, "o", WEIGHT.tolist(), SCALE),
        lambda m: m.set_bf16(0, "o", np.ones((64, 128), np.float32)),
        lambda m: m.set_bf16(0, "o", np.ones((64, 128), np.float16)),
        lambda m: m.set_embedding(np.ones((71, 64), np.float32)),
        lambda m: m.set_norm(0, "input_norm", np.ones(64)),
        lambda m: m.compute_root(np.array([1.7, 2.0])),
        lambda m: m.compute_root(np.array([1, 2**32 + 1])),
        lambda m: m.compute_root(None),
        lambda m: empty_model(inverse_frequency=np.ones(16)),
    ],
)
def test_arrays_of_another_dtype_are_refused_not_converted(call: Callable[[_native.Model], Any]) -> None:
    with pytest.raises(TypeError, match="incompatible function arguments"):
        call(empty_model())


def test_an_incomplete_model_names_what_is_missing() -> None:
    weights = RandomWeights("w8a8")
    model = empty_model()
    model.set_embedding(weights.tensor("embed_tokens.weight"))
    for name in ROWS:
        with pytest.raises(ValueError, match="weight missing: layer 0"):
            model.check_complete()
        prefix = f"layers.0.{name}"
        model.set_int8(0, name, weights.tensor(f"{prefix}.weight"), weights.tensor(f"{prefix}.scale"))
    with pytest.raises(ValueError, match="weight missing: layer 1 q"):
        model.check_complete()


@pytest.mark.parametrize(
    ("ids_", "offsets", "parents", "slots", "message"),
    [
        (i32(1), i32(0, 1), i32(), i32(), "offsets must be one more than parents"),
        (i32(1), i32(0), i32(0), i32(), "offsets must be one more than parents"),
        (i32(1), i32(0, 2), i32(0), i32(), "the last offset must be the number of ids"),
        (i32(1, 2), i32(0, -1), i32(0), i32(), "the last offset must be the number of ids"),
        (i32(1, 2), i32(1, 2), i32(0), i32(), "offsets must start at 0"),
        (i32(1, 2), i32(0, 9, 2), i32(0, 0), i32(), "segment 1 is empty"),
        (i32(1, 2), i32(0, -(2**31), 2), i32(0, 0), i32(), "segment 0 is empty"),
        (i32(1, 2), i32(0, 2**31 - 1, 2), i32(0, 0), i32(), "context is 256"),
        (i32(71), i32(0, 1), i32(0), i32(), "token id 71 is outside the vocabulary"),
        (i32(-1), i32(0, 1), i32(0), i32(), "token id -1 is outside the vocabulary"),
        (i32(1), i32(0, 1), i32(2), i32(), "no such parent node"),
        (i32(1), i32(0, 1), i32(-1), i32(), "no such parent node"),
        (i32(1), i32(0, 1), i32(0), i32(1), "slots must be increasing"),
        (i32(1), i32(0, 1), i32(0), i32(-1), "slots must be increasing"),
        (i32(1, 2), i32(0, 2), i32(0), i32(1, 0), "slots must be increasing"),
        (ids(237, 3), i32(0, 237), i32(0), i32(), "257 tokens, but the model's context is 256"),
    ],
)
def test_a_bad_batch_is_refused_and_the_tree_stays(
    tree: _native.Tree,
    ids_: np.ndarray,
    offsets: np.ndarray,
    parents: np.ndarray,
    slots: np.ndarray,
    message: str,
) -> None:
    good = (i32(3, 4), i32(0, 2), i32(0), i32(1))
    before, _ = tree.extend(*good)
    with pytest.raises(ValueError, match=message):
        tree.extend(ids_, offsets, parents, slots)
    assert len(tree) == 2
    tree.truncate(1)
    assert (tree.extend(*good)[0] == before).all()


def test_a_root_of_the_wrong_shape_is_refused(model: _native.Model) -> None:
    keys, values = model.compute_root(ids(20, 1))
    assert keys.shape == (2, 2, 2, 16, 16, 2)
    assert values.shape == (2, 2, 10, 32, 2)
    for k, v, n in ((keys, values, 33), (keys, values, 18), (keys[:1].copy(), values, 20), (keys, keys, 20)):
        with pytest.raises(ValueError, match="wrong shape"):
            _native.Tree(model, k, v, n)
    for n in (0, -1, 257):
        with pytest.raises(ValueError, match="root's length does not fit the context"):
            _native.Tree(model, keys, values, n)
    with pytest.raises(TypeError, match="incompatible function arguments"):
        _native.Tree(model, keys.view(np.int16), values, 20)


def test_truncate_keeps_the_root(tree: _native.Tree) -> None:
    for nodes in (0, -1):
        with pytest.raises(ValueError, match="a tree keeps at least its root"):
            tree.truncate(nodes)
    tree.truncate(9)
    assert len(tree) == 1
