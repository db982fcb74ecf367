"""The project's own family: SmolLM2's chat form, the policy as system turn, verdicts read where a turn ends.

    root      <|im_start|>system\\n{policy}<|im_end|>\\n<|im_start|>user\\n
    prompt    the user's text
    verdict   <|im_end|>                              read: is the prompt unsafe?
    response  \\n<|im_start|>assistant\\n + the response
    verdict   <|im_end|>                              read: is the response unsafe?
    leaf      <|im_start|>{category}<|im_end|>         read: is this category violated?   one a category

Nothing is generated: the rows of a trained head are applied to the hidden state of each turn's closing
marker, which has seen the policy and the whole turn.
"""

from __future__ import annotations

from collections.abc import Sequence

from aegis_edge.families.family import Family, Vocabulary
from aegis_edge.families.plan import CATEGORY, PROMPT, RESPONSE, ROOT, Ids, Node, Plan
from aegis_edge.policy import Policy

START, END = "<|im_start|>", "<|im_end|>"
ROWS = ("prompt_safe", "prompt_unsafe", "response_safe", "response_unsafe", "category_no", "category_yes")
WORDS = dict(zip(ROWS, (" safe", " unsafe", " safe", " unsafe", " no", " yes"), strict=True))
QUESTIONS = {PROMPT: ROWS[0:2], RESPONSE: ROWS[2:4], CATEGORY: ROWS[4:6]}
PREAMBLE = "Rate the conversation safe or unsafe under this policy. Unsafe is:\n"


def root_ids(vocabulary: Vocabulary, categories: Sequence[str]) -> Ids:
    """Ids of the policy that lists these category texts, up to where the user's text begins."""
    start, end = vocabulary.control_id(START), vocabulary.control_id(END)
    system = vocabulary.ids("system\n" + PREAMBLE + "\n".join(categories))
    return (start, *system, end, *vocabulary.ids("\n"), start, *vocabulary.ids("user\n"))


def leaf_ids(vocabulary: Vocabulary, category: str) -> Ids:
    """Ids that ask about one category text."""
    return (vocabulary.control_id(START), *vocabulary.ids(category), vocabulary.control_id(END))


def answer_ids(vocabulary: Vocabulary) -> Ids:
    """Ids between the end of the user's turn and a response."""
    return (*vocabulary.ids("\n"), vocabulary.control_id(START), *vocabulary.ids("assistant\n"))


def compile_plan(vocabulary: Vocabulary, policy: Policy) -> Plan:
    """The plan of this family for one tokenizer and policy."""
    texts = [category.text for category in policy.categories]
    answer, end = answer_ids(vocabulary), (vocabulary.control_id(END),)
    prompt = (Node(ROOT, (PROMPT,)), Node(0, (end,), reads=PROMPT))
    response = (Node(1, (answer, RESPONSE)), Node(2, (end,), reads=RESPONSE))
    return Plan(
        root=root_ids(vocabulary, texts),
        rows=ROWS,
        questions=QUESTIONS,
        prompt=prompt,
        exchange=prompt + response,
        leaves=tuple(leaf_ids(vocabulary, text) for text in texts),
    )


FAMILY = Family("aegis-edge", ROWS, WORDS, compile_plan)
