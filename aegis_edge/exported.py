"""A guard over another engine that runs a checkpoint exported for it: `aegis-edge export --target hf` and
others.

Templates, categories, calibration and thresholds are this package's; the engine gives logits and nothing
else.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from aegis_edge.decision import read_calibration
from aegis_edge.encoding import ContentEncoder
from aegis_edge.errors import AegisError, ArtifactError
from aegis_edge.families import Family, family_of
from aegis_edge.families.plan import Plan
from aegis_edge.guard import Guard
from aegis_edge.policy import Policy, Thresholds
from aegis_edge.scoring.tokens import Ask, TokenScorer

HEAD_FILE = "aegis_head.json"
HEAD_FORMAT = 1


def exported_guard(
    folder: str | os.PathLike[str], ask: Ask, *, thresholds: Thresholds | None = None
) -> Guard:
    """The guard of an exported folder, whose engine answers `ask` (see scoring.tokens).

    The engine's context needs room for one more token than the guard's. thresholds: None, the exported ones.
    Raises ArtifactError where the folder's aegis_head.json is missing, of another version or malformed.
    """
    file, found = Path(folder) / HEAD_FILE, read_head(folder)
    try:
        plan = Plan.from_json(found["plan"])
        head, model = found["head"], found["model"]
        rows, tokens, bias = list(head["rows"]), list(head["tokens"]), list(head["bias"])
        policy, calibration = Policy.from_dict(found["policy"]), read_calibration(found["calibration"])
        context, vocab = int(model["context"]), int(model["vocab"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{file}: {error!r} is missing or malformed") from error
    if rows != list(plan.rows) or not len(rows) == len(tokens) == len(bias):
        raise ArtifactError(f"{file}: the family's rows are not the head's")
    answers = family_in(found).answers
    policy = policy if thresholds is None else replace(policy, thresholds=thresholds)
    scorer = TokenScorer(ask, tokens, bias, np.array(plan.root, np.int32), context - 1, vocab)
    encoder = ContentEncoder.from_file(Path(folder) / "tokenizer.json")
    return Guard(scorer, encoder, plan, policy, calibration, answers=answers)


def read_head(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """A folder's aegis_head.json. Raises ArtifactError where it is missing, no JSON or of another version."""
    file = Path(folder) / HEAD_FILE
    try:
        found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{file}: can not be read: {error}", hint="name a folder that `aegis-edge export --target` wrote"
        ) from error
    if found.get("format") != HEAD_FORMAT:
        raise ArtifactError(f"{file}: format {found.get('format')!r}, this version reads {HEAD_FORMAT}")
    return found


def family_in(head: dict[str, Any]) -> Family:
    """The family of an aegis_head.json. One of words has its text there: of a name alone, as older exports
    have it, nobody can tell the output, and ArtifactError is raised."""
    section = {"name": head.get("family")}
    if head.get("spoken") is not None:
        section["spoken"] = head["spoken"]
    try:
        return family_of(section)
    except AegisError as error:
        raise ArtifactError(
            f"{HEAD_FILE}: {error}", hint="export the guard again with this version"
        ) from error
