"""An artefact and the policy it is loaded with: the plan that is used, and what the scorer holds for it."""

from __future__ import annotations

from dataclasses import dataclass

from aegis_edge.artifact import Artifact
from aegis_edge.encoding import ContentEncoder
from aegis_edge.errors import ArtifactError, PolicyError
from aegis_edge.families import family_of
from aegis_edge.families.answers import NEMOGUARD, Answers
from aegis_edge.families.plan import Plan
from aegis_edge.policy import Policy


@dataclass(frozen=True, eq=False)
class Fitted:
    """artifact: with the label rows of the plan; is_own: whether the policy's keys and values are the
    artefact's own; answers: the family's native output."""

    artifact: Artifact
    encoder: ContentEncoder
    plan: Plan
    policy: Policy
    is_own: bool
    answers: Answers


def fit(artifact: Artifact, policy: Policy | None = None) -> Fitted:
    """`policy` None: the artefact's own. Raises ArtifactError, FamilyError, PolicyError."""
    manifest = artifact.manifest
    section = manifest["family"]
    plan = Plan.from_json(section["plan"])
    if list(plan.rows) != manifest["head"]["rows"]:
        raise ArtifactError("aegis.json: the family's rows are not the head's")
    try:
        own = Policy.from_dict(manifest["policy"])
    except PolicyError as error:
        raise ArtifactError(f"aegis.json: policy: {error}") from error
    encoder = ContentEncoder.from_json(artifact.tokenizer_json())
    spoken = family_of(section).spoken if "spoken" in section else None
    answers = NEMOGUARD if spoken is None else spoken.answers
    used = policy or own
    if spoken is None:
        is_own = [c.text for c in used.categories] == [c.text for c in own.categories]
    else:
        is_own = spoken.same(used, own)
    if is_own:
        return Fitted(artifact, encoder, plan, used, True, answers)
    family = family_of(section)
    plan = family.compile(encoder, used)
    if list(plan.rows) != manifest["head"]["rows"]:
        from aegis_edge.relabel import Relabelled

        artifact = Relabelled(artifact, family.token_ids(encoder, used))
    return Fitted(artifact, encoder, plan, used, False, answers)
