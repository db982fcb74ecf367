"""A family of guards that speak: the prompt as text, the output that is forced, read at its verdict words.

    root      the template up to the conversation, the policy in it
    content   the prompt, and the response where there is one
    verdict   the rest of the template, and the output up to where "safe" and "unsafe" part
    branches  where the output answers on the response after the prompt: both words of the first answer, each
              with the output up to where the second answer's words part

The text comes from the checkpoint's chat template, rendered once at export (export/chat.py) with {policy},
{prompt} and {response} still in it. Compiling takes text to ids by the tokenizer alone: added tokens are
found in the template's text, never in what stands for a placeholder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from aegis_edge.errors import FamilyError, PolicyError
from aegis_edge.families.answers import PLACEHOLDER, Answers, fill
from aegis_edge.families.family import Family, Vocabulary
from aegis_edge.families.plan import CONTENT, PROMPT, RESPONSE, ROOT, Ids, Node, Plan
from aegis_edge.policy import Policy

ROWS = ("prompt_safe", "prompt_unsafe", "response_safe", "response_unsafe")
_LINE = re.compile(r"\{(number|name|text)\}")
LONGEST_SEAM = 32  # characters
# What content may begin and end with: tokens join across a seam by the characters at it.
_STARTS = (
    "How",
    "how",
    " how",
    "  how",
    "\nhow",
    "\n\n how",
    "7",
    "?",
    '"',
    "'s",
    "(",
    "é",
    "中",
    "🙂",
    "\t",
)
_ENDS = ("end", "7", ".", "?", '"', ")", "。", "🙂", "é", " ", "\n", "...", "'", "```")


@dataclass(frozen=True)
class Spoken:
    """What an artefact holds of such a family besides its plan, so that another policy can be compiled.

    prompt    text for a prompt alone, up to where the guard answers: {prompt} once, {policy} at most once
    exchange  the same with {response}; None: the guard judges prompts alone
    line      a category in {policy}, with {number}, {name} and {text} (name and description); None where the
              text has no {policy}
    allowed   the same for an allowed topic; None: the family knows none
    lead      what the guard writes before its answer, no part of what it is read as
    """

    name: str
    prompt: str
    exchange: str | None
    line: str | None
    allowed: str | None
    lead: str
    answers: Answers

    def family(self) -> Family:
        """This as a family."""
        rows = ROWS if self.exchange is not None else ROWS[:2]
        return Family(self.name, rows, {}, self.compile, self.token_ids, self.answers, self)

    def policy_text(self, policy: Policy) -> str:
        """What stands for {policy}: a line a category. Raises PolicyError for what the family can not ask."""
        if self.line is None:
            if [c.text for c in policy.categories] != [c.text for c in Policy.default().categories]:
                raise PolicyError(
                    f"categories: the family {self.name!r} brings a policy of its own and takes no other",
                    hint="leave the categories out; thresholds can be set",
                )
            return ""
        lines = []
        for index, category in enumerate(policy.categories):
            line = self.allowed if category.allowed else self.line
            if line is None:
                raise PolicyError(
                    f"categories[{index}].allowed: the family {self.name!r} knows no allowed topics"
                )
            if category.threshold is not None:
                raise PolicyError(
                    f"categories[{index}].threshold: the family {self.name!r} gives categories no probability"
                )
            values = {"number": str(index + 1), "name": category.name, "text": category.text}
            lines.append(fill(line, values, _LINE))
        return "\n".join(lines)

    def compile(self, vocabulary: Vocabulary, policy: Policy) -> Plan:
        """The plan for one tokenizer and policy. Raises FamilyError, PolicyError."""
        texts = [text for text in (self.prompt, self.exchange) if text is not None]
        lines = self.policy_text(policy)
        pieces = [_pieces(text, lines, vocabulary) for text in texts]
        seams = {of: self._seam(of, pieces, vocabulary) for of in CONTENT[: len(texts)]}
        parts = [_parts(piece, seams, vocabulary) for piece in pieces]
        heads = [part[0] for part in parts if not isinstance(part[0], str)]
        root = _common(heads)
        if len(heads) < len(parts) or not root:
            raise FamilyError(
                f"family {self.name!r}: no template text stands before {{prompt}}",
                hint="the policy's root needs at least one token, such as the checkpoint's begin token",
            )
        for part in parts:
            part[0] = part[0][len(root) :]
        slots = self._slots(vocabulary)
        prompt = _chain(parts[0], ROOT, 0, slots[0][0], PROMPT)
        exchange: list[Node] = []
        if self.exchange is not None and self.answers.order() == (RESPONSE,):
            exchange = [*prompt, *_chain(parts[1], ROOT, len(prompt), slots[1][0], RESPONSE)]
        elif self.exchange is not None:
            exchange = _chain(parts[1], ROOT, 0, slots[1][0], PROMPT)
            first = len(exchange) - 1
            exchange += [Node(first, (ids,), RESPONSE) for ids in slots[1][1:]]
        return Plan(
            root=root,
            rows=ROWS[: 2 * len(texts)],
            questions={of: (ROWS[2 * i], ROWS[2 * i + 1]) for i, of in enumerate(CONTENT[: len(texts)])},
            prompt=tuple(prompt),
            exchange=tuple(exchange),
            leaves=(),
            seams={of: seam for of, seam in seams.items() if any(seam)},
        )

    def token_ids(self, vocabulary: Vocabulary) -> Ids:
        """The LM head's row for each label row: where the words' tokens part. Raises FamilyError."""
        prompt = self._slot(vocabulary, self.answers.prompt, PROMPT)[1]
        if self.exchange is None:
            return prompt
        return prompt + self._slot(vocabulary, self.answers.exchange or "", RESPONSE)[1]

    def _slots(self, vocabulary: Vocabulary) -> list[list[Ids]]:
        """Ids of the output up to each slot: of a prompt's, and of an exchange's: the first, then what goes
        on from it after "safe" and after "unsafe"."""
        alone, labels = self._slot(vocabulary, self.answers.prompt, PROMPT)
        if self.exchange is None:
            return [[alone]]
        output = self.answers.exchange or ""
        if self.answers.order() == (RESPONSE,):
            return [[alone], [self._slot(vocabulary, output, RESPONSE)[0]]]
        first, found = self._slot(vocabulary, output, PROMPT)
        self._require(found == labels, "the words' tokens after a prompt alone and in an exchange differ")
        branches, seconds = [], set()
        for word, label in zip((self.answers.safe, self.answers.unsafe), labels, strict=True):
            ids, second = self._slot(vocabulary, fill(output, {PROMPT: word}), RESPONSE)
            self._require(
                ids[: len(first) + 1] == (*first, label), f"{word!r} is not told by its first token"
            )
            branches.append(ids[len(first) :])
            seconds.add(second)
        self._require(len(seconds) == 1, "the second answer's tokens depend on the first answer")
        return [[alone], [first, *branches]]

    def _slot(self, vocabulary: Vocabulary, output: str, of: str) -> tuple[Ids, Ids]:
        """(ids of the output before the tokens of the two words part, those two tokens)."""
        before, after = output.split(f"{{{of}}}", 1)
        before = self.lead + fill(before, {PROMPT: self.answers.safe})
        after = PLACEHOLDER.split(after)[0]
        safe, unsafe = (
            vocabulary.ids(f"{before}{word}{after}") for word in (self.answers.safe, self.answers.unsafe)
        )
        shared = _common([safe, unsafe])
        self._require(len(shared) < min(len(safe), len(unsafe)), "its words are one text to this tokenizer")
        return shared, (safe[len(shared)], unsafe[len(shared)])

    def _seam(
        self, of: str, texts: Sequence[Sequence[tuple[str, str]]], vocabulary: Vocabulary
    ) -> tuple[str, str]:
        """The shortest text before and after the content that, encoded with it, gives the ids of the whole,
        whatever of _STARTS and _ENDS the content begins and ends with; the same in all texts."""
        befores, afters = [], []
        for pieces in texts:
            for index, piece in enumerate(pieces):
                if piece == ("content", of):
                    befores.append(_text(pieces, index - 1))
                    afters.append(_text(pieces, index + 1))

        def holds(left: str, right: str) -> bool:
            return vocabulary.ids(left + right) == vocabulary.ids(left) + vocabulary.ids(right)

        for n in range(LONGEST_SEAM + 1):
            before = befores[0][len(befores[0]) - n :] if n <= len(befores[0]) else None
            if before is not None and all(
                text.endswith(before) and holds(text[: len(text) - n], before + start)
                for text in befores
                for start in _STARTS
            ):
                break
        else:
            raise self._unseamed(f"before {{{of}}}")
        for n in range(LONGEST_SEAM + 1):
            after = afters[0][:n] if n <= len(afters[0]) else None
            if after is not None and all(
                text.startswith(after) and holds(end + after, text[n:]) for text in afters for end in _ENDS
            ):
                return before, after
        raise self._unseamed(f"after {{{of}}}")

    def _unseamed(self, where: str) -> FamilyError:
        return FamilyError(
            f"family {self.name!r}: this tokenizer joins the template's text {where} to any content",
            hint="put a line break there, and the same text beside {prompt} in prompt and in exchange",
        )

    def _require(self, condition: bool, what: str) -> None:
        if not condition:
            raise FamilyError(
                f"family {self.name!r}: with this tokenizer {what}", hint="family and base do not fit"
            )

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; `from_json` gives it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> Spoken:
        """Read `to_json`'s form. Raises FamilyError on anything else."""
        if not isinstance(data, Mapping) or not isinstance(data.get("answers"), Mapping):
            raise FamilyError("a family's text is not whole")
        _check_fields(cls, data)
        _check_fields(Answers, data["answers"])
        made = cls(**{**data, "answers": Answers(**data["answers"])})
        made.check()
        return made

    def check(self) -> None:
        """Raises FamilyError, whose message begins with the field, where a placeholder is missing or more
        than there should be."""
        expect("prompt", self.prompt, (PROMPT,), ("policy",))
        expect("answers.prompt", self.answers.prompt, (PROMPT,), ("categories",))
        for key, output in (("prompt", self.answers.prompt), ("exchange", self.answers.exchange or "")):
            if re.search(r"\{categories\}.*\{(prompt|response)\}", output, re.DOTALL):
                raise FamilyError(f"answers.{key}: {{categories}} stands before the verdict")
        expect("answers.categories", self.answers.categories, (), ("names", "codes"))
        if (self.exchange is None) != (self.answers.exchange is None):
            raise FamilyError("answers.exchange: an exchange and the answer to it go together")
        if self.exchange is not None and self.answers.exchange is not None:
            expect("exchange", self.exchange, (PROMPT, RESPONSE), ("policy",))
            expect("answers.exchange", self.answers.exchange, (RESPONSE,), (PROMPT, "categories"))
            if self.answers.order() not in ((RESPONSE,), (PROMPT, RESPONSE)):
                raise FamilyError("answers.exchange: {response} is answered before {prompt}")
        for text in (self.prompt, self.exchange):
            if text is not None and ("{policy}" in text) != (self.line is not None):
                raise FamilyError("category: {policy} and the line of a category go together")
        for name, word in (("safe", self.answers.safe), ("unsafe", self.answers.unsafe)):
            if not word or PLACEHOLDER.search(word):
                raise FamilyError(f"answers.{name}: no word")


