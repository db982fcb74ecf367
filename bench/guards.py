"""Guards to measure with: an artefact's text side over any scorer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from aegis_edge.artifact import Artifact
from aegis_edge.decision import Calibration, Decider, read_calibration
from aegis_edge.encoding import ContentEncoder
from aegis_edge.families.plan import Plan
from aegis_edge.guard import Guard
from aegis_edge.policy import Policy, Thresholds
from aegis_edge.scoring import IdArray, Scorer

# Thresholds that no probability reaches: categories are only looked for in what is unsafe, so every timed
# check is one pass.
NEVER = Thresholds(prompt=1 - 1e-15, response=1 - 1e-15)
# Reached by every probability: every check is two passes.
ALWAYS = Thresholds(prompt=1e-300, response=1e-300)


@dataclass(frozen=True)
class Text:
    """Everything of an artefact but its weights."""

    artifact: Artifact

    @cached_property
    def encoder(self) -> ContentEncoder:
        return ContentEncoder.from_json(self.artifact.tokenizer_json())

    @cached_property
    def plan(self) -> Plan:
        return Plan.from_json(self.artifact.manifest["family"]["plan"])

    @cached_property
    def policy(self) -> Policy:
        return Policy.from_dict(self.artifact.manifest["policy"])

    @cached_property
    def calibration(self) -> dict[str, Calibration]:
        return read_calibration(self.artifact.manifest["calibration"])

    @property
    def model(self) -> dict[str, Any]:
        """The manifest's model section."""
        found: dict[str, Any] = self.artifact.manifest["model"]
        return found

    def guard(
        self, scorer: Scorer, thresholds: Thresholds | None = None, root: IdArray | None = None
    ) -> Guard:
        """A guard over `scorer`; thresholds and root are the artefact's own where None."""
        policy = self.policy if thresholds is None else replace(self.policy, thresholds=thresholds)
        return Guard(scorer, self.encoder, self.plan, policy, self.calibration, root=root)

    def decider(self) -> Decider:
        """What turns logits into ratings."""
        return Decider(self.plan, self.policy, self.calibration)
