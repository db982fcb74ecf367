"""A family's text from the checkpoint's own chat template, and the proof that a plan gives that text's ids.

Templates run here and never at check time. They are rendered with {policy} or {category}, {prompt} and
{response} still in the messages and variables; what comes out must hold each as often as it went in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from aegis_edge.conversation import Conversation
from aegis_edge.encoding import ContentEncoder, ConversationEncoder, Encoded
from aegis_edge.errors import FamilyError
from aegis_edge.families.answers import PLACEHOLDER, expect, fill
from aegis_edge.families.plan import PROMPT, RESPONSE, Plan
from aegis_edge.families.recipe import Message, Recipe, located
from aegis_edge.families.spoken import Spoken
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
            _check_asked(key, asked, recipe.variables)
        chat = _Chat(folder)
        prompt = _render(recipe, "prompt", recipe.prompt, chat)
        exchange = None if recipe.exchange is None else _render(recipe, "exchange", recipe.exchange, chat)
        lead = "" if prompt.endswith(recipe.lead) else recipe.lead
        made = Spoken(
            recipe.name,
            prompt,
            exchange,
            recipe.line,
            recipe.line_exchange,
            recipe.allowed,
            lead,
            recipe.answers,
            recipe.own,
        )
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
    chat, lines = _Chat(folder), spoken.lines(policy)
    for prompt, response in _SAMPLES:
        for key, asked in (("prompt", recipe.prompt), ("exchange", recipe.exchange)):
            if asked is None:
                continue
            question = RESPONSE if key == "exchange" else PROMPT
            given = encoder.encode(Conversation(prompt, response if key == "exchange" else None))
            for number, line in enumerate(lines[question]):
                values = {**line, PROMPT: prompt, RESPONSE: response}
                text = _render(recipe, key, asked, chat, values)
                wanted = whole.encode(text, add_special_tokens=False).ids
                if not _begins(plan, given, question, number, wanted):
                    raise located(
                        FamilyError(
                            f"{key}: compiled, its ids are not those of the rendered text around {prompt!r}",
                            hint="tokenizer, template and family do not fit: the guard would read other text",
                        ),
                        recipe.source,
                    )


def _begins(plan: Plan, given: Encoded, question: str, number: int, wanted: list[int]) -> bool:
    """Whether the path to the slot of a question, about category `number`, begins with these ids."""
    slots = [slot for slot, asked in enumerate(given.reads) if asked == question]
    node = given.judged[slots[number]]
    path: list[int] = []
    while node:
        segment = given.segments[node - 1]
        path[:0] = segment.ids.tolist()
        node = segment.parent
    return [*plan.root, *path][: len(wanted)] == wanted


def _check_asked(key: str, asked: str | tuple[Message, ...] | None, variables: Mapping[str, Any]) -> None:
    """What goes into the template: every placeholder once, told before a template can be blamed."""
    if asked is None:
        return
    text = asked if isinstance(asked, str) else "\n".join(message.content for message in asked)
    for where, name in _held(variables):
        if name != "category" or isinstance(asked, str):
            raise FamilyError(f"{where}: {{{name}}} has no place here")
        text += f"\n{{{name}}}"
    expect(key, text, (PROMPT,) if key == "prompt" else (PROMPT, RESPONSE), ("policy", "category"))


def _held(variables: Mapping[str, Any], key: str = "variables") -> Iterator[tuple[str, str]]:
    """(key, placeholder) of each in the variables' text, tables looked into."""
    for name, value in variables.items():
        if isinstance(value, Mapping):
            yield from _held(value, f"{key}.{name}")
        elif isinstance(value, str):
            yield from ((f"{key}.{name}", found) for found in PLACEHOLDER.findall(value))


def _filled(variables: Mapping[str, Any], values: Mapping[str, str]) -> dict[str, Any]:
    return {
        name: _filled(value, values)
        if isinstance(value, Mapping)
        else fill(value, values)
        if isinstance(value, str)
        else value
        for name, value in variables.items()
    }


def _render(
    recipe: Recipe,
    key: str,
    asked: str | tuple[Message, ...],
    chat: _Chat,
    values: Mapping[str, str] | None = None,
) -> str:
    """The text of a recipe's prompt or exchange; `values` stand for placeholders, which else are kept."""
    if isinstance(asked, str):
        return fill(asked, values or {})
    messages = [{"role": m.role, "content": fill(m.content, values or {})} for m in asked]
    text = chat.text(messages, _filled(recipe.variables, values or {}))
    if values is None:
        held = [
            (f"{key}[{index}].content", name)
            for index, message in enumerate(asked)
            for name in PLACEHOLDER.findall(message.content)
        ]
        for where, name in (*held, *_held(recipe.variables)):
            count = text.count(f"{{{name}}}")
            if count != 1:
                what = "lost" if count == 0 else f"repeats ({count} times)"
                raise FamilyError(f"{where}: the checkpoint's chat template {what} {{{name}}}")
    return text


class _Chat:
    """A checkpoint's chat template; the checkpoint is looked at when it is first used."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self._folder)
        except (OSError, ValueError) as error:
            raise FamilyError(
                f"{self._folder.name}: transformers can not load its tokenizer: {error}"
            ) from error
        if not tokenizer.chat_template:
            raise FamilyError(
                f"{self._folder.name}: no chat template: chat_template.jinja, or in tokenizer_config.json",
                hint="take the checkpoint's whole folder, or write the family's text out: prompt = '''...'''",
            )
        return tokenizer

    def text(self, messages: list[dict[str, str]], variables: Mapping[str, Any]) -> str:
        """The messages, rendered. Raises FamilyError."""
        from jinja2 import TemplateError

        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True, **variables
                )
            )
        except (TemplateError, TypeError, ValueError) as error:
            number = getattr(error, "lineno", None)
            line = f" line {number}" if number else ""
            raise FamilyError(
                f"{self._folder.name}: its chat template{line} refuses the messages: {error}"
            ) from error