def expect(key: str, text: str, once: Sequence[str], at_most_once: Sequence[str]) -> None:
    """Raise FamilyError unless `text` has these placeholders and no other."""
    found = PLACEHOLDER.findall(text)
    for name in once:
        if name not in found:
            raise FamilyError(f"{key}: {{{name}}} is missing")
    for name in found:
        if name not in (*once, *at_most_once):
            raise FamilyError(f"{key}: {{{name}}} has no place here")
        if found.count(name) > 1:
            raise FamilyError(f"{key}: {{{name}}} stands {found.count(name)} times")


def _check_fields(kind: type, data: Mapping[str, Any]) -> None:
    fields = kind.__dataclass_fields__  # type: ignore[attr-defined]
    if set(data) != set(fields):
        raise FamilyError(f"a family's text has {sorted(data)}, expected {sorted(fields)}")
    for name, field in fields.items():
        is_text = isinstance(data[name], str) or (data[name] is None and "None" in str(field.type))
        if not is_text and name != "answers":
            raise FamilyError(f"{name}: expected text")


def _pieces(text: str, policy: str, vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """("control", token), ("content", name) and ("text", ...) in order. The policy's text is put in after
    added tokens were looked for."""
    controls = sorted(vocabulary.control_tokens, key=len, reverse=True)
    found: list[tuple[str, str]] = []
    pattern = "|".join([r"\{(?:prompt|response)\}", *map(re.escape, controls)])
    for piece in re.split(f"({pattern})", text):
        if piece in ("{prompt}", "{response}"):
            found.append(("content", piece[1:-1]))
        elif piece in vocabulary.control_tokens:
            found.append(("control", piece))
        elif piece:
            found.append(("text", fill(piece, {"policy": policy})))
    return found


def _text(pieces: Sequence[tuple[str, str]], index: int) -> str:
    if 0 <= index < len(pieces) and pieces[index][0] == "text":
        return pieces[index][1]
    return ""


def _parts(
    pieces: Sequence[tuple[str, str]], seams: Mapping[str, tuple[str, str]], vocabulary: Vocabulary
) -> list[Any]:
    """Ids and names of content in turn, seams cut off the text beside content."""
    parts: list[Any] = []
    for index, (kind, value) in enumerate(pieces):
        if kind == "content":
            parts.append(value)
            continue
        if kind == "control":
            ids: Ids = (vocabulary.control_id(value),)
        else:
            left = pieces[index - 1] if index else ("", "")
            right = pieces[index + 1] if index + 1 < len(pieces) else ("", "")
            start = len(seams[left[1]][1]) if left[0] == "content" else 0
            end = len(value) - (len(seams[right[1]][0]) if right[0] == "content" else 0)
            if start > end:
                raise FamilyError(
                    f"the text {value!r} between two pieces of content is too short for this tokenizer",
                    hint="put a line of text between {prompt} and {response}",
                )
            ids = vocabulary.ids(value[start:end])
        if parts and not isinstance(parts[-1], str):
            parts[-1] += ids
        else:
            parts.append(ids)
    return parts


def _chain(parts: Sequence[Any], parent: int, first: int, answer: Ids, reads: str) -> list[Node]:
    """Nodes from number `first` on, one a piece of content with the ids before it, the last with the rest of
    the text and the output up to the slot."""
    nodes: list[Node] = []
    before: tuple[Ids, ...] = ()
    for part in parts:
        if isinstance(part, str):
            nodes.append(Node(parent, (*before, part)))
            parent, before = first + len(nodes) - 1, ()
        elif part:
            before = (part,)
    last = sum(before, ()) + answer
    if not last:
        raise FamilyError("no template text stands between the conversation and the answer")
    return [*nodes, Node(parent, (last,), reads)]


def _common(lists: Sequence[Ids]) -> Ids:
    """The longest beginning that all have."""
    n = 0
    while lists and all(n < len(ids) for ids in lists) and len({ids[n] for ids in lists}) == 1:
        n += 1
    return lists[0][:n] if lists else ()
