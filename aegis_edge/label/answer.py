"""What a judge said, to a vote or an abstention. Strict: what is not exactly an answer is no vote.

An answer is the word `safe` or `unsafe`, or a JSON object with `label` (one of them) and perhaps `categories`
(a list of names or codes; none where safe), perhaps within one Markdown code fence. Nothing is looked for
inside of other text: "this is not unsafe" holds both words.
"""

from __future__ import annotations

import re
from typing import Any

from aegis_edge import taxonomy
from aegis_edge.errors import InputError
from aegis_edge.label.files import parse_json
from aegis_edge.label.rows import LABELS
from aegis_edge.label.votes import Abstention, Opinion, Vote

_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)\n?\s*```", re.DOTALL)
_SHOWN = 80  # characters of an answer that a reason quotes


def from_completion(body: bytes) -> Opinion:
    """The opinion in the body of a chat completion, which should be a JSON object as OpenAI defines it."""
    if not body.strip():
        return Abstention("empty", "the server sent an empty body")
    try:
        reply = parse_json(body.decode("utf-8"))
    except (InputError, UnicodeDecodeError):
        return Abstention("nonsense", f"the server sent no JSON: {_quote(body.decode('utf-8', 'replace'))}")
    try:
        choice = reply["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        content, refusal = message.get("content"), message.get("refusal")
    except (TypeError, KeyError, IndexError, AttributeError):
        return Abstention("nonsense", "the server sent no chat completion: choices[0].message is missing")
    if refusal or finish == "content_filter":
        return Abstention("declined", f"the judge declined: {_quote(refusal or finish)}")
    if finish == "length":
        return Abstention("cut off", "the answer was cut off; `parameters.max_tokens` is too low")
    return parse_answer(content)


def parse_answer(content: Any) -> Opinion:
    """The opinion in a judge's text."""
    if content is None or (isinstance(content, str) and not content.strip()):
        return Abstention("empty", "the judge said nothing")
    if not isinstance(content, str):
        return _nonsense("the answer is no text", content)
    text = content.strip()
    if fenced := _FENCE.fullmatch(text):
        text = fenced[1].strip()
    if text.lower() in LABELS:
        return Vote("safe" if text.lower() == "safe" else "unsafe")
    try:
        value = parse_json(text)
    except InputError:
        return _nonsense("the answer is neither a label nor JSON", content)
    if not isinstance(value, dict) or not {"label"} <= value.keys() <= {"label", "categories"}:
        return _nonsense('the answer is no object of "label" and "categories"', content)
    label, categories = value["label"], value.get("categories")
    if label not in LABELS:
        return _nonsense("the label is neither safe nor unsafe", content)
    categories = [] if categories is None else categories
    if not isinstance(categories, list) or not all(isinstance(name, str) for name in categories):
        return _nonsense("the categories are no list of names", content)
    if label == "safe" and categories:
        return _nonsense("the label is safe, but categories are named", content)
    return vote(label, categories)


def vote(label: Any, names: list[str]) -> Vote:
    """A vote with the taxonomy's names for `names`, each once; those of no taxonomy go to `unknown`."""
    known, unknown = [], []
    for name in names:
        hazard = taxonomy.find(name)
        if hazard is None:
            unknown.append(name)
        else:
            known.append(hazard.name)
    return Vote(label, tuple(dict.fromkeys(known)), tuple(dict.fromkeys(unknown)))


def _nonsense(what: str, content: Any) -> Abstention:
    return Abstention("nonsense", f"{what}: {_quote(content)}")


def _quote(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")
