"""The lean forward and backward against transformers + peft, on a tiny random Llama in fp32."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs the extra `train`")
pytest.importorskip("peft", reason="training needs the extra `train`")
pytest.importorskip("sklearn", reason="training needs the extra `train`")

from peft import PeftModel  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from aegis_edge.train.adapter import load_adapter, save_adapter  # noqa: E402
from aegis_edge.train.model import PROJECTIONS, LeanLlama  # noqa: E402
from aegis_edge.train.packing import CATEGORY, PROMPT, RESPONSE, Tokens, make_batch  # noqa: E402

ROOT = [1, 7, 8, 9, 2]


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=8,
        rope_parameters={"rope_theta": 1000.0, "rope_type": "default"},
    )
    return LlamaForCausalLM(config).float().eval()


def lean(base: LlamaForCausalLM, compiled: bool = False) -> LeanLlama:
    """With every LoRA matrix and row non-zero, rounded to what the adapter file keeps (bf16)."""
    model = LeanLlama(base, rows=6, rank=4, alpha=8.0, dtype=torch.float32, compiled=compiled)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.1
            parameter.copy_(noise.bfloat16().float())
    return model


def tokens(trunk: list[int], leaves: list[list[int]], response_at: int | None = None) -> Tokens:
    import numpy as np

    ids, depth, leaf = list(trunk), list(range(len(trunk))), [0] * len(trunk)
    slots = [(len(trunk) - 1, RESPONSE if response_at else PROMPT, 1)]
    if response_at:
        slots.insert(0, (response_at, PROMPT, 0))
    for number, piece in enumerate(leaves, 1):
        ids, leaf = ids + piece, leaf + [number] * len(piece)
        depth += range(len(trunk), len(trunk) + len(piece))
        slots.append((len(ids) - 1, CATEGORY, 1))
    return Tokens(np.asarray(ids), np.asarray(depth), np.asarray(leaf), tuple(slots))


EXAMPLES = [
    tokens([10, 11, 12, 2], []),
    tokens([20, 21, 2], [[1, 30, 2], [1, 31, 32, 2]]),
    tokens([13, 2, 5, 1, 6, 14, 15, 16, 17, 18, 19, 2], [[1, 33, 2]], response_at=1),
]
# Each slot of EXAMPLES as the plain sequence of its path from the root.
PATHS = [
    (0, [10, 11, 12, 2]),
    (1, [20, 21, 2]),
    (1, [20, 21, 2, 1, 30, 2]),
    (1, [20, 21, 2, 1, 31, 32, 2]),
    (2, [13, 2]),
    (2, [13, 2, 5, 1, 6, 14, 15, 16, 17, 18, 19, 2]),
    (2, [13, 2, 5, 1, 6, 14, 15, 16, 17, 18, 19, 2, 1, 33, 2]),
]


def by_owner(logits: torch.Tensor, owners: torch.Tensor) -> torch.Tensor:
    """Rows in the order of PATHS: the pack sorts examples by length, slots of one stay in order."""
    return logits[torch.argsort(owners, stable=True)]


@pytest.fixture
def peft_model(tmp_path: Path) -> tuple[LeanLlama, PeftModel]:
    base = tiny_llama()
    model = lean(base)
    save_adapter(model, tmp_path / "adapter", "tiny", {}, {}, "card")
    return model, PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True)


def reference_logits(model: LeanLlama, peft: PeftModel) -> torch.Tensor:
    """transformers + peft along each path; like training, without gradient through the root."""
    decoder, out = peft.base_model.model.model, []
    for _, path in PATHS:
        with torch.no_grad():
            past = decoder(torch.tensor([ROOT]), use_cache=True).past_key_values
        hidden = decoder(torch.tensor([path]), past_key_values=past).last_hidden_state[0, -1]
        out.append(model.head @ hidden + model.head_bias)
    return torch.stack(out)


def test_logits_equal_peft_along_every_path(peft_model: tuple[LeanLlama, PeftModel]) -> None:
    model, peft = peft_model
    batch = make_batch(EXAMPLES, overhead=4)
    found = by_owner(model(batch.pack, model.root(ROOT)), batch.owners)
    torch.testing.assert_close(found, reference_logits(model, peft), atol=2e-4, rtol=2e-4)


def test_gradients_equal_peft(peft_model: tuple[LeanLlama, PeftModel]) -> None:
    model, peft = peft_model
    batch = make_batch(EXAMPLES, overhead=4)
    weights = torch.linspace(-1, 1, len(PATHS) * 6).view(-1, 6)
    (by_owner(model(batch.pack, model.root(ROOT)), batch.owners) * weights).sum().backward()
    (reference_logits(model, peft) * weights).sum().backward()
    theirs = {n: p.grad for n, p in peft.named_parameters() if p.grad is not None}
    for projection in PROJECTIONS:
        module = "mlp" if projection in ("gate_proj", "up_proj", "down_proj") else "self_attn"
        for letter, stack in (("A", model.lora_a), ("B", model.lora_b)):
            for layer in range(model.layers):
                where = f"base_model.model.model.layers.{layer}.{module}.{projection}"
                name = f"{where}.lora_{letter}.default.weight"
                torch.testing.assert_close(stack[projection].grad[layer], theirs[name], atol=2e-3, rtol=2e-3)


def test_an_example_does_not_depend_on_its_batch() -> None:
    model = lean(tiny_llama())
    root = model.root(ROOT)
    together = make_batch(EXAMPLES, overhead=10_000)  # one group: everything padded to the longest
    assert len(together.pack.groups) == 1
    alone = torch.cat([model(make_batch([e]).pack, root) for e in EXAMPLES])
    torch.testing.assert_close(
        by_owner(model(together.pack, root), together.owners), alone, atol=1e-5, rtol=1e-5
    )


def test_adapter_folder_round_trip(tmp_path: Path) -> None:
    base = tiny_llama()
    model = lean(base)
    save_adapter(
        model, tmp_path / "a", "tiny", {"prompt": {"temperature": 1.0, "bias": 0.0}}, {"n": 1}, "card"
    )
    save_adapter(model, tmp_path / "a", "tiny", {}, {"n": 2}, "card")  # replaces
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    other = LeanLlama(base, rows=6, rank=4, alpha=8.0, dtype=torch.float32, compiled=False, seed=9)
    assert load_adapter(other, tmp_path / "a")["provenance"] == {"n": 2}
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
