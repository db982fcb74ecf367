"""The model that a guard was quantised from, as a folder that every engine's converter reads."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aegis_edge.artifact import Artifact
from aegis_edge.bench.contender import Source
from aegis_edge.errors import ScorerError
from aegis_edge.families import family_of
from aegis_edge.policy import Policy

if TYPE_CHECKING:
    from aegis_edge.scoring.reference import ReferenceScorer


def parent_folder(artifact: Artifact, base: str | None, adapter: str | None, work: Path) -> Path:
    """A folder with the merged parent in fp32 (Hugging Face format) and its label rows (head.npz); made on
    the first call.

    base, adapter  as `aegis-edge export` takes them; None: what the guard says of itself
    Raises ExportError where they can not be had and ScorerError where they are not what the guard was made
    from.
    """
    from aegis_edge.export.base import DEFAULT_BASE
    from aegis_edge.export.merge import NO_ADAPTER, load_parent

    provenance = artifact.manifest["provenance"]
    made_from = {key: provenance.get(key) for key in ("base", "adapter")}
    if base is None:
        if made_from["base"].get("kind") != "pypi":
            raise ScorerError(
                f"the guard was made from {made_from['base'].get('name')!r}, which has to be named",
                hint="pass --base (and --adapter) as you did to `aegis-edge export`",
            )
        base = DEFAULT_BASE
    if adapter is None and made_from["adapter"] is None:
        adapter = NO_ADAPTER
    # With the head: which rows of the LM head those are depends on family and policy.
    identity = json.dumps([made_from, base, adapter, artifact.manifest["head"]], sort_keys=True)
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    folder = work / f"parent-{key}"
    if (folder / "head.npz").is_file():
        return folder
    section, policy = artifact.manifest["family"], Policy.from_dict(artifact.manifest["policy"])
    parent = load_parent(base, adapter, family_of(section), policy)
    for part in ("base", "adapter"):
        check_same(part, made_from[part], parent.provenance[part])
    folder.mkdir(parents=True, exist_ok=True)
    save(parent.model.base_model, folder)
    (folder / "tokenizer.json").write_text(parent.tokenizer, encoding="utf-8")
    # Last: its presence says that the folder is whole.
    np.savez(folder / "head.npz", weight=parent.head.weight.numpy(), bias=parent.head.bias.numpy())
    return folder


def save(decoder: Any, folder: Path) -> None:
    """`save_pretrained` refuses a model that was read from GGUF, however its weights are held now."""
    from safetensors.torch import save_file

    config = decoder.config.to_dict()
    config.pop("quantization_config", None)
    config |= {"architectures": [type(decoder).__name__], "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    tensors = {name: tensor.contiguous() for name, tensor in decoder.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def reference(source: Source) -> ReferenceScorer:
    """The definition of right: the parent in fp32, the policy's part computed once."""
    import torch
    from transformers import AutoModel
    from transformers.utils import logging

    from aegis_edge.scoring.reference import ReferenceScorer

    logging.disable_progress_bar()
    model = AutoModel.from_pretrained(source.parent, dtype=torch.float32).eval()
    weight, bias = (torch.from_numpy(part) for part in source.head())
    root, cap = source.root.tolist(), source.softcap
    return ReferenceScorer(model, weight, bias, root, cache_root=True, softcap=cap)


def check_same(part: str, guard: dict[str, Any] | None, found: dict[str, Any] | None) -> None:
    """A guard beside another parent would look unfaithful, or a changed one faithful."""
    theirs, ours = (guard or {}).get("sha256"), (found or {}).get("sha256")
    if theirs != ours:
        raise ScorerError(
            f"this {part} is not the one the guard was made from (SHA-256 {ours}, the guard says {theirs})",
            hint="pass --base and --adapter as you did to `aegis-edge export`",
        )
