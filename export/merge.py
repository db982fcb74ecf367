"""The parent: a base model with its LoRA adapter merged in, and the label rows that read verdicts from it.

The parent in fp32 is what the quantised guard is measured against. Merging is verified: the merged model must
give the logits of the base with the adapter beside it.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import aegis_edge
from aegis_edge.encoding import ContentEncoder
from aegis_edge.errors import ExportError
from aegis_edge.export.architecture import check_architecture, features_of, scales_of
from aegis_edge.export.base import DEFAULT_BASE, Base, file_sha256, keep_layers, resolve_base
from aegis_edge.families import DEFAULT_FAMILY, Family, get_family
from aegis_edge.policy import Policy

# By __file__: an editable install gives the package several folders, the first holding the compiled module.
PACKAGED_ADAPTER = Path(str(aegis_edge.__file__)).parent / "adapters" / "aegis-edge-135m"
NO_ADAPTER = "none"
# bf16 keeps 8 significant bits: merged weights may differ from base + adapter by that much of the largest
# logit.
BF16_ROUNDING = 2.0**-8
_SAMPLE = (
    "The quick brown fox jumps over the lazy dog.",
    "def mean(values):\n    return sum(values) / len(values)",
    "Wie wird das Wetter morgen in Hamburg?",
)


@dataclass(frozen=True)
class Head:
    """Label rows over the last hidden state. kind "trained" or "tokens"; weight fp32 [R, H], bias fp32 [R];
    token_ids of "tokens"; softcap: of the logits, as the LM head they come from has it, 0: none."""

    kind: str
    rows: tuple[str, ...]
    weight: Tensor
    bias: Tensor
    token_ids: tuple[int, ...] | None = None
    softcap: float = 0.0


@dataclass(frozen=True)
class Parent:
    """model: fp32 transformers decoder with the adapter merged; tokenizer: the text of tokenizer.json;
    calibration: per slot kind temperature and bias; provenance: base, adapter and their hashes."""

    model: Any
    tokenizer: str
    head: Head
    calibration: dict[str, dict[str, float]]
    provenance: dict[str, Any]


def load_parent(
    base: str = DEFAULT_BASE,
    adapter: str | None = None,
    family: str | Family = DEFAULT_FAMILY,
    policy: Policy | None = None,
) -> Parent:
    """Load `base`, merge `adapter` into it and verify the merge. adapter None: the packaged one for the
    default base; for others none, which the default family refuses: its label rows are trained. "none": the
    base alone, its label rows taken from the LM head. policy: what
    the rows of category lists depend on, None: the default. Raises ExportError."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    labels = get_family(family) if isinstance(family, str) else family
    resolved = resolve_base(base)
    folder = _adapter_folder(base, adapter, labels.name)
    try:
        config = AutoConfig.from_pretrained(resolved.folder)
        check_architecture(config)
        # Of transformers' attentions only "eager" caps its scores; the others leave the cap out without a
        # word.
        attention = {"attn_implementation": "eager"} if features_of(config).attention_softcap else {}
        model = AutoModelForCausalLM.from_pretrained(resolved.folder, dtype=torch.float32, **attention).eval()
    except (OSError, ValueError) as error:
        raise ExportError(f"{base}: transformers can not load this base model: {error}") from error
    tokenizer = _tokenizer_json(resolved)
    provenance: dict[str, Any] = {"base": {"model": resolved.name, **resolved.source}, "adapter": None}
    if folder is None:
        return Parent(
            model, tokenizer, _token_head(model, tokenizer, labels, policy), _calibration({}), provenance
        )
    card = _adapter_card(folder, labels)
    if "layers" in card:  # trained on so many of the base's
        keep_layers(model, card["layers"])
    model = merge_adapter(model, folder, tokenizer)
    provenance["adapter"] = {
        "name": card.get("name", folder.name),
        "sha256": file_sha256(folder / "adapter_model.safetensors"),
        "provenance": card.get("provenance", {}),
    }
    trained = _trained_head(folder, model.config.hidden_size, labels)
    head = trained or _token_head(model, tokenizer, labels, policy)
    return Parent(model, tokenizer, head, _calibration(card), provenance)


def find_adapter(path: Path) -> Path:
    """The folder that holds adapter_config.json: `path` itself or the one folder inside it that does."""
    if (path / "adapter_config.json").is_file():
        return path
    nested = sorted(config.parent for config in path.glob("*/adapter_config.json"))
    if len(nested) != 1:
        raise ExportError(
            f"{path}: {len(nested) or 'no'} folders with an adapter_config.json",
            hint="name a PEFT adapter folder, its files at the top or in one folder inside",
        )
    return nested[0]


def _adapter_folder(base: str, adapter: str | None, family: str) -> Path | None:
    alone = adapter is None and base != DEFAULT_BASE
    if alone and family == DEFAULT_FAMILY:  # it would load, and let everything pass
        raise ExportError(
            f"{base} has no adapter: what the family {family} reads verdicts from is trained",
            hint=f"--adapter takes a PEFT adapter folder, or {NO_ADAPTER!r} "
            "where the base was trained as this guard",
        )
    if adapter == NO_ADAPTER or alone:
        return None
    path = PACKAGED_ADAPTER if adapter is None else Path(adapter).expanduser()
    if not path.is_dir():
        raise ExportError(
            f"adapter folder {path} not found",
            hint=f"--adapter takes a PEFT adapter folder, or {NO_ADAPTER!r} for the base alone",
        )
    return find_adapter(path)


