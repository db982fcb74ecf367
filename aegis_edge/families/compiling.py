"""From a spoken family's text and output to a plan: pieces, seams, slots, category lists.

Compiling takes text to ids by the tokenizer alone: added tokens are found in the template's text, never in
what stands for a placeholder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

from aegis_edge.errors import FamilyError
from aegis_edge.families.answers import PLACEHOLDER, fill
from aegis_edge.families.family import Vocabulary
from aegis_edge.families.listing import Ids, Listing, Step, steps_of
from aegis_edge.families.plan import CONTENT, PROMPT, REFUSAL, RESPONSE, ROOT, Given, Node, Plan, list_key
from aegis_edge.families.seams import common, find_seam, parts_of, pieces_of
from aegis_edge.policy import Policy

if TYPE_CHECKING:
    from aegis_edge.families.spoken import Spoken

WORDS = {PROMPT: ("prompt_safe", "prompt_unsafe", "prompt_controversial"),
         RESPONSE: ("response_safe", "response_unsafe", "response_controversial"),
         REFUSAL: ("refusal_no", "refusal_yes")}  # fmt: skip


@dataclass(frozen=True)
class Slot:
    """A place in an output where an answer is read. ids: of the output up to it."""

    question: str
    given: Given
    ids: Ids


@dataclass
class Output:
    """An output, compiled: its slots in order, and the category lists in it by `list_key`."""

    slots: list[Slot] = field(default_factory=list)
    lists: dict[str, Listing] = field(default_factory=dict)


class Compiler:
    """Compiles one family for one tokenizer and policy; `plan` and `labels` are what comes of it. Raises
    FamilyError, PolicyError."""

    def __init__(self, spoken: Spoken, vocabulary: Vocabulary, policy: Policy) -> None:
        self._spoken, self._vocabulary = spoken, vocabulary
        self._answers = spoken.answers
        self._lines = spoken.lines(policy)
        self._policy = policy
        # Label row -> the LM head's row that stands for it.
        self.labels: dict[str, int] = {}
        self._prompt = self._output(PROMPT, self._answers.prompt)
        exchange = self._answers.exchange
        self._exchange = None if exchange is None else self._output(RESPONSE, exchange)

    def plan(self) -> Plan:
        """The plan."""
        spoken, vocabulary = self._spoken, self._vocabulary
        forms = [(PROMPT, spoken.prompt)] + ([(RESPONSE, spoken.exchange)] if spoken.exchange else [])
        pieces = {form: [pieces_of(text, lines, vocabulary) for lines in self._lines[form]]
                  for form, text in forms}  # fmt: skip
        every = [one for found in pieces.values() for one in found]
        seams = {of: find_seam(spoken.name, of, every, vocabulary) for of in CONTENT[: len(forms)]}
        parts = {form: [parts_of(one, seams, vocabulary) for one in found] for form, found in pieces.items()}
        heads = [one[0] for found in parts.values() for one in found if not isinstance(one[0], str)]
        root = common(heads)
        if len(heads) < len(every) or not root:
            raise FamilyError(
                f"family {spoken.name!r}: no template text stands before {{prompt}}",
                hint="the policy's root needs at least one token, such as the checkpoint's begin token",
            )
        for found in parts.values():
            for one in found:
                one[0] = one[0][len(root) :]
        prompt = self._chain(parts[PROMPT], 0, self._prompt)
        exchange: list[Node] = []
        if self._exchange is not None:
            before = [] if PROMPT in self._answers.order() else prompt
            exchange = [*before, *self._chain(parts[RESPONSE], len(before), self._exchange)]
        lists = self._prompt.lists | (self._exchange.lists if self._exchange is not None else {})
        asked = [question for question in (*CONTENT, REFUSAL) if WORDS[question][0] in self.labels]
        return Plan(
            root=root,
            rows=tuple(self.labels),
            questions={q: tuple(row for row in WORDS[q] if row in self.labels) for q in asked},
            prompt=tuple(prompt),
            exchange=tuple(exchange),
            leaves=(),
            seams={of: seam for of, seam in seams.items() if any(seam)},
            lists=lists,
            each=len(self._policy.categories) if spoken.is_each else 0,
        )

    def _output(self, form: str, output: str) -> Output:
        """The slots of an output, and its lists."""
        done = Output()
        order = [name for name in PLACEHOLDER.findall(output) if name in WORDS]
        list_at = output.find("{categories}")
        paths: dict[Given, Ids] = {(): ()}  # answers so far -> the ids up to the last one's word, it included
        for question in order:
            before, after = output.split(f"{{{question}}}", 1)
            names = order[: order.index(question)]
            following: dict[Given, Ids] = {}
            for given in _ways(names, {name: self._words(name) for name in names}):
                if 0 <= list_at < len(before) and any(word for _, word in given):
                    continue  # read behind the list
                text = self._spoken.lead + fill(
                    before, {**self._said(given), "categories": self._answers.none}
                )
                ids, labels = self._part(question, text, PLACEHOLDER.split(after)[0])
                path = paths[given]
                self._require(ids[: len(path)] == path, f"{text!r} is not told by its answers' first tokens")
                done.slots.append(Slot(question, given, ids))
                following |= {(*given, (question, i)): (*ids, label) for i, label in enumerate(labels)}
            paths = following
        if self._answers.categories and list_at >= 0:
            behind = [name for name in order if output.index(f"{{{name}}}") < list_at]
            for given in _ways(behind, {name: self._words(name) for name in behind}):
                if any(word for _, word in given):
                    done.lists[list_key(given)] = self._listing(form, output, given, done)
        return done

    def _listing(self, form: str, output: str, given: Given, done: Output) -> Listing:
        """The list behind these answers, its ids counted from the last one's slot."""
        slot = next(slot for slot in done.slots if (*slot.given, (slot.question, given[-1][1])) == given)
        before, after = output.split("{categories}", 1)
        text = self._spoken.lead + fill(before, self._said(given))
        opening, kind, closing = re.split(r"\{(names|codes)\}", self._answers.categories, maxsplit=1)
        categories = self._spoken.listed(self._policy, form)
        entries = [name if kind == "names" else code or name for name, code in categories]
        if output.lstrip().startswith("{"):
            entries = [json.dumps(entry, ensure_ascii=False)[1:-1] for entry in entries]
        ends = closing + PLACEHOLDER.split(after)[0]
        goes_on = (", " if kind == "names" else ",") + entries[0]
        last = () if self._answers.end is None else (self._vocabulary.control_id(self._answers.end),)
        strings = [
            (self._behind(slot.ids, text + opening + entry + end) + closed, number)
            for number, entry in enumerate(entries)
            for end, closed in ((ends, last), (goes_on, ()))
        ]
        steps: tuple[Step, ...] = steps_of(strings, self._row_of)
        refusals: list[Ids] = []
        if f"{{{REFUSAL}}}" in after:
            between, rest = after.split(f"{{{REFUSAL}}}", 1)
            for entry in entries:
                ids, _ = self._part(
                    REFUSAL, text + opening + entry + closing + between, PLACEHOLDER.split(rest)[0]
                )
                refusals.append(ids[len(slot.ids) :])
        return Listing(tuple(categories), steps, tuple(refusals))

    def _behind(self, path: Ids, text: str) -> Ids:
        ids = self._vocabulary.ids(text)
        self._require(ids[: len(path)] == path, f"{text!r} is not told by its answers' first tokens")
        return ids[len(path) :]

    def _row_of(self, token: int) -> str:
        self.labels[f"token_{token}"] = token
        return f"token_{token}"

    def _part(self, question: str, before: str, after: str) -> tuple[Ids, Ids]:
        """(ids of the output before the tokens of an answer's words part, those tokens)."""
        words = self._words(question)
        ids = [self._vocabulary.ids(f"{before}{word}{after}") for word in words]
        shared = common(ids)
        n = len(shared)
        labels = tuple(one[n] for one in ids if len(one) > n)
        self._require(len(set(labels)) == len(words), "its words are one text to this tokenizer")
        for row, label in zip(WORDS[question], labels, strict=False):
            known = self.labels.setdefault(row, label)
            self._require(
                known == label, f"the tokens of the {question}'s words depend on what is before them"
            )
        return shared, labels

    def _words(self, question: str) -> tuple[str, ...]:
        return self._answers.words(question)

    def _said(self, given: Given) -> dict[str, str]:
        return {question: self._words(question)[word] for question, word in given}

    def _chain(self, parts: Sequence[Sequence[Any]], first: int, output: Output) -> list[Node]:
        """Nodes from number `first` on: one a piece of content with the ids before it, then the rest of the
        text with the output, up to each slot. `parts`: the text once, or once a category."""
        nodes: list[Node] = []
        parent = ROOT
        tails: list[Ids] = []
        for one in parts:
            before: tuple[Ids, ...] = ()
            parent, nodes = ROOT, []
            for part in one:
                if isinstance(part, str):
                    nodes.append(Node(parent, (*before, part)))
                    parent, before = first + len(nodes) - 1, ()
                elif part:
                    before = (part,)
            tails.append(sum(before, ()))
        shared = common(tails) if len(tails) > 1 else ()
        if shared:
            nodes.append(Node(parent, (shared,)))
            parent = first + len(nodes) - 1
        for tail in tails:
            at: dict[tuple[Given, str], tuple[int, Ids]] = {}
            for slot in output.slots:
                above, rest = parent, tail[len(shared) :] + slot.ids
                if slot.given:
                    above, path = at[slot.given[:-1], slot.given[-1][0]]
                    rest = slot.ids[len(path) :]
                if not rest:
                    raise FamilyError("no template text stands between the conversation and the answer")
                nodes.append(Node(above, (rest,), slot.question, slot.given))
                at[slot.given, slot.question] = first + len(nodes) - 1, slot.ids
        return nodes

    def _require(self, condition: bool, what: str) -> None:
        if not condition:
            raise FamilyError(
                f"family {self._spoken.name!r}: with this tokenizer {what}", hint="family and base do not fit"
            )


def _ways(names: Sequence[str], words: Mapping[str, Sequence[str]]) -> Iterator[Given]:
    """Every way of answering these questions, by the numbers of the words."""
    for numbers in product(*(range(len(words[name])) for name in names)):
        yield tuple(zip(names, numbers, strict=True))
