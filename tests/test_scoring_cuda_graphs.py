"""What lies around a CUDA graph, without a GPU: a recording is here the function itself, called again.

Sizes, padding, copies in and out, and what is not recorded: the same logits come out whether a pass was
padded or run as it is. Recording and replaying themselves need a GPU.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_scoring_cuda import BRANCHES, MORE, ROOT, segment
from triton_kernels import poisoned

from aegis_edge.scoring import cuda_graphs
from aegis_edge.scoring.cuda import CudaScorer
from aegis_edge.scoring.cuda_graphs import DEEPEST, MOST_KEPT, SLOTS, TOKENS, Graphs, size_for
from aegis_edge.scoring.cuda_pass import pack


@pytest.fixture(scope="module", autouse=True)
def _poisoned():
    with poisoned():
        yield


class Recorder:
    """Stands in for a GPU's recordings: a replay computes again and refills the outputs in place."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, run):
        self.recorded += 1
        outputs = run()

        def replay():
            self.replayed += 1
            for kept, fresh in zip(outputs, run(), strict=True):
                kept.copy_(fresh)

        return replay, outputs


@pytest.fixture
def scorers(tiny_llama, tiny_head, monkeypatch):
    """A scorer that records, with fewer slots in a size (the interpreter takes milliseconds a tile), one
    that does not, and what counts the recordings."""
    monkeypatch.setattr(cuda_graphs, "SLOTS", 8)
    one, other = (CudaScorer(tiny_llama, *map(torch.from_numpy, tiny_head), ROOT) for _ in range(2))
    recorder = Recorder()
    one._graphs = Graphs(one._run, one.pool, recorder)
    return SimpleNamespace(recording=one, plain=other, recorder=recorder)


LAST = [segment([20, 21], 6, [1]), segment([22], 7, [0])]  # below nodes of MORE


def test_a_padded_pass_reads_as_one_that_is_not(scorers):
    """The size is met, then recorded and replayed with other tokens; then a pass that is not recorded
    attends to what the replay left."""
    a, b = scorers.recording.tree(), scorers.plain.tree()
    assert np.array_equal(a.extend(BRANCHES), b.extend(BRANCHES)) and scorers.recorder.recorded == 0
    assert np.abs(a.extend(MORE) - b.extend(MORE)).max() < 1e-5
    assert (scorers.recorder.recorded, scorers.recorder.replayed) == (1, 1)
    scorers.recording._graphs = None
    assert np.abs(a.extend(LAST) - b.extend(LAST)).max() < 1e-5


def test_inverse_old_rows_that_are_not_copied_show(scorers, monkeypatch):
    right = Graphs.__call__

    def forgets(self, one, sizes, old, new):
        return right(self, one, sizes, old[:, :, :1], new)

    monkeypatch.setattr(Graphs, "__call__", forgets)
    a, b = scorers.recording.tree(), scorers.plain.tree()
    a.extend(BRANCHES), b.extend(BRANCHES)
    assert not np.abs(a.extend(MORE) - b.extend(MORE)).max() < 1e-2
    assert scorers.recorder.replayed == 1


def test_what_nothing_is_read_of_is_not_recorded(scorers):
    tree = scorers.recording.tree()
    for parent in range(3):
        assert tree.extend([segment([5, 6], parent)]).shape == (0, 6)
    assert scorers.recorder.recorded == 0 and not scorers.recording._graphs._met


def fits(lengths, parents, slots, kept=142, queries=21):
    """Whether new nodes of `lengths` tokens, the root's length being `kept`, fit their size."""
    size = size_for(sum(lengths), kept, queries)
    ids = [np.ones(length, np.int32) for length in lengths]
    return size.holds(pack([(0, kept)], [-1, *parents], ids, slots, size.base, queries).sizes)


def test_the_commonest_passes_fit_their_size():
    """A prompt and its verdict, a response and its own below; 23 categories. Nine query heads over three:
    21 tokens a tile."""
    for n in (1, 15, 40, 200):
        assert fits([n, 5, n, 5], [0, 1, 1, 3], [(), (4,), (), (4,)])
    assert fits([3] * 23, [0] * 23, [(2,)] * 23)


def test_what_does_not_fit_its_size():
    assert fits([SLOTS], [0], [range(SLOTS)]) and not fits([SLOTS + 1], [0], [range(SLOTS + 1)])
    chain = [5] * DEEPEST
    assert not fits(chain, range(DEEPEST), [(0,)] * DEEPEST)  # the root is one more
    assert fits(chain[1:], range(DEEPEST - 1), [(0,)] * (DEEPEST - 1))
    assert not fits([2] * 60, [0] * 60, [(0,)] + [()] * 59)  # tiles


def test_sizes():
    assert size_for(1, 0, 32).tokens == 16 and size_for(1, 0, 32).base == 0
    assert size_for(17, 142, 21).tokens == 32 and size_for(17, 142, 21).base == 256
    assert size_for(512, 256, 21).base == 256 and size_for(512, 257, 21).base == 512
    assert size_for(TOKENS[-1] + 1, 0, 21) is None and size_for(1, MOST_KEPT + 1, 21) is None


def test_padding_touches_nothing_that_is_read():
    """A pass's arrays stand in front, and what follows is no path, no tile and no second digit."""
    ids, slots = [s.ids for s in BRANCHES], [s.slots for s in BRANCHES]
    parents = [-1, *(s.parent for s in BRANCHES)]
    size = size_for(11, len(ROOT), 32)
    one = pack([(0, len(ROOT))], parents, ids, slots, size.base, 32)
    given, positions, levels, low_of, reads, tiles = size.views(torch.from_numpy(one.flat(size)))
    tokens, own = one.sizes.tokens, one.sizes
    assert torch.equal(given[:tokens], torch.from_numpy(one.ids)) and not given[tokens:].any()
    assert (levels[:tokens] > 0).all() and not levels[tokens:].any() and not positions[tokens:].any()
    assert (low_of[tokens:] == -1).all() and sorted(low_of[low_of >= 0].tolist()) == list(range(own.fine))
    assert torch.equal(reads[: own.slots], torch.from_numpy(one.slots))
    assert torch.equal(tiles[: own.tiles], torch.from_numpy(one.tiles)) and not tiles[own.tiles :].any()
