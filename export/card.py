"""The model card that goes with an artefact: what it is, where it comes from, how far it moved from its
parent."""

from __future__ import annotations

from aegis_edge.export.targets import Build

_SCHEMES = {
    "w8a8": "int8 weights a channel, int8 activations a token",
    "w4a8": "int4 weights in groups of 32, int8 activations a token",
    "bf16": "bf16 weights and activations",
}


def model_card(build: Build, size: int) -> str:
    """README.md of an artefact of about `size` bytes, as Markdown with a Hugging Face header."""
    base, adapter = build.provenance["base"], build.provenance["adapter"]
    dims = build.trunk.dims
    worst = sorted(build.errors.items(), key=lambda item: -item[1])[:5]
    layers = "\n".join(f"| {name} | {error:.2%} |" for name, error in worst)
    trained = f"the LoRA adapter `{adapter['name']}` merged in" if adapter else "no adapter"
    is_nearest = build.provenance.get("rounding") == "nearest"
    nearest = ", rounded to nearest without calibration" if is_nearest else ""
    return f"""{front_matter(build)}
# Guard on {base["model"]}

A guard for prompts and responses of language models, made by `aegis-edge export`: {base["model"]} with
{trained}, family `{build.family.name}`, {_SCHEMES[build.scheme]}{nearest} ({size / 1e6:.0f} MB).
It answers safe or unsafe with a probability, and the violated categories. It runs in `aegis-edge`; the
weights are laid out for that runtime (aegis.json says how).

```python
from aegis_edge import Guard

Guard.load("this-folder").check("How do I pick a lock?")
```

{policy_section(build)}
## Fidelity

{fidelity_table(build)}
The projections that moved most, error relative to the parent's output:

| projection | error |
|---|---|
{layers}

## Model

{dims.layers} layers, hidden {dims.hidden}, {dims.heads} heads of {dims.head_dim} ({dims.kv_heads} key heads),
MLP {dims.intermediate}, vocabulary {dims.vocab}, context {dims.context}.

Made with: `{build.provenance["command"]}`

A guard is one layer of defence. It errs in both directions, and more often on text unlike its training text.
"""


def front_matter(build: Build) -> str:
    """The header that the Hugging Face hub reads."""
    base = build.provenance["base"]
    licence = f"license: {base['licence'].lower()}\n" if "licence" in base else ""
    return f"""---
library_name: aegis-edge
pipeline_tag: text-classification
{licence}base_model: {base["model"]}
---
"""


def policy_section(build: Build) -> str:
    """The policy's categories under a heading."""
    categories = "\n".join(f"- {category.text}" for category in build.policy.categories)
    if build.family.spoken is not None and build.family.spoken.line is None:
        categories = "The one that the checkpoint's chat template holds."
    return f"""## Policy

{len(build.plan.root)} tokens, {len(build.policy.categories)} categories:

{categories}
"""


def fidelity_table(build: Build) -> str:
    """How far the guard moved from its parent."""
    fidelity = build.fidelity
    return f"""Against the parent in fp32, on {fidelity.slots} verdicts over
    {build.provenance["calibration"]["name"]}:

| | |
|---|---|
| verdicts that differ | {fidelity.flips:.2%} |
| of those, where the parent's probability is outside 0.3 to 0.7 | {fidelity.far_flips} |
| mean margin error | {fidelity.margin_error:.4f} |
| the same over the margins' standard deviation | {fidelity.relative_error:.1%} |
"""
