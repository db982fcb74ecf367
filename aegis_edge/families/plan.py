"""A family's prompt, compiled to ids and labels: all that an artefact holds of its family.

A conversation becomes nodes under the root (the policy). Each node is fixed ids and content in turn, hangs
from an earlier node, and may be read: the label logits at its last token answer a question (is the prompt
unsafe? the response?). A category is a leaf under the conversation's last node.

Where a guard answers on the prompt first and on the response after it, the second answer depends on the
first: the response is then read twice, in sibling nodes that go on from "safe" and from "unsafe", and the two
are weighed by the answer on the prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aegis_edge.errors import ArtifactError

PROMPT, RESPONSE, CATEGORY = "prompt", "response", "category"
CONTENT = (PROMPT, RESPONSE)
QUESTIONS = (PROMPT, RESPONSE, CATEGORY)
ROOT = -1

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """`parts` in order: fixed ids, or the name of a piece of content. `parent` is an index into the same list
    of nodes, or ROOT. `reads` is the question that the label logits at the last token answer, or None."""

    parent: int
    parts: tuple[Ids | str, ...]
    reads: str | None = None


@dataclass(frozen=True)
class Plan:
    """What a family and a policy come to for one tokenizer.

    root       ids of the policy, the prefix of every conversation
    rows       names of the label rows, in the order of the head's rows
    questions  question -> (row that says safe or no, row that says unsafe or yes)
    prompt     nodes of a conversation that is a prompt alone
    exchange   nodes of a conversation that has a response; none where the family judges prompts alone
    leaves     ids of each category, in the policy's order; read at the last one. None where the family does
               not ask about categories
    seams      content -> text of the template right before and after it, where tokens may span the two: it is
               encoded together with the content
    """

    root: Ids
    rows: tuple[str, ...]
    questions: Mapping[str, tuple[str, str]]
    prompt: tuple[Node, ...]
    exchange: tuple[Node, ...]
    leaves: tuple[Ids, ...]
    seams: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ArtifactError where the parts do not fit together; encoding relies on all of this."""
        _require(len(self.root) > 0, "root is empty")
        _require(0 < len(set(self.rows)) == len(self.rows), "row names are missing or repeated")
        for question, pair in self.questions.items():
            _require(question in QUESTIONS, f"unknown question {question!r}")
            _require(
                pair[0] != pair[1] and set(pair) <= set(self.rows),
                f"rows of question {question!r} are not rows",
            )
        _require(all(self.leaves), "an empty leaf")
        _require(not self.leaves or CATEGORY in self.questions, "leaves that answer no question")
        self._check_nodes(self.prompt, {PROMPT}, "prompt")
        if self.exchange or RESPONSE in self.questions:
            self._check_nodes(self.exchange, {PROMPT, RESPONSE}, "exchange")
        _require(set(self.seams) <= set(CONTENT), "a seam of unknown content")
        parts = [part for node in (*self.prompt, *self.exchange) for part in node.parts]
        for ids in (self.root, *self.leaves, *(part for part in parts if not isinstance(part, str))):
            _require(all(0 <= i < 2**31 for i in ids), "an id outside int32")

    def _check_nodes(self, nodes: tuple[Node, ...], content: set[str], name: str) -> None:
        for index, node in enumerate(nodes):
            _require(ROOT <= node.parent < index, f"{name}[{index}] hangs from no earlier node")
            _require(len(node.parts) > 0, f"{name}[{index}] has no parts")
            _require(
                node.reads is None or node.reads in self.questions,
                f"{name}[{index}] reads an unknown question",
            )
            # Content may be empty, and an empty node has no last token to read.
            _require(
                node.reads is None or not isinstance(node.parts[-1], str),
                f"{name}[{index}] is read at content",
            )
            # No text is twice on one path: the context's limit counts each once.
            path = [part for above in _path(nodes, index) for part in above.parts if isinstance(part, str)]
            _require(len(set(path)) == len(path), f"{name}[{index}]: content is {path}, one of it twice")
        used = sorted({part for node in nodes for part in node.parts if isinstance(part, str)})
        _require(
            used == sorted(content), f"{name}: content is {used}, expected each of {sorted(content)} once"
        )
        reads = sorted(node.reads for node in nodes if node.reads is not None)
        _require(
            reads == sorted(content) or self._is_weighed(nodes),
            f"{name}: answers {reads}, expected each of {sorted(content)} once",
        )

    def _is_weighed(self, nodes: tuple[Node, ...]) -> bool:
        """Whether these end with the response read twice, under the node that reads the prompt."""
        reads = [node.reads for node in nodes if node.reads is not None]
        if reads != [PROMPT, RESPONSE, RESPONSE] or self.leaves:
            return False
        return all(node.parent >= 0 and nodes[node.parent].reads == PROMPT for node in nodes[-2:])

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; `from_json` gives an equal plan back."""
        seams = {name: list(pair) for name, pair in self.seams.items()}
        return {
            "root_ids": list(self.root),
            "rows": list(self.rows),
            "questions": {question: list(pair) for question, pair in self.questions.items()},
            "prompt": [_node_to_json(node) for node in self.prompt],
            "exchange": [_node_to_json(node) for node in self.exchange],
            "leaf_ids": [list(ids) for ids in self.leaves],
            **({"seams": seams} if seams else {}),
        }

    @classmethod
    def from_json(cls, data: Any) -> Plan:
        """Read `to_json`'s form. Raises ArtifactError on anything else."""
        keys = {"root_ids", "rows", "questions", "prompt", "exchange", "leaf_ids"}
        _keys(data, keys | ({"seams"} if isinstance(data, dict) and "seams" in data else set()), "plan")
        questions = data["questions"]
        _require(isinstance(questions, dict), "questions are no object")
        pairs = {question: _strings(pair, f"questions.{question}") for question, pair in questions.items()}
        _require(all(len(pair) == 2 for pair in pairs.values()), "a question has two rows")
        seams = data.get("seams", {})
        _require(isinstance(seams, dict), "seams are no object")
        joined = {name: _strings(pair, f"seams.{name}") for name, pair in seams.items()}
        _require(all(len(pair) == 2 for pair in joined.values()), "a seam has two texts")
        return cls(
            root=_ids(data["root_ids"], "root_ids"),
            rows=_strings(data["rows"], "rows"),
            questions={question: (pair[0], pair[1]) for question, pair in pairs.items()},
            prompt=tuple(_node_from_json(node, "prompt") for node in _list(data["prompt"], "prompt")),
            exchange=tuple(_node_from_json(node, "exchange") for node in _list(data["exchange"], "exchange")),
            leaves=tuple(_ids(ids, "leaf_ids") for ids in _list(data["leaf_ids"], "leaf_ids")),
            seams={name: (pair[0], pair[1]) for name, pair in joined.items()},
        )


