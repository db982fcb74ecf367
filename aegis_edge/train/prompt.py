"""The default family's prompt as ids, for training: what the runtime walks (families/aegis_edge.py), a text's
length aside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aegis_edge.encoding import ContentEncoder
from aegis_edge.families.aegis_edge import END, answer_ids, leaf_ids, root_ids


class PromptEncoder:
    """Text to ids; content can never become a control id because the tokenizer for content has none."""

    def __init__(self, base: str | Path) -> None:
        """`base`: a Hugging Face folder. Raises ArtifactError where its tokenizer does not fit the family."""
        self._content = ContentEncoder.from_file(Path(base) / "tokenizer.json")
        self.end = self._content.control_id(END)
        self._before_response = answer_ids(self._content)

    def root(self, categories: Sequence[str]) -> list[int]:
        return list(root_ids(self._content, categories))

    def clipped(self, text: str, limit: int) -> list[int]:
        """At most `limit` ids: three quarters from the start, one from the end, as either may hold the
        harm.
        """
        ids = list(self._content.ids(text) or self._content.ids(" "))
        if len(ids) <= limit:
            return ids
        head = limit * 3 // 4
        return ids[:head] + ids[-(limit - head) :]

    def response(self, ids: Sequence[int]) -> list[int]:
        return [*self._before_response, *ids]

    def leaf(self, category: str) -> list[int]:
        return list(leaf_ids(self._content, category))
