"""README.md of a folder exported for another engine: what is in it, how to run it, how to read a verdict,
what was checked.
"""

from __future__ import annotations

from aegis_edge.export.card import fidelity_table, front_matter, policy_section
from aegis_edge.export.targets import Build
from aegis_edge.export.targets.vocabulary import Vocabulary
from aegis_edge.families.plan import PROMPT, ROOT, Plan

_SHARED_FILES = {
    "tokenizer.json": "the base's tokenizer and the label tokens",
    "aegis_head.json": "the compiled policy, label tokens, calibration, thresholds, provenance",
    "aegis_head.safetensors": "the label rows in fp32, for the hidden state after the final norm",
}


def readme(
    build: Build, vocabulary: Vocabulary, *, engine: str, files: dict[str, str], run: str, checked: str
) -> str:
    """engine: for the title; files: name -> what it is; run: Markdown with the commands for the target
    machine; checked: Markdown, what this project has run of that and what not.
    """
    base, adapter = build.provenance["base"], build.provenance["adapter"]
    trained = f"the LoRA adapter `{adapter['name']}` merged in" if adapter else "no adapter"
    listing = "\n".join(f"- `{name}`: {what}" for name, what in (files | _SHARED_FILES).items())
    return f"""{front_matter(build)}
# Guard on {base["model"]}, for {engine}

{base["model"]} with {trained}, family `{build.family.name}`, weights in {build.scheme}, made by
`{build.provenance["command"]}`. A guard for prompts and responses of language models.

{listing}

## Running it

{run}
{_verdict_section(build, vocabulary)}
{policy_section(build)}
## What was checked

{checked}

{fidelity_table(build)}
The figures are a simulation of this format in fp32, made by the export; the engine's own arithmetic is not in
them. A guard is one layer of defence. It errs in both directions, and more often on text unlike its training
text.
"""


def _verdict_section(build: Build, vocabulary: Vocabulary) -> str:
    rows, plan = build.parent.head.rows, build.plan
    scaling = build.parent.calibration[PROMPT]
    tokens = ", ".join(f"`{row}` {token}" for row, token in zip(rows, vocabulary.tokens, strict=True))
    ids = " + ".join("ids of the text" if isinstance(part, str) else str(list(part)) for part in _path(plan))
    head = "stand in the LM head as tokens of their own"
    if build.parent.head.token_ids is not None:
        head = "are rows of the LM head that the base has"
    return f"""
## Reading a verdict

`exported_guard` above does all of this: templates, categories, calibration, thresholds. By hand, for a prompt
alone:

    ids  = plan.root_ids + {ids}
    m    = {_margin(build, vocabulary)}
    P    = 1 / (1 + exp(-(m / {scaling["temperature"]:.6g} + {scaling["bias"]:.6g})))

The logits are those for the token after the last id; P is the calibrated probability of unsafe. The text is
encoded without control tokens{_notes(plan)}

The label rows {head}: {tokens}. An LM head has no bias, so the rows' own
are in aegis_head.json and in the formula. With the hidden state h after the final norm, `weight @ h + bias`
of aegis_head.safetensors gives the same logits in fp32. Feed ids, never text: a chat template or an engine's
own tokenising would let content spell control tokens. The plan's nodes for responses and its category leaves
are read the same way, each at the last id of the path that leads to it.
"""


def _path(plan: Plan) -> list[tuple[int, ...] | str]:
    """The parts behind the root on the way to where a verdict on a prompt is read first."""
    index = next(i for i, node in enumerate(plan.prompt) if node.reads == PROMPT)
    parts: list[tuple[int, ...] | str] = []
    while index != ROOT:
        parts[:0] = plan.prompt[index].parts
        index = plan.prompt[index].parent
    return parts


def _notes(plan: Plan) -> str:
    """The rest of a sentence: what is peculiar to this plan."""
    before, after = plan.seams.get(PROMPT, ("", ""))
    seam = f", together with {before!r} before and {after!r} behind it." if before or after else "."
    if not plan.each:
        return seam
    return f"{seam} This is the first of {plan.each} categories: each is asked about in a node of its own."


def _margin(build: Build, vocabulary: Vocabulary) -> str:
    """The margin of a prompt's verdict in terms of logits. Of three words, the two that are not safe count
    together (weighing.py)."""
    bias = build.trunk.head_bias
    safe, *others = (build.parent.head.rows.index(row) for row in build.plan.questions[PROMPT])
    shifts = [float(bias[other] - bias[safe]) for other in others]
    logits = [f"logit[{vocabulary.tokens[other]}]" for other in others]
    before = f"logit[{vocabulary.tokens[safe]}]"
    if len(others) == 1:
        return f"{logits[0]} - {before} + {shifts[0]:.6g}"
    terms = [f"exp({logit} + {shift:.6g})" for logit, shift in zip(logits, shifts, strict=True)]
    return f"log({' + '.join(terms)}) - {before}"


def python_recipe(load: str, ask: str) -> str:
    """The Python of a README: what loads the engine, and the body of `ask` over `paths` and `tokens`."""
    body = "\n".join(f"    {line}" for line in ask.strip().splitlines())
    return f"""```python
{load.strip()}

from aegis_edge.exported import exported_guard


def ask(paths, tokens):
{body}


guard = exported_guard(".", ask)
print(guard.check("How do I pick a lock?"))
```
"""
