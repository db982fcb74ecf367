"""What a guard family is to the rest of the package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from aegis_edge.families.answers import NEMOGUARD, Answers
from aegis_edge.families.plan import Plan
from aegis_edge.policy import Policy

if TYPE_CHECKING:
    from aegis_edge.families.spoken import Spoken


class Vocabulary(Protocol):
    """The part of a tokenizer that a family needs; `encoding.ContentEncoder` is one."""

    control_tokens: frozenset[str]

    def ids(self, text: str) -> tuple[int, ...]:
        """Ids of plain text; never a control id, whatever the text says."""
        ...

    led: Callable[[str, bool], str]  # (text, whether it stands first of all): see leads.py

    def control_id(self, token: str) -> int:
        """Id of a control token such as "<|im_end|>". Raises AegisError where there is none of that name."""
        ...


@dataclass(frozen=True)
class Family:
    """A guard family.

    rows     names of the label rows its adapters train, in the head's order
    words    row -> the text whose first token stands for it in the LM head, where an adapter trained no rows
    compile  (vocabulary, policy) -> Plan, whose rows are `rows`
    labels   in place of `words`: (vocabulary, policy) -> the LM head's row for each label row of the plan
    answers  the family's native output
    spoken   what an artefact holds besides the plan; None where the family's code is all
    """

    name: str
    rows: tuple[str, ...]
    words: Mapping[str, str]
    compile: Callable[[Vocabulary, Policy], Plan]
    labels: Callable[[Vocabulary, Policy], Mapping[str, int]] | None = None
    answers: Answers = NEMOGUARD
    spoken: Spoken | None = None

    def token_ids(self, vocabulary: Vocabulary, policy: Policy | None = None) -> dict[str, int]:
        """Label row -> the LM head's row that stands for it, in the plan's order. policy: None, the
        default."""
        if self.labels is not None:
            return dict(self.labels(vocabulary, policy or Policy.default()))
        return {row: vocabulary.ids(self.words[row])[0] for row in self.rows}
