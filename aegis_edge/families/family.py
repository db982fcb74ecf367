"""What a guard family is to the rest of the package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from aegis_edge.families.plan import Plan
from aegis_edge.policy import Policy


class Vocabulary(Protocol):
    """The part of a tokenizer that a family needs; `encoding.ContentEncoder` is one."""

    def ids(self, text: str) -> tuple[int, ...]:
        """Ids of plain text; never a control id, whatever the text says."""
        ...

    def control_id(self, token: str) -> int:
        """Id of a control token such as "<|im_end|>". Raises AegisError where there is none of that name."""
        ...


@dataclass(frozen=True)
class Family:
    """A guard family.

    rows     names of the label rows its adapters train, in the head's order
    words    row -> the text whose first token stands for it in the LM head, where an adapter trained no rows
    compile  (vocabulary, policy) -> Plan, whose rows are `rows`
    """

    name: str
    rows: tuple[str, ...]
    words: Mapping[str, str]
    compile: Callable[[Vocabulary, Policy], Plan]

    def token_ids(self, vocabulary: Vocabulary) -> tuple[int, ...]:
        """The LM head's row for each label row, in the order of `rows`."""
        return tuple(vocabulary.ids(self.words[row])[0] for row in self.rows)
