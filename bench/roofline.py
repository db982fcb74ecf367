"""What the GPU kernels have to move and to compute in one pass, and how long that takes at published peaks.

No GPU was at hand: these are bounds, not measurements. A kernel's time is the larger of bytes / bandwidth and
operations / peak; starting a kernel, which costs microseconds each, is not in it. `python -m
aegis_edge.bench.roofline` prints the table of docs/gpu.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aegis_edge.triton.tree_plan import Plan, plan

HALF, FULL = 2, 4  # bytes of bf16 and fp32
# No part of an int8 check: label mass is asked for, and bf16 products are what a bf16 guard has instead.
ELSEWHERE = ("vocabulary", "bf16 products")


@dataclass(frozen=True)
class Device:
    """memory: bytes/s; int8 and tensor: dense int8 and bf16 multiply-adds on tensor cores, and plain: fp32,
    in operations/s (two a multiply-add)."""

    memory: float
    int8: float
    tensor: float
    plain: float


# NVIDIA's data sheets: H100 SXM5 and L4 (their tensor figures are with sparsity: halved here), and the
# technical brief of Jetson AGX Orin 64 GB (170 sparse int8 TOPS of its GPU; half of it for dense int8, a
# quarter for dense bf16).
DEVICES = {
    "H100": Device(3.35e12, 1979e12, 989e12, 67e12),
    "L4": Device(300e9, 242e12, 121e12, 30.3e12),
    "Orin": Device(204.8e9, 85e12, 42.5e12, 5.3e12),
}


@dataclass(frozen=True)
class Model:
    """The sizes of a decoder; the defaults are SmolLM2-135M, all layers, under the default guard's head."""

    layers: int = 30
    hidden: int = 576
    heads: int = 9
    kv_heads: int = 3
    head_dim: int = 64
    intermediate: int = 1536
    block: int = 512  # of the Hadamard transform
    rows: int = 6
    vocab: int = 49152

    @property
    def inner(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        return self.kv_heads * self.head_dim


@dataclass(frozen=True)
class Work:
    """Bytes through memory, each array once; operations; the peak of a Device that they are held to."""

    bytes: int
    operations: int
    peak: str

    def seconds(self, device: Device) -> float:
        peak: float = getattr(device, self.peak)
        return max(self.bytes / device.memory, self.operations / peak)


def check(prompts: int, tokens: int, policy: int, queries: int) -> Plan:
    """The pass of `prompts` siblings of `tokens` tokens, a verdict token below each, under a kept policy."""
    parents, lengths = [-1], []
    for _ in range(prompts):
        parents += [0, len(parents)]
        lengths += [tokens, 1]
    return plan([(0, policy)], parents, lengths, policy, queries)


def count(model: Model, made: Plan, policy: int, slots: int) -> Mapping[str, Work]:
    """Each kernel's work in all of its launches of the pass `made`."""
    tokens = len(made.levels)
    layers, hidden = model.layers, model.hidden
    # Every query by every key of its tile, the masked ones too: they are computed.
    pairs = sum(int((t[1] - t[0]) * (t[3] - t[2])) for t in made.tiles)
    parts = int(made.levels.sum())  # one output and one log-sum-exp a token and level
    part = parts * (model.inner + model.heads) * FULL
    weights = hidden * (model.inner + 2 * model.kv) + model.inner * hidden + 3 * hidden * model.intermediate
    # Rows that go into the four products: twice the norm's, attention, SiLU(gate) * up. And what comes out:
    # queries, keys and values in bf16, the rest in fp32.
    rows = 2 * hidden + model.inner + model.intermediate
    out = (model.inner + 2 * model.kv) * HALF + (2 * hidden + model.intermediate) * FULL
    channels = model.inner + 2 * model.kv + 2 * hidden + 2 * model.intermediate
    levels = model.block.bit_length() - 1
    second = slots * (rows + channels * 2 * FULL)  # digits in, products out and in again
    return {
        # x and delta in, x and the digits out; add, square, sum, scale, weight, largest, round
        "int8_norm": Work(
            2 * layers * tokens * (hidden * (3 * FULL + 1) + FULL), 2 * layers * tokens * 8 * hidden, "plain"
        ),
        # attention's rows in, digits out
        "int8_rows": Work(
            layers * tokens * (model.inner * (FULL + 1) + FULL), layers * tokens * 4 * model.inner, "plain"
        ),
        # SiLU(gate) * up in, digits out; an addition a level, then as above
        "int8_hadamard": Work(
            layers * tokens * (model.intermediate * (FULL + 1) + FULL),
            layers * tokens * (4 + levels) * model.intermediate,
            "plain",
        ),
        # queries and keys in and out; the table's rows of cosines and sines
        "rope": Work(
            layers * tokens * (2 * (model.inner + model.kv) * HALF + model.head_dim * FULL),
            layers * tokens * 3 * (model.inner + model.kv),
            "plain",
        ),
        # queries in, every key and value once, the parts out; two products a pair
        "tree_attention": Work(
            layers * (tokens * model.inner * HALF + 2 * (policy + tokens) * model.kv * HALF + part),
            layers * 4 * pairs * model.inner,
            "tensor",
        ),
        # the parts in, a row a token out; a multiply-add an element
        "tree_attention_merge": Work(
            layers * (part + tokens * model.inner * FULL), layers * 2 * parts * model.inner, "plain"
        ),
        # weights and their scales once, digits in, rows out; slots again for their second digits
        "int8_gemm": Work(
            layers * (weights + channels * FULL + tokens * (rows + out) + second),
            layers * 2 * (tokens + slots) * weights,
            "int8",
        ),
        # where the artefact is bf16: PyTorch's; weights once, activations in and out
        "bf16 products": Work(
            layers * (weights + tokens * (rows + channels - model.intermediate)) * HALF,
            layers * 2 * tokens * weights,
            "tensor",
        ),
        # slot rows and the head's in; logits, log-probabilities and normed rows out
        "verdict_head": Work(
            FULL * (slots * hidden + model.rows * (hidden + 1) + hidden + slots * (2 * model.rows + hidden)),
            slots * (4 * hidden + 2 * model.rows * hidden),
            "plain",
        ),
        # the whole LM head in bf16, for label mass alone; in fp32
        "vocabulary": Work(
            model.vocab * hidden * HALF + slots * hidden * FULL, 2 * slots * model.vocab * hidden, "plain"
        ),
    }


def table(model: Model, prompts: int, tokens: int, policy: int) -> list[str]:
    """Lines of a Markdown table for `prompts` prompts of `tokens` tokens."""
    made = check(prompts, tokens, policy, 64 // (model.heads // model.kv_heads))
    works = count(model, made, policy, prompts)
    total = dict.fromkeys(DEVICES, 0.0)
    heading = " | ".join(f"{name}, us" for name in DEVICES)
    lines = [
        f"| {prompts} x {tokens} tokens | MB | Mop | op/byte | {heading} |",
        "|---|---|---|---|" + "---|" * len(DEVICES),
    ]
    for name, work in works.items():
        times = {device: work.seconds(peaks) * 1e6 for device, peaks in DEVICES.items()}
        if name not in ELSEWHERE:
            total = {device: total[device] + times[device] for device in total}
        numbers = (work.bytes / 1e6, work.operations / 1e6, work.operations / work.bytes, *times.values())
        lines.append(f"| {name} | {' | '.join(map(_number, numbers))} |")
    lines.append(f"| a check | | | | {' | '.join(map(_number, total.values()))} |")
    return lines


def _number(value: float) -> str:
    """Three digits, or all of them before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def page() -> str:
    """The tables of docs/gpu.md: one prompt, and 64 at once, of 64 tokens under the default policy of 142."""
    return "\n\n".join("\n".join(table(Model(), prompts, 64, 142)) for prompts in (1, 64))


if __name__ == "__main__":
    print(page())
