"""Exported folders beside the bf16 parent, as somebody would run it; and what must not pass for agreement."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_export_targets import Tiny
from torch.nn import functional

from aegis_edge.bench import exports, prompts, tensorrt
from aegis_edge.bench.fidelity import Fidelity
from aegis_edge.decision import Rating
from aegis_edge.errors import ScorerError
from aegis_edge.exported import HEAD_FILE, read_head

COUNT = 12
# Relative margin error on a model of 128 channels and random weights.
MOST = {"bf16": 0.03, "w8a8": 0.15, "fp8": 0.3, "q8_0": 0.25}
EXPORTS = [
    ("hf", "bf16"),
    ("tensorrt-edge", "bf16"),
    ("compressed-tensors", "w8a8"),
    ("tensorrt-llm", "bf16"),
    ("tensorrt-llm", "fp8"),
    ("tensorrt-llm-legacy", "bf16"),
    ("tensorrt-llm-legacy", "fp8"),
]


@pytest.fixture(
    scope="module", params=[("llama", True), ("qwen2", False)], ids=["llama-tied", "qwen2-untied"]
)
def tiny(request, tmp_path_factory, tiny_tokenizer, tiny_policy) -> Tiny:
    return Tiny(tmp_path_factory.mktemp(request.param[0]), tiny_tokenizer, tiny_policy, *request.param)


def compared(tiny: Tiny, *folders: Path) -> tuple[bool, dict[str, Fidelity]]:
    found: dict[str, Fidelity] = {}

    def show(folder: Path, name: str, moved: Fidelity) -> None:
        found[folder.name] = moved

    return exports.compare(folders, *tiny.parts, COUNT, show), found


def test_every_target_gives_nearly_the_parent_s_margins(tiny) -> None:
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    folders = [tiny.export(target, scheme) for target, scheme in EXPORTS]
    agrees, found = compared(tiny, *folders)
    assert agrees == all(one.flips <= exports.LIMIT for one in found.values())
    for target, scheme in EXPORTS:
        one = found[f"{target}-{scheme}"]
        assert one.verdicts == COUNT and 0 < one.relative_error < MOST[scheme], (target, scheme, one)
    for scheme in ("bf16", "fp8"):  # two forms of the same numbers
        old, new = (found[f"tensorrt-llm{kind}-{scheme}"] for kind in ("-legacy", ""))
        assert old.margin_error == pytest.approx(new.margin_error, rel=1e-3)
    assert found["tensorrt-llm-fp8"].relative_error > found["tensorrt-llm-bf16"].relative_error


@pytest.mark.parametrize("scheme", ["bf16", "q8_0"])
def test_a_gguf_in_llama_cpp(tiny, scheme) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: it compiles for minutes")
    assert compared(tiny, tiny.export("gguf", scheme))[1][f"gguf-{scheme}"].relative_error < MOST[scheme]


def ratings(folder: Path) -> list[Rating]:
    root = read_head(folder)["plan"]["root_ids"]
    return exports.ratings(folder, exports.reader(folder, root)[1], prompts.sample(COUNT))


def test_fp8_rounds_inputs_and_not_weights_alone(tiny, monkeypatch) -> None:
    folder = tiny.export("tensorrt-llm", "fp8")
    right = np.array([rating.margin for rating in ratings(folder)])
    monkeypatch.setattr(
        tensorrt.Fp8,
        "__call__",
        lambda self, x, _: functional.linear(x, self.weight.float() * self.scale, self.bias),
    )
    assert np.abs(np.array([rating.margin for rating in ratings(folder)]) - right).mean() > 1e-3


def test_a_folder_that_disagrees_ends_the_command_with_1(tiny, tmp_path, capsys) -> None:
    """The two rows of the verdict on a prompt exchanged: every verdict turns."""
    folder = Path(shutil.copytree(tiny.export("hf", "bf16"), tmp_path / "spoiled"))
    head = read_head(folder)
    safe, unsafe = (head["head"]["rows"].index(row) for row in head["plan"]["questions"]["prompt"])
    for part in ("tokens", "bias"):
        values = head["head"][part]
        values[safe], values[unsafe] = values[unsafe], values[safe]
    (folder / HEAD_FILE).write_text(json.dumps(head))
    options = ["--base", tiny.parts[0], "--adapter", tiny.parts[1], "--prompts", str(COUNT)]
    assert exports.main([str(folder), *options]) == 1
    assert capsys.readouterr().out.splitlines()[2].startswith("| spoiled | transformers, bf16 | 12 | ")


def test_another_parent_is_refused(tiny, tmp_path, capsys) -> None:
    options = ["--base", tiny.parts[0], "--adapter", "none", "--prompts", "2"]
    assert exports.main([str(tiny.export("hf", "bf16")), *options]) == 3
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("error: this adapter is not the one the guard was made from")
    assert said[1].startswith("hint: pass --base and --adapter")


def test_what_is_no_checkpoint_of_the_format_is_refused(tiny, tmp_path) -> None:
    with pytest.raises(ScorerError, match="no checkpoint in it"):
        exports.reader(tmp_path, [1])
    folder = Path(shutil.copytree(tiny.export("tensorrt-llm", "fp8"), tmp_path / "g"))
    about = json.loads((folder / "hf_quant_config.json").read_text())
    for algorithm, message in ((None, "scales for the quantisation None"), ("NVFP4", "'NVFP4' is not read")):
        about["quantization"]["quant_algo"] = algorithm
        (folder / "hf_quant_config.json").write_text(json.dumps(about))
        with pytest.raises(ScorerError, match=message):
            tensorrt.model_of(folder)
    folder = Path(shutil.copytree(tiny.export("tensorrt-llm-legacy", "bf16"), tmp_path / "old"))
    tensors = load_file(folder / "rank0.safetensors")
    tensors.pop("transformer.layers.1.mlp.gate.weight")
    save_file(tensors, folder / "rank0.safetensors")
    with pytest.raises(ScorerError, match="its tensors are not those of its configuration"):
        tensorrt.model_of(folder)


def test_a_path_without_the_policy_is_refused(tiny) -> None:
    folder = tiny.export("hf", "bf16")
    root = read_head(folder)["plan"]["root_ids"]
    _, ask = exports.reader(folder, root)
    with pytest.raises(ScorerError, match="does not begin with the exported policy"):
        ask([[root[0] + 1, *root[1:], 5]], [0])
    assert torch.tensor(ask([[*root, 5]], [0, 1])).shape == (1, 2)
