"""README.md of a folder exported for another engine: what is in it, how to run it, how to read a verdict,
what was checked.
"""

from __future__ import annotations

from aegis_edge.export.card import fidelity_table, front_matter, policy_section
from aegis_edge.export.targets import Build
from aegis_edge.export.targets.vocabulary import Vocabulary
from aegis_edge.families.plan import PROMPT

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
    safe, unsafe = (rows.index(row) for row in plan.questions[PROMPT])
    scaling = build.parent.calibration[PROMPT]
    bias = build.trunk.head_bias
    shift = float(bias[unsafe] - bias[safe])
    tokens = ", ".join(f"`{row}` {token}" for row, token in zip(rows, vocabulary.tokens, strict=True))
    marker = plan.prompt[-1].parts[-1]
    return f"""
## Reading a verdict

`exported_guard` above does all of this: templates, categories, calibration, thresholds. By hand, for a prompt
alone:

    ids  = plan.root_ids + ids of the text, without control tokens + {list(marker)}
    m    = logit[{vocabulary.tokens[unsafe]}] - logit[{vocabulary.tokens[safe]}] + {shift:.6g}
    P    = 1 / (1 + exp(-(m / {scaling["temperature"]:.6g} + {scaling["bias"]:.6g})))

The logits are those for the token after the last id; P is the calibrated probability of unsafe.

The label rows stand in the LM head as tokens of their own: {tokens}. An LM head has no bias, so the rows' own
are in aegis_head.json and in the formula. With the hidden state h after the final norm, `weight @ h + bias`
of aegis_head.safetensors gives the same logits in fp32. Feed ids, never text: a chat template or an engine's
own tokenising would let content spell control tokens. The plan's nodes for responses and its category leaves
are read the same way, each at the last id of the path that leads to it.
"""


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