def merge_adapter(model: Any, folder: Path, tokenizer: str) -> Any:
    """Merge the PEFT adapter in `folder` into `model` (in place) and return it; raises ExportError where it
    does not fit or where the merged logits are not the adapter's."""
    from peft import PeftModel
    from peft.utils import load_peft_weights

    ids = _sample_ids(tokenizer)
    try:
        with warnings.catch_warnings():
            # A missing key leaves that matrix untouched and is only warned of: a guard without its training.
            warnings.filterwarnings("error", message=".*missing adapter keys.*")
            adapted = PeftModel.from_pretrained(model, folder).eval()
        # Matrices of layers that the model has not (its card or its base names fewer) are left out silently.
        keys = load_peft_weights(str(folder), "cpu")
        trained = {key.rpartition(".lora_")[0] for key in keys if ".lora_" in key}
        if absent := trained - {name for name, _ in adapted.named_modules()}:
            raise ValueError(
                f"{len(absent)} of its {len(trained)} matrices are of no layer here: {min(absent)}"
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, UserWarning) as error:
        raise ExportError(
            f"adapter {folder.name} does not fit this base model: {error}",
            hint="take the base that it was trained on: base_model_name_or_path in adapter_config.json",
        ) from error
    expected = [_logits(adapted, sample) for sample in ids]
    merged = adapted.merge_and_unload(safe_merge=True)
    verify_merge(expected, [_logits(merged, sample) for sample in ids])
    return merged


def verify_merge(adapter: list[Tensor], merged: list[Tensor]) -> float:
    """Largest difference of two lists of logits, as a share of the largest logit; ExportError where it is
    beyond bf16 rounding."""
    worst = max(((a - m).abs().max() / a.abs().max()).item() for a, m in zip(adapter, merged, strict=True))
    if not worst <= BF16_ROUNDING:
        raise ExportError(f"merging changed the model: logits differ by {worst:.2%} of the largest")
    return worst


@torch.no_grad()
def _logits(model: Any, ids: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids[None]).logits[0]
    return logits


def _sample_ids(tokenizer: str) -> list[Tensor]:
    encoder = ContentEncoder.from_json(tokenizer)
    return [torch.from_numpy(encoder.encode(text)).long() for text in _SAMPLE]


def _tokenizer_json(base: Base) -> str:
    """The text of tokenizer.json; converted by transformers where the folder has only an older form."""
    file = base.folder / "tokenizer.json"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    from transformers import AutoTokenizer

    try:
        return str(AutoTokenizer.from_pretrained(base.folder).backend_tokenizer.to_str())
    except (OSError, ValueError, AttributeError) as error:
        raise ExportError(
            f"{base.name}: no usable tokenizer: {error}", hint="the folder needs a tokenizer.json"
        ) from error


def _token_head(model: Any, tokenizer: str, family: Family, policy: Policy | None) -> Head:
    labels = family.token_ids(ContentEncoder.from_json(tokenizer), policy)
    ids = tuple(labels.values())
    weight = model.get_output_embeddings().weight.detach()[list(ids)].float() / scales_of(model.config).logits
    softcap = features_of(model.config).logit_softcap
    return Head("tokens", tuple(labels), weight, torch.zeros(len(ids)), ids, softcap)


def _beside(folder: Path, name: str) -> Path | None:
    """A file of the project's own, in the adapter's folder or one above it (the nested layout)."""
    return next((file for file in (folder / name, folder.parent / name) if file.is_file()), None)


def _trained_head(folder: Path, hidden: int, family: Family) -> Head | None:
    file = _beside(folder, "verdict_head.safetensors")
    if file is None:
        return None
    from safetensors.torch import load_file

    tensors = load_file(file)
    weight, bias = tensors.get("weight"), tensors.get("bias")
    rows = len(family.rows)
    if weight is None or bias is None or weight.shape != (rows, hidden) or bias.shape != (rows,):
        raise ExportError(f"{file.name}: expected weight [{rows}, {hidden}] and bias [{rows}]")
    return Head("trained", family.rows, weight.float(), bias.float())


def _adapter_card(folder: Path, family: Family) -> dict[str, Any]:
    file = _beside(folder, "aegis_adapter.json")
    if file is None:
        return {}
    card: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if card.get("format") != 1:
        raise ExportError(f"{file.name}: format {card.get('format')!r}, this version reads 1")
    if card.get("family", family.name) != family.name:
        raise ExportError(
            f"{file.name}: trained for the family {card['family']!r}", hint=f"--family {card['family']}"
        )
    if type(card.get("layers", 1)) is not int:
        raise ExportError(f"{file.name}: layers {card['layers']!r}, expected a number of them")
    if tuple(card.get("rows", family.rows)) != family.rows:
        raise ExportError(f"{file.name}: label rows {card['rows']}, expected {list(family.rows)}")
    return card


def _calibration(card: dict[str, Any]) -> dict[str, dict[str, float]]:
    stored = card.get("calibration", {})
    kinds = ["prompt", "response", "category", *(["custom_category"] if "custom_category" in stored else [])]
    return {kind: {"temperature": 1.0, "bias": 0.0, **stored.get(kind, {})} for kind in kinds}