def _path(nodes: tuple[Node, ...], index: int) -> list[Node]:
    """The node and those that it hangs from, itself first."""
    found = []
    while index != ROOT:
        found.append(nodes[index])
        index = nodes[index].parent
    return found


def _node_to_json(node: Node) -> dict[str, Any]:
    parts = [{"content": part} if isinstance(part, str) else {"ids": list(part)} for part in node.parts]
    return {"parent": node.parent, "parts": parts, "reads": node.reads}


def _node_from_json(data: Any, where: str) -> Node:
    _keys(data, {"parent", "parts", "reads"}, where)
    parent, reads = data["parent"], data["reads"]
    _require(type(parent) is int, f"{where}: a parent is no whole number")
    _require(reads is None or isinstance(reads, str), f"{where}: a question is no text")
    return Node(parent, tuple(_part_from_json(part, where) for part in _list(data["parts"], where)), reads)


def _part_from_json(data: Any, where: str) -> Ids | str:
    if isinstance(data, dict) and isinstance(data.get("content"), str):
        _keys(data, {"content"}, where)
        return str(data["content"])
    _keys(data, {"ids"}, where)
    return _ids(data["ids"], where)


def _keys(data: Any, expected: set[str], where: str) -> None:
    _require(
        isinstance(data, dict) and set(data) == expected, f"{where}: expected exactly {sorted(expected)}"
    )


def _list(value: Any, where: str) -> list[Any]:
    _require(isinstance(value, list), f"{where}: expected a list")
    return list(value)


def _ids(value: Any, where: str) -> Ids:
    ids = _list(value, where)
    _require(len(ids) > 0 and all(type(i) is int for i in ids), f"{where}: expected whole numbers")
    return tuple(ids)


def _strings(value: Any, where: str) -> tuple[str, ...]:
    items: Iterable[Any] = _list(value, where)
    _require(all(isinstance(item, str) for item in items), f"{where}: expected texts")
    return tuple(items)


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise ArtifactError(f"family plan: {what}")
