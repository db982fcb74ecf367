"""A family's prompt, compiled to ids and labels: all that an artefact holds of its family.

A conversation becomes nodes under the root (the policy). Each node is fixed ids and content in turn, hangs
from an earlier node, and may be read: the label logits at its last token answer a question (is the prompt
unsafe? the response?). A category is a leaf under the conversation's last node.

Where a guard answers on the prompt first and on the response after it, the second answer depends on the
first: the response is then read in sibling nodes, one for each word that the first answer may be, and these
are weighed by the answer on the prompt (`Node.given`). Where a guard is asked about one category at a time,
every question is read once a category, in the policy's order (`Plan.each`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aegis_edge.errors import ArtifactError
from aegis_edge.families.listing import Ids, Listing, Step

PROMPT, RESPONSE, CATEGORY, REFUSAL = "prompt", "response", "category", "refusal"
CONTENT = (PROMPT, RESPONSE)
QUESTIONS = (PROMPT, RESPONSE, CATEGORY, REFUSAL)
ROOT = -1

Given = tuple[tuple[str, int], ...]  # answers before another: (question, which of its words)


@dataclass(frozen=True)
class Node:
    """`parts` in order: fixed ids, or the name of a piece of content. `parent` is an index into the same list
    of nodes, or ROOT. `reads` is the question that the label logits at the last token answer, or None;
    `given` are the answers that stand before it in the output, each read in a node above."""

    parent: int
    parts: tuple[Ids | str, ...]
    reads: str | None = None
    given: Given = ()


@dataclass(frozen=True)
class Plan:
    """What a family and a policy come to for one tokenizer.

    root       ids of the policy, the prefix of every conversation
    rows       names of the label rows, in the order of the head's rows
    questions  question -> (row that says safe or no, row that says unsafe or yes), and perhaps a third: a row
               of a level between the two
    prompt     nodes of a conversation that is a prompt alone
    exchange   nodes of a conversation that has a response; none where the family judges prompts alone
    leaves     ids of each category, in the policy's order; read at the last one. None where the family does
               not ask about categories
    seams      content -> text of the template right before and after it, where tokens may span the two: it is
               encoded together with the content
    lists      the answers at the end of an output, as `list_key` writes them -> the category list behind it
    each       categories that every question is read about, one at a time; 0: it is about all of them
    """

    root: Ids
    rows: tuple[str, ...]
    questions: Mapping[str, tuple[str, ...]]
    prompt: tuple[Node, ...]
    exchange: tuple[Node, ...]
    leaves: tuple[Ids, ...]
    seams: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    lists: Mapping[str, Listing] = field(default_factory=dict)
    each: int = 0

    def __post_init__(self) -> None:
        """Raises ArtifactError where the parts do not fit together; encoding relies on all of this."""
        _require(len(self.root) > 0, "root is empty")
        _require(0 < len(set(self.rows)) == len(self.rows), "row names are missing or repeated")
        for question, pair in self.questions.items():
            _require(question in QUESTIONS, f"unknown question {question!r}")
            _require(
                len(pair) in (2, 3) and len(set(pair)) == len(pair) and set(pair) <= set(self.rows),
                f"rows of question {question!r} are not rows",
            )
        _require(all(self.leaves), "an empty leaf")
        _require(not self.leaves or CATEGORY in self.questions, "leaves that answer no question")
        self._check_nodes(self.prompt, {PROMPT}, "prompt")
        if self.exchange or RESPONSE in self.questions:
            self._check_nodes(self.exchange, {PROMPT, RESPONSE}, "exchange")
        _require(set(self.seams) <= set(CONTENT), "a seam of unknown content")
        _require(not (self.leaves and (self.lists or self.each)), "leaves beside a list")
        for key, listing in self.lists.items():
            self._check_list(key, listing)
        _require(all(0 <= i < 2**31 for ids in self.all_ids() for i in ids), "an id outside int32")

    def all_ids(self) -> Iterable[Ids]:
        """Every run of ids that the plan holds."""
        yield self.root
        yield from self.leaves
        for node in (*self.prompt, *self.exchange):
            yield from (part for part in node.parts if not isinstance(part, str))
        for listing in self.lists.values():
            yield from listing.leaves

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
        self._check_reads(nodes, content, name)

    def _check_reads(self, nodes: tuple[Node, ...], content: set[str], name: str) -> None:
        """Every question once, or once for every way of answering those before it, or once a category."""
        read: dict[Given, int] = {}
        for index, node in enumerate(nodes):
            if node.reads is None:
                _require(node.given == (), f"{name}[{index}] follows answers and is not read")
                continue
            if node.given:
                *before, (question, word) = node.given
                above = read.get((*before, (question, -1)))
                _require(
                    above is not None and above in _numbers(nodes, index) and self._has_word(question, word),
                    f"{name}[{index}] follows an answer that is not read above it",
                )
            key = (*node.given, (node.reads, -1))
            read[key] = index
        for question in content:
            found = [node.given for node in nodes if node.reads == question]
            expected = max(1, self.each)
            for asked, _ in found[0] if found else ():
                expected *= len(self.questions[asked])
            _require(
                len(found) == expected and len({tuple(asked for asked, _ in given) for given in found}) == 1,
                f"{name}: answers {sorted(node.reads for node in nodes if node.reads)}, "
                f"expected each of {sorted(content)} once",
            )
        reads = [(node.reads, node.given) for node in nodes if node.reads]
        _require(
            {question for question, _ in reads} <= {*content, REFUSAL}
            and (self.each > 0 or len(set(reads)) == len(reads)),
            f"{name}: answers {sorted({question for question, _ in reads})}",
        )

    def _has_word(self, question: str, word: int) -> bool:
        return question in self.questions and 0 <= word < len(self.questions[question])

    def _check_list(self, key: str, listing: Listing) -> None:
        count = len(listing.categories)
        _require(count > 0 and bool(listing.steps) == (count > 1), f"lists[{key!r}] has no steps")
        _require(len(listing.refusals) in (0, count), f"lists[{key!r}] has {len(listing.refusals)} refusals")
        _require(
            not listing.refusals or REFUSAL in self.questions, f"lists[{key!r}] reads an unknown question"
        )
        led: list[int] = []
        for step in listing.steps:
            _require(
                len(step.rows) == len(set(step.rows)) == len(step.leads) > 1
                and set(step.rows) <= set(self.rows),
                f"lists[{key!r}]: rows of a step are not rows",
            )
            led += step.leads
        # Each category is led to, and each step but the first by exactly one before it.
        _require(
            not led
            or (
                {lead for lead in led if lead >= 0} == set(range(count))
                and sorted(-lead for lead in led if lead < 0) == list(range(1, len(listing.steps)))
                and all(-lead > n for n, step in enumerate(listing.steps) for lead in step.leads if lead < 0)
            ),
            f"lists[{key!r}] does not lead to its categories",
        )

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
            **({"lists": {key: one.to_json() for key, one in self.lists.items()}} if self.lists else {}),
            **({"each": self.each} if self.each else {}),
        }

    @classmethod
    def from_json(cls, data: Any) -> Plan:
        """Read `to_json`'s form. Raises ArtifactError on anything else."""
        keys = {"root_ids", "rows", "questions", "prompt", "exchange", "leaf_ids"}
        _keys(
            data, keys | ({"seams", "lists", "each"} & set(data) if isinstance(data, dict) else set()), "plan"
        )
        questions = data["questions"]
        _require(isinstance(questions, dict), "questions are no object")
        pairs = {question: _strings(pair, f"questions.{question}") for question, pair in questions.items()}
        _require(all(len(pair) in (2, 3) for pair in pairs.values()), "a question has two rows, or three")
        seams = data.get("seams", {})
        _require(isinstance(seams, dict), "seams are no object")
        joined = {name: _strings(pair, f"seams.{name}") for name, pair in seams.items()}
        _require(all(len(pair) == 2 for pair in joined.values()), "a seam has two texts")
        lists = data.get("lists", {})
        _require(isinstance(lists, dict), "lists are no object")
        each = data.get("each", 0)
        _require(type(each) is int and each >= 0, "each is no number of categories")
        return cls(
            root=_ids(data["root_ids"], "root_ids"),
            rows=_strings(data["rows"], "rows"),
            questions=pairs,
            prompt=tuple(_node_from_json(node, "prompt") for node in _list(data["prompt"], "prompt")),
            exchange=tuple(_node_from_json(node, "exchange") for node in _list(data["exchange"], "exchange")),
            leaves=tuple(_ids(ids, "leaf_ids") for ids in _list(data["leaf_ids"], "leaf_ids")),
            seams={name: (pair[0], pair[1]) for name, pair in joined.items()},
            lists={key: _listing_from_json(one, f"lists[{key!r}]") for key, one in lists.items()},
            each=each,
        )


