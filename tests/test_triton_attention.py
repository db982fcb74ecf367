"""Tree attention in Triton's interpreter against softmax over each query's own path, in float64."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from triton_kernels import close, poisoned, rows_alike

from aegis_edge.triton import tree_attention as module
from aegis_edge.triton.tree_attention import queries_a_tile, tree_attention
from aegis_edge.triton.tree_plan import Plan, plan


def paths(parents, lengths):
    """Per node, [(node, tokens seen)] of its path: all of its ancestors, and itself as far as each token."""
    found = []
    for node, parent in enumerate(parents):
        found.append([*(found[parent] if parent >= 0 else []), node])
    return found


def expected(q, k, v, made: Plan, parents, old, lengths, base, heads, kv_heads):
    """float64 [T, heads * d], in packed order; keys of node n stand where the cache has them."""
    head_dim = q.shape[1] // heads
    rows = list(pairwise(np.cumsum([0, *lengths[:old]])))
    rows += [(base + s, base + s + n) for s, n in zip(made.starts, lengths[old:], strict=True)]
    out = torch.zeros(q.shape, dtype=torch.float64)
    for node in range(old, len(parents)):
        start = made.starts[node - old]
        for i in range(lengths[node]):
            seen = [row for n in paths(parents, lengths)[node][:-1] for row in range(*rows[n])]
            seen += range(rows[node][0], rows[node][0] + i + 1)
            for head in range(heads):
                at = slice(head * head_dim, (head + 1) * head_dim)
                kv = head // (heads // kv_heads)
                kv_at = slice(kv * head_dim, (kv + 1) * head_dim)
                scores = k[seen, kv_at].double() @ q[start + i, at].double() / head_dim**0.5
                out[start + i, at] = torch.softmax(scores, 0) @ v[seen, kv_at].double()
    return out


def run(parents, lengths, old, heads, kv_heads, head_dim, dtype=torch.float32, seed=None):
    """(what the kernels give, what is right, the largest value): nodes before `old` are in the cache."""
    generator = torch.Generator().manual_seed(torch.seed() % 2**31 if seed is None else seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    ranges = list(pairwise(np.cumsum([0, *lengths[:old]]).tolist()))
    base = sum(lengths[:old])
    made = plan(ranges, parents, lengths[old:], base, queries_a_tile(heads // kv_heads))
    tokens = sum(lengths[old:])
    q = random(tokens, heads * head_dim)
    k, v = (random(base + tokens, kv_heads * head_dim) for _ in range(2))
    right = expected(q, k, v, made, parents, old, lengths, base, heads, kv_heads)
    with poisoned():
        out = torch.empty(q.shape, dtype=dtype)
        assert out.isnan().all()
        tables = (torch.from_numpy(made.tiles), torch.from_numpy(made.levels), int(made.levels.max()))
        tree_attention(q, k, v, *tables, base, heads, kv_heads, out)
    return out, right, float(v.abs().max())


TREE = ([-1, 0, 1, 0, 3, 3], [37, 5, 1, 30, 4, 1], 1)
SHAPES = {  # parents, lengths, nodes in the cache, heads, key heads, head size
    "one token": ([-1], [1], 0, 2, 1, 64),
    "a root": ([-1], [70], 0, 3, 3, 64),
    "a tree": (*TREE, 4, 2, 64),
    "a cached tree": ([-1, 0, 1, 0, 3, 2], [37, 5, 1, 30, 4, 1], 4, 4, 2, 64),
    "a chain": ([-1, 0, 1, 2, 3, 4, 5], [3, 1, 2, 1, 70, 1, 1], 3, 2, 2, 64),
    "head size 80": (*TREE, 2, 1, 80),
    "head size 96, 5 heads a key": (*TREE, 5, 1, 96),
    "head size 128, 8 heads a key": (*TREE, 8, 1, 128),
    "head size 256": (*TREE, 2, 2, 256),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_every_query_attends_to_its_path(shape):
    out, right, _ = run(*shape)
    assert close(out, right, 1e-5)


@pytest.mark.parametrize("shape", [SHAPES["a tree"], SHAPES["head size 256"]], ids=["64", "256"])
def test_half_precision(shape):
    """Weights and the result are rounded to fp16, by 2^-11 of themselves each: the weights move a result by
    at most 2^-11 max|v|, the rounding of the result by as much; sums are fp32, whose rounding is nothing."""
    out, right, largest = run(*shape, dtype=torch.float16)
    assert (out.double() - right).abs().max() <= 2 * 2**-11 * largest


def test_three_hundred_siblings():
    parents, lengths = [-1] + [0] * 300, [40] + [1] * 300
    out, right, _ = run(parents, lengths, 1, 3, 1, 64)
    assert close(out, right, 1e-5)


def test_shared_keys_are_read_once_a_tile_of_queries_and_not_once_a_sibling():
    made = plan([(0, 40)], [-1] + [0] * 300, [1] * 300, 40, queries_a_tile(3))
    of_the_root = made.tiles[made.tiles[:, 4] == 0]
    assert len(of_the_root) == -(-300 // 21) and (of_the_root[:, 2:4] == [0, 40]).all()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_plan_covers_every_path_once(data):
    """A query's tiles, one a level, cover the keys of its path: ancestors whole, itself up to the query."""
    count = data.draw(st.integers(1, 12))
    old = data.draw(st.integers(0, count - 1))
    parents = [-1, *(data.draw(st.integers(0, node - 1)) for node in range(1, count))]
    lengths = [data.draw(st.integers(1, 9)) for _ in range(count)]
    ranges = list(pairwise(np.cumsum([0, *lengths[:old]]).tolist()))
    base, queries = sum(lengths[:old]) + data.draw(st.integers(0, 3)), data.draw(st.integers(1, 8))
    made = plan(ranges, parents, lengths[old:], base, queries)
    rows = ranges + [(base + s, base + s + n) for s, n in zip(made.starts, lengths[old:], strict=True)]
    assert (made.tiles[:, 1] - made.tiles[:, 0] <= queries).all()
    for node in range(old, count):
        path = paths(parents, lengths)[node]
        for i in range(lengths[node]):
            token = made.starts[node - old] + i
            mine = made.tiles[(made.tiles[:, 0] <= token) & (token < made.tiles[:, 1])]
            assert sorted(mine[:, 4]) == list(range(len(path))) and made.levels[token] == len(path)
            seen = sorted(k for t in mine for k in range(t[2], t[3]) if k <= base + token)
            right = [k for n in path[:-1] for k in range(*rows[n])]
            assert seen == sorted([*right, *range(rows[node][0], rows[node][0] + i + 1)])
            assert made.positions[token] == sum(lengths[n] for n in path[:-1]) + i


