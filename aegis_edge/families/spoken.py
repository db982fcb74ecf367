"""A family of guards that speak: the prompt as text, the output that is forced, read at its verdict words.

    root      the template up to the conversation, the policy in it
    content   the prompt, and the response where there is one
    verdict   the rest of the template, and the output up to where "safe" and "unsafe" part
    branches  where the output goes on to a further answer: each word of the first, with the output up to
              where the next answer's words part
    list      behind an unsafe answer, in a second pass: where the categories' names part (listing.py)

The text comes from the checkpoint's chat template, rendered once at export (export/chat.py) with {policy} or
{category}, {prompt} and {response} still in it. compiling.py makes a plan of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from aegis_edge.errors import FamilyError
from aegis_edge.families.answers import Answers, expect, fill
from aegis_edge.families.compiling import Compiler
from aegis_edge.families.family import Family, Vocabulary
from aegis_edge.families.plan import PROMPT, RESPONSE, Plan
from aegis_edge.policy import Policy

ROWS = ("prompt_safe", "prompt_unsafe", "response_safe", "response_unsafe")
_LINE = re.compile(r"\{(number|name|text|description)\}")


@dataclass(frozen=True)
class Own:
    """A category of a policy that the checkpoint's template brings. `of`: "prompt" or "response", where it is
    listed about that alone."""

    name: str
    code: str | None = None
    of: str | None = None


@dataclass(frozen=True)
class Spoken:
    """What an artefact holds of such a family besides its plan, so that another policy can be compiled.

    prompt    text for a prompt alone, up to where the guard answers: {prompt} once, at most once {policy}, or
              {category} behind it, where one is asked about at a time
    exchange  the same with {response}; None: the guard judges prompts alone
    line      a category in {policy} or {category}, with {number}, {name}, {description} (the name where there
              is none) and {text} (name and description); None where the text has neither
    line_exchange  the same in `exchange`, where that differs
    allowed   the same for an allowed topic; None: the family knows none
    lead      what the guard writes before its answer, no part of what it is read as
    own       the categories of a policy that stands in the text already
    """

    name: str
    prompt: str
    exchange: str | None
    line: str | None
    line_exchange: str | None
    allowed: str | None
    lead: str
    answers: Answers
    own: tuple[Own, ...] = ()

    @property
    def is_each(self) -> bool:
        """Whether it is asked about one category at a time."""
        return "{category}" in self.prompt

    def family(self) -> Family:
        """This as a family."""
        return Family(self.name, self.rows, {}, self.compile, self.labels, self.answers, self)

    @property
    def rows(self) -> tuple[str, ...]:
        """Label rows of the two answers; a tokenizer and a policy may add others."""
        return ROWS if self.exchange is not None else ROWS[:2]

    def compile(self, vocabulary: Vocabulary, policy: Policy) -> Plan:
        """The plan for one tokenizer and policy. Raises FamilyError, PolicyError."""
        return Compiler(self, vocabulary, policy).plan()

    def labels(self, vocabulary: Vocabulary, policy: Policy) -> Mapping[str, int]:
        """Label row -> the LM head's row that stands for it. Raises FamilyError, PolicyError."""
        return Compiler(self, vocabulary, policy).labels

    def policy_text(self, policy: Policy) -> str:
        """What stands for {policy}: a line a category. Raises PolicyError for what the family can not ask."""
        return "\n".join(self._lines(policy, self.line))

    def lines(self, policy: Policy) -> dict[str, list[dict[str, str]]]:
        """What stands for placeholders of the policy in the form about a prompt and in that about a response:
        once, or once a category. Raises PolicyError for what the family can not ask."""
        found = {}
        for form, line in ((PROMPT, self.line), (RESPONSE, self.line_exchange or self.line)):
            lines = self._lines(policy, line)
            found[form] = [{"policy": "\n".join(lines)}]
            if self.is_each:
                found[form] = [{"category": one} for one in lines]
        return found

    def listed(self, policy: Policy, form: str) -> list[tuple[str, str | None]]:
        """(name, code) of the categories that the output's list may name."""
        if self.own:
            return [(own.name, own.code) for own in self.own if own.of in (None, form)]
        return [(category.name, category.code) for category in policy.categories]

    def same(self, one: Policy, other: Policy) -> bool:
        """Whether two policies come to the same plan."""
        return self.lines(one) == self.lines(other) and (
            self.listed(one, PROMPT) == self.listed(other, PROMPT)
        )

    def _lines(self, policy: Policy, line: str | None) -> list[str]:
        if line is None:
            if [c.text for c in policy.categories] != [c.text for c in Policy.default().categories]:
                raise policy.refusal(
                    "categories",
                    f"the family {self.name!r} brings a policy of its own and takes no other",
                    "leave the categories out; thresholds can be set",
                )
            return []
        return [self._line(policy, i, line) for i in range(len(policy.categories))]

    def _line(self, policy: Policy, index: int, line: str) -> str:
        category, key = policy.categories[index], f"categories[{index}]"
        if category.allowed and self.allowed is None:
            raise policy.refusal(f"{key}.allowed", f"the family {self.name!r} knows no allowed topics")
        if category.threshold is not None and not (self.is_each or self.answers.categories):
            raise policy.refusal(
                f"{key}.threshold", f"the family {self.name!r} gives categories no probability"
            )
        values = {"number": str(index + 1), "name": category.name, "text": category.text,
                  "description": category.description or category.name}  # fmt: skip
        return fill(self.allowed or line if category.allowed else line, values, _LINE)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; `from_json` gives it back."""
        return asdict(self) | {"own": [asdict(own) for own in self.own]}

    @classmethod
    def from_json(cls, data: Any) -> Spoken:
        """Read `to_json`'s form. Raises FamilyError on anything else."""
        if not isinstance(data, Mapping) or not isinstance(data.get("answers"), Mapping):
            raise FamilyError("a family's text is not whole")
        _check_fields(cls, data)
        _check_fields(Answers, data["answers"])
        if not isinstance(data["own"], list) or not all(isinstance(own, Mapping) for own in data["own"]):
            raise FamilyError("own: expected a list of categories")
        for own in data["own"]:
            _check_fields(Own, own)
        own = tuple(Own(**own) for own in data["own"])
        made = cls(**{**data, "answers": Answers(**data["answers"]), "own": own})
        made.check()
        return made

    def check(self) -> None:
        """Raises FamilyError, whose message begins with the field, where a placeholder is missing or more
        than there should be, or where parts do not go together."""
        expect("prompt", self.prompt, (PROMPT,), ("policy", "category"))
        if (self.exchange is None) != (self.answers.exchange is None):
            raise FamilyError("answers.exchange: an exchange and the answer to it go together")
        if self.exchange is not None:
            expect("exchange", self.exchange, (PROMPT, RESPONSE), ("policy", "category"))
        self.answers.check()
        for key, text in (("prompt", self.prompt), ("exchange", self.exchange)):
            if text is None:
                continue
            has = [name for name in ("policy", "category") if f"{{{name}}}" in text]
            if bool(has) != (self.line is not None):
                raise FamilyError("category: {policy} and the line of a category go together")
            if len(has) > 1 or ("category" in has) != self.is_each:
                raise FamilyError(f"{key}: {{policy}} or {{category}}, the same in prompt and exchange")
            if re.search(r"\{category\}.*\{(prompt|response)\}", text, re.DOTALL):
                raise FamilyError(f"{key}: {{category}} has to stand behind the conversation")
        if self.is_each and (self.answers.categories or len(self.answers.order()) > 1):
            raise FamilyError("answers.exchange: asked about one category at a time, it is one answer alone")
        if self.own and self.line is not None:
            raise FamilyError("own: a family that takes a policy has no categories of its own")
        for form in (PROMPT, RESPONSE) if self.answers.categories and self.line is None else ():
            if not self.listed(Policy.default(), form) or not self.own:
                raise FamilyError(
                    "answers.categories: the categories that it lists are missing: [[categories]]"
                )


def _check_fields(kind: type, data: Mapping[str, Any]) -> None:
    fields = kind.__dataclass_fields__  # type: ignore[attr-defined]
    if set(data) != set(fields):
        raise FamilyError(f"a family's text has {sorted(data)}, expected {sorted(fields)}")
    for name, field in fields.items():
        is_text = isinstance(data[name], str) or (data[name] is None and "None" in str(field.type))
        if not is_text and name not in ("answers", "own"):
            raise FamilyError(f"{name}: expected text")