def list_key(answers: Given) -> str:
    """How a plan names the list behind these answers: "prompt 1 response 0"."""
    return " ".join(f"{question} {word}" for question, word in answers)


def _path(nodes: tuple[Node, ...], index: int) -> list[Node]:
    """The node and those that it hangs from, itself first."""
    return [nodes[number] for number in _numbers(nodes, index)]


def _numbers(nodes: tuple[Node, ...], index: int) -> list[int]:
    found = []
    while index != ROOT:
        found.append(index)
        index = nodes[index].parent
    return found


def _node_to_json(node: Node) -> dict[str, Any]:
    parts = [{"content": part} if isinstance(part, str) else {"ids": list(part)} for part in node.parts]
    given = {"given": [list(answer) for answer in node.given]} if node.given else {}
    return {"parent": node.parent, "parts": parts, "reads": node.reads, **given}


def _node_from_json(data: Any, where: str) -> Node:
    keys = {"parent", "parts", "reads"}
    _keys(data, keys | ({"given"} & set(data) if isinstance(data, dict) else set()), where)
    parent, reads = data["parent"], data["reads"]
    _require(type(parent) is int, f"{where}: a parent is no whole number")
    _require(reads is None or isinstance(reads, str), f"{where}: a question is no text")
    parts = tuple(_part_from_json(part, where) for part in _list(data["parts"], where))
    return Node(
        parent, parts, reads, tuple(_answer(one, where) for one in _list(data.get("given", []), where))
    )


def _answer(data: Any, where: str) -> tuple[str, int]:
    _require(
        isinstance(data, list) and len(data) == 2 and isinstance(data[0], str) and type(data[1]) is int,
        f"{where}: an answer is no question and word",
    )
    return data[0], data[1]


def _listing_from_json(data: Any, where: str) -> Listing:
    _keys(data, {"categories", "steps", "refusals"}, where)
    categories = []
    for pair in _list(data["categories"], where):
        is_pair = isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)
        _require(is_pair and isinstance(pair[1], str | None), f"{where}: a category is no name and code")
        categories.append((pair[0], pair[1]))
    steps = []
    for step in _list(data["steps"], where):
        _keys(step, {"ids", "rows", "leads"}, where)
        rows = _strings(step["rows"], where)
        steps.append(Step(_ids(step["ids"], where), rows, _ids(step["leads"], where)))
    refusals = tuple(_ids(ids, where) for ids in _list(data["refusals"], where))
    return Listing(tuple(categories), tuple(steps), refusals)


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
