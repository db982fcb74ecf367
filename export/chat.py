"""A family's text from the checkpoint's own chat template, and the proof that a plan gives that text's ids.

Templates run here and never at check time. They are rendered with {policy}, {prompt} and {response} still in
the messages; what comes out must hold each as often as it went in.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from aegis_edge.conversation import Conversation
from aegis_edge.encoding import ContentEncoder, ConversationEncoder, Encoded
from aegis_edge.errors import FamilyError
from aegis_edge.families.answers import PLACEHOLDER, fill
from aegis_edge.families.plan import PROMPT, RESPONSE, Plan
from aegis_edge.families.recipe import Message, Recipe, located
from aegis_edge.families.spoken import Spoken, expect
from aegis_edge.policy import Policy

# Harmless texts whose ends meet the template in different ways.
_SAMPLES = (
    ("How do I pick a lock?", "With a tension wrench and patience."),
    ("7 + 8", "15"),
    ('"Wetter" in München (heute)', "多云，有雨。"),
    ("🙂 what's this", "- one\n- two 🙂"),
)


def speak(recipe: Recipe, folder: Path) -> Spoken:
    """Render a recipe with the chat template of the checkpoint in `folder`. Raises FamilyError naming the
    line where the recipe comes from a file."""
    try:
        for key, asked in (("prompt", recipe.prompt), ("exchange", recipe.exchange)):
            _check_asked(key, asked)
        prompt = _render(recipe, "prompt", recipe.prompt, folder)
        exchange = None if recipe.exchange is None else _render(recipe, "exchange", recipe.exchange, folder)
        lead = "" if prompt.endswith(recipe.lead) else recipe.lead
        made = Spoken(recipe.name, prompt, exchange, recipe.line, recipe.allowed, lead, recipe.answers)
        made.check()
    except FamilyError as error:
        raise located(error, recipe.source) from error
    return made


def check_ids(
    spoken: Spoken, recipe: Recipe, plan: Plan, policy: Policy, tokenizer: str, folder: Path
) -> None:
    """Raise FamilyError unless the plan's ids are those of the rendered text, for sample conversations: the
    template is rendered anew around each and tokenised whole, as transformers would."""
    encoder = ConversationEncoder(ContentEncoder.from_json(tokenizer), plan, 2**31 - 1)
    whole = Tokenizer.from_str(tokenizer)
    whole.no_truncation()
    policy_text = spoken.policy_text(policy)
    for prompt, response in _SAMPLES:
        values = {"policy": policy_text, PROMPT: prompt, RESPONSE: response}
        for key, asked in (("prompt", recipe.prompt), ("exchange", recipe.exchange)):
            if asked is None:
                continue
            text = _render(recipe, key, asked, folder, values)
            wanted = whole.encode(text, add_special_tokens=False).ids
            given = encoder.encode(Conversation(prompt, response if key == "exchange" else None))
            if not _begins(plan, given, RESPONSE if key == "exchange" else PROMPT, wanted):
                raise located(
                    FamilyError(
                        f"{key}: compiled, its ids are not those of the rendered text around {prompt!r}",
                        hint="tokenizer, template and family do not fit; the guard would read another text",
                    ),
                    recipe.source,
                )


def _begins(plan: Plan, given: Encoded, question: str, wanted: list[int]) -> bool:
    """Whether the path to the first slot of a question begins with these ids."""
    number = given.judged[given.reads.index(question)]
    path: list[int] = []
    while number:
        segment = given.segments[number - 1]
        path[:0] = segment.ids.tolist()
        number = segment.parent
    return [*plan.root, *path][: len(wanted)] == wanted


def _check_asked(key: str, asked: str | tuple[Message, ...] | None) -> None:
    """What goes into the template: every placeholder once, told before a template can be blamed."""
    if asked is None:
        return
    text = asked if isinstance(asked, str) else "\n".join(message.content for message in asked)
    needed = (PROMPT,) if key == "prompt" else (PROMPT, RESPONSE)
    expect(key, text, needed, ("policy",))


def _render(
    recipe: Recipe,
    key: str,
    asked: str | tuple[Message, ...],
    folder: Path,
    values: Mapping[str, str] | None = None,
) -> str:
    """The text of a recipe's prompt or exchange; `values` stand for placeholders, which else are kept."""
    if isinstance(asked, str):
        return fill(asked, values or {})
    messages = [{"role": m.role, "content": fill(m.content, values or {})} for m in asked]
    text = _template(folder, messages, recipe.variables)
    if values is None:
        for index, message in enumerate(asked):
            for name in PLACEHOLDER.findall(message.content):
                count = text.count(f"{{{name}}}")
                if count != 1:
                    what = "lost" if count == 0 else f"repeats ({count} times)"
                    raise FamilyError(
                        f"{key}[{index}].content: the checkpoint's chat template {what} {{{name}}}"
                    )
    return text


def _template(folder: Path, messages: list[dict[str, str]], variables: Mapping[str, Any]) -> str:
    from jinja2 import TemplateError
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise FamilyError(f"{folder.name}: transformers can not load its tokenizer: {error}") from error
    if not tokenizer.chat_template:
        raise FamilyError(
            f"{folder.name}: no chat template: chat_template.jinja, or a key of tokenizer_config.json",
            hint="take the checkpoint's whole folder, or write the family's text out: prompt = '''...'''",
        )
    try:
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **variables)
        )
    except (TemplateError, TypeError, ValueError) as error:
        number = getattr(error, "lineno", None)
        line = f" line {number}" if number else ""
        raise FamilyError(f"{folder.name}: its chat template{line} refuses the messages: {error}") from error
