"""An artefact under other label rows: what a policy of one's own reads where the guard lists categories.

The list's names part at tokens that depend on the names. Rows that the artefact has are kept, bias and all;
those of other tokens are taken from the whole LM head, which an artefact whose labels are tokens holds.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from aegis_edge.artifact import Artifact
from aegis_edge.errors import ArtifactError


class Relabelled(Artifact):
    """An opened artefact whose head has the rows `labels`: name -> row of the LM head. Raises ArtifactError
    where it holds no LM head."""

    def __init__(self, artifact: Artifact, labels: Mapping[str, int]) -> None:
        super().__init__(artifact.path, artifact.manifest, artifact._model, artifact._policy)
        self._head: dict[str, np.ndarray] = {}
        head = artifact.manifest["head"]
        known = {row: i for i, row in enumerate(head["rows"])}
        if any(not 0 <= token < artifact.manifest["model"]["vocab"] for token in labels.values()):
            raise ArtifactError("a label's token lies outside the vocabulary")
        weight, bias = artifact.tensor("head.weight"), artifact.tensor("head.bias")
        vocabulary = self.vocabulary() if labels.keys() - known.keys() else None
        rows = []
        for row, token in labels.items():
            if row in known:
                rows.append(weight[known[row]])
            elif vocabulary is not None:
                rows.append(vocabulary.row(token))
        self._head = {
            "head.weight": np.ascontiguousarray(np.stack(rows), np.float32),
            "head.bias": np.array([bias[known[row]] if row in known else 0.0 for row in labels], np.float32),
        }
        new = {**head, "rows": list(labels), "token_ids": list(labels.values())}
        self.manifest = {**artifact.manifest, "head": new}

    def tensor(self, name: str) -> np.ndarray:
        """As the artefact's, but for the head."""
        return self._head[name].copy() if name in self._head else super().tensor(name)
