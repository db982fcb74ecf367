"""What a guard that speaks says: its native output as a template, and a verdict in that form.

    {"User Safety": "{prompt}", "Response Safety": "{response}"{categories}}

{prompt} and {response} are the verdict's words, {categories} a part that is only there when something is
unsafe and a category is known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aegis_edge.families.plan import PROMPT, RESPONSE

if TYPE_CHECKING:
    from aegis_edge.decision import Verdict

PLACEHOLDER = re.compile(r"\{(policy|prompt|response|categories|names|codes)\}")


@dataclass(frozen=True)
class Answers:
    """The words of a verdict and the output they stand in.

    prompt      the output on a prompt alone, with {prompt} and perhaps {categories}
    exchange    the output on a prompt and its response, with {response}, perhaps {prompt} before it; None:
                the guard judges prompts alone
    categories  what stands for {categories}, with {names} or {codes}, comma-separated; "": nothing
    """

    safe: str
    unsafe: str
    prompt: str
    exchange: str | None
    categories: str = ""

    def order(self) -> tuple[str, ...]:
        """The questions that the output on an exchange answers, in its order."""
        found = PLACEHOLDER.findall(self.exchange or "")
        return tuple(name for name in found if name in (PROMPT, RESPONSE))

    def text(self, verdict: Verdict) -> str:
        """The verdict as the family's own model would have written it.

        In an output that is a JSON object, names are escaped as JSON strings are.
        """
        template = self.prompt if verdict.response is None else self.exchange
        assert template is not None  # there is no verdict on a response without one
        names = ", ".join(category.name for category in verdict.categories)
        codes = ",".join(category.code or category.name for category in verdict.categories)
        if template.lstrip().startswith("{"):
            names, codes = (json.dumps(text, ensure_ascii=False)[1:-1] for text in (names, codes))
        is_listed = verdict.categories and not verdict.safe
        words = {
            PROMPT: self.safe if verdict.prompt.safe else self.unsafe,
            RESPONSE: self.unsafe if verdict.response and not verdict.response.safe else self.safe,
            "categories": fill(self.categories, {"names": names, "codes": codes}) if is_listed else "",
        }
        return fill(template, words)


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
