"""What a guard that speaks says: its native output as a template, and a verdict in that form.

    {"User Safety": "{prompt}", "Response Safety": "{response}"{categories}}

{prompt} and {response} are the verdict's words, {refusal} whether the response refuses, {categories} a part
that is only there when something is unsafe and a category is known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aegis_edge.errors import FamilyError
from aegis_edge.families.plan import PROMPT, REFUSAL, RESPONSE

if TYPE_CHECKING:
    from aegis_edge.verdict import CategoryScore, Rating, Verdict

PLACEHOLDER = re.compile(r"\{(policy|category|prompt|response|refusal|categories|names|codes)\}")


@dataclass(frozen=True)
class Answers:
    """The words of a verdict and the output they stand in.

    prompt         the output on a prompt alone, with {prompt} and perhaps {categories}
    exchange       the output on a prompt and its response, with {response}, perhaps {prompt} before it, and
                   {refusal}; None: the guard judges prompts alone
    categories     what stands for {categories}, with {names} or {codes}, comma-separated; "": nothing
    none           what stands there where all is safe
    controversial  the word of a level between safe and unsafe; None: there is none
    refuses, complies  the words of {refusal}
    end            the control token that ends the output; needed where a category's name begins another's
    """

    safe: str
    unsafe: str
    prompt: str
    exchange: str | None
    categories: str = ""
    none: str = ""
    controversial: str | None = None
    refuses: str | None = None
    complies: str | None = None
    end: str | None = None

    def order(self) -> tuple[str, ...]:
        """The questions about content that the output on an exchange answers, in its order."""
        found = PLACEHOLDER.findall(self.exchange or "")
        return tuple(name for name in found if name in (PROMPT, RESPONSE))

    def words(self, question: str) -> tuple[str, ...]:
        """The words of an answer, safe (or no) first."""
        if question == REFUSAL:
            return (self.complies or "", self.refuses or "")
        return (self.safe, self.unsafe, *([] if self.controversial is None else [self.controversial]))

    def text(self, verdict: Verdict) -> str:
        """The verdict as the family's own model would have written it.

        In an output that is a JSON object, names are escaped as JSON strings are.
        """
        template = self.prompt if verdict.response is None else self.exchange
        assert template is not None  # there is no verdict on a response without one
        ratings = {PROMPT: verdict.prompt, RESPONSE: verdict.response}
        said = [ratings[name] for name in PLACEHOLDER.findall(template) if name in ratings]
        listed = _listed(verdict, [rating for rating in said if rating is not None and not rating.safe])
        names = ", ".join(category.name for category in listed)
        codes = ",".join(category.code or category.name for category in listed)
        if template.lstrip().startswith("{"):
            names, codes = (json.dumps(text, ensure_ascii=False)[1:-1] for text in (names, codes))
        words = {name: self._word(rating) for name, rating in ratings.items() if rating is not None}
        words[REFUSAL] = self.words(REFUSAL)[verdict.refusal is not None and verdict.refusal >= 0.5]
        words["categories"] = self.none
        if listed:
            words["categories"] = fill(self.categories, {"names": names, "codes": codes})
        return fill(template, words)

    def _word(self, rating: Rating) -> str:
        if rating.safe:
            return self.safe
        is_middle = rating.controversial is not None and rating.controversial >= 0.5
        return self.unsafe if self.controversial is None or not is_middle else self.controversial

    def check(self) -> None:
        """Raises FamilyError, whose message begins with the field, where parts do not go together."""
        expect("answers.prompt", self.prompt, (PROMPT,), ("categories", REFUSAL))
        for key, output in (("prompt", self.prompt), ("exchange", self.exchange or "")):
            if re.search(r"\{categories\}.*\{(prompt|response)\}", output, re.DOTALL):
                raise FamilyError(f"answers.{key}: {{categories}} stands before the verdict")
            if re.search(r"\{categories\}.*\{refusal\}.*\{", output, re.DOTALL):
                raise FamilyError(f"answers.{key}: {{refusal}} behind {{categories}} has to be the last")
        expect("answers.categories", self.categories, (), ("names", "codes"))
        if self.categories and len(PLACEHOLDER.findall(self.categories)) != 1:
            raise FamilyError("answers.categories: expected {names} or {codes}")
        if "{refusal}" in self.prompt:
            raise FamilyError("answers.prompt: {refusal} has no place here")
        if self.exchange is not None:
            expect("answers.exchange", self.exchange, (RESPONSE,), (PROMPT, REFUSAL, "categories"))
            if self.order() not in ((RESPONSE,), (PROMPT, RESPONSE)):
                raise FamilyError("answers.exchange: {response} is answered before {prompt}")
        if ("{refusal}" in (self.exchange or "")) != (self.refuses is not None and self.complies is not None):
            raise FamilyError("answers.exchange: {refusal} and its words, refuses and complies, go together")
        for name in ("safe", "unsafe", "controversial", "refuses", "complies"):
            word = getattr(self, name)
            if word is not None and (not word or PLACEHOLDER.search(word)):
                raise FamilyError(f"answers.{name}: no word")


def _listed(verdict: Verdict, unsafe: Sequence[Rating]) -> Sequence[CategoryScore]:
    """The categories of an output's unsafe answers: their own, or the verdict's where they have none."""
    from aegis_edge.verdict import merged

    if not unsafe:
        return ()
    return merged(c for rating in unsafe for c in rating.categories) or verdict.categories


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


def fill(template: str, values: Mapping[str, str], pattern: re.Pattern[str] = PLACEHOLDER) -> str:
    """`template` with each placeholder that has a value replaced, in one go: values are never read again."""
    return pattern.sub(lambda match: values.get(match[1], match[0]), template)


# The JSON that NeMo Guardrails reads: nemoguard_parse_* in nemoguardrails/llm/output_parsers.py, 0.24.
NEMOGUARD = Answers(
    "safe",
    "unsafe",
    '{"User Safety": "{prompt}"{categories}}',
    '{"User Safety": "{prompt}", "Response Safety": "{response}"{categories}}',
    ', "Safety Categories": "{names}"',
)