def one_level(tiles, levels, deepest, base=10):
    """Three queries of one head over 10 cached keys, with parts as given."""
    q, k, v = torch.randn(3, 64), torch.randn(13, 64), torch.randn(13, 64)
    with poisoned():
        out = torch.empty(3, 64)
        table = torch.tensor(tiles, dtype=torch.int32)
        tree_attention(q, k, v, table, torch.tensor(levels, dtype=torch.int32), deepest, base, 1, 1, out)
    return out, torch.softmax(q.double() @ k[:10].double().T / 8, 1) @ v[:10].double()


def test_an_empty_private_part_adds_nothing_and_no_part_at_all_gives_zeros():
    with_empty, right = one_level([(0, 3, 0, 10, 0), (0, 3, 10, 10, 1)], [2, 2, 2], 2)
    assert close(with_empty, right, 1e-5)
    ragged, right = one_level([(0, 3, 0, 10, 0), (0, 1, 10, 10, 1)], [2, 1, 1], 2)
    assert close(ragged, right, 1e-5)
    nothing, _ = one_level([(0, 3, 5, 5, 0)], [1, 1, 1], 1)
    assert (nothing == 0).all()


def test_neighbours_do_not_change_a_bit():
    tree = ([-1, 0, 0, 0], [20, 3, 30, 7], 1)
    generator = torch.Generator().manual_seed(5)
    q, kv = torch.randn(40, 128, generator=generator), torch.randn(60, 128, generator=generator)

    def attend(nodes):
        lengths = [tree[1][n] for n in nodes]
        starts = {1: 0, 2: 3, 3: 33}
        mine = torch.cat([torch.arange(starts[n], starts[n] + tree[1][n]) for n in nodes])
        made = plan([(0, 20)], [-1] + [0] * len(nodes), lengths, 20, queries_a_tile(1))
        cache = torch.cat([kv[:20], kv[20 + mine]])
        out = torch.empty(len(mine), 128)
        tables = (torch.from_numpy(made.tiles), torch.from_numpy(made.levels), 2)
        return tree_attention(q[mine], cache, cache, *tables, 20, 2, 2, out)

    with rows_alike():
        assert torch.equal(attend([1, 2, 3])[33:], attend([3]))


@pytest.mark.parametrize("broken", ["levels", "keys", "queries"])
def test_inverse_a_wrong_table_shows(monkeypatch, broken):
    right_plan = plan

    def wrong(*arguments):
        made = right_plan(*arguments)
        levels, tiles = made.levels.copy(), made.tiles.copy()
        if broken == "levels":
            # A token's own part is left out; not of the deepest, or the buffer of parts would be too small.
            levels[levels < levels.max()] -= 1
        elif broken == "keys":
            tiles[:, 3] -= tiles[:, 3] - tiles[:, 2] > 1  # the last key of each part
        else:
            tiles[0, 1] -= 1  # one query's root: what was in memory is merged in
        return Plan(made.starts, made.positions, levels, tiles)

    monkeypatch.setitem(globals(), "plan", wrong)
    out, right, _ = run(*SHAPES["a tree"])
    assert not close(out, right, 1e-3)


def test_refusals():
    q = torch.zeros(1, 64)
    tables = (torch.zeros(1, 5, dtype=torch.int32), torch.ones(1, dtype=torch.int32), 1, 0)
    with pytest.raises(ValueError, match="3 heads over 2 of 21"):
        tree_attention(q, q, q, *tables, 3, 2, torch.empty(1, 64))
    with pytest.raises(ValueError, match="must be of one dtype"):
        tree_attention(q, q.half(), q, *tables, 1, 1, torch.empty(1, 64))
    assert module._BLOCK_M // queries_a_tile(8) == 8
