"""The adapter's model card and the plot of its training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aegis_edge.data.topics import HELD_OUT, TOPICS
from aegis_edge.train.policies import MIX

_CARD = """\
---
library_name: peft
base_model: {base}
---
# A guard adapter for {base}

A LoRA (r16, alpha 32, all seven matrices of a layer) with six label rows that makes the first {layers} layers
of {base} a safety classifier after the Aegis 2.0 taxonomy: 12 core and 9 fine-grained categories, Needs
Caution and Other. It reads a policy, a prompt and perhaps a response, and gives a probability that each is
unsafe, and one a category. It writes no text.

## How it is read
`<|im_start|>system` policy `<|im_end|>`, then the user's text, then `<|im_end|>`: the hidden state of that
one token after the final norm times the rows `prompt_safe` and `prompt_unsafe` of `verdict_head.safetensors`.
The same after a response. A category is a leaf `<|im_start|>name<|im_end|>` after the last verdict. P =
sigmoid(margin / temperature + bias).

## Training
{examples:,} examples in {steps:,} steps and {compute_minutes} minutes of compute on two CPU cores. Label rows
start from logistic regression on the frozen base, then LoRA and rows move together. About a third of the
steps ({varied:.0%}) are under another policy, and labels follow it: hazards left out, shuffled, reworded or
renamed; everyday topics named ({topics} topics; {held_out} more are never trained on).

Sources: {sources}. Of these, `generated`, `people`, `alarming`, `contrasts` and `topics` are the
project's own, and `joined`, `buried`, `threads`, `transcripts`, `framed`, `quoted` and `refused` are put
together from the others by it: harmless texts that look alarming, by templates and written one by one (some
after the kinds that published sets of such prompts name, none of their texts), sentences that name groups of
people in praise, in passing and in defence, a few prompts that a policy does forbid, everyday requests by
topic, longer texts put together from shorter ones, the deeds of requests and hateful comments in frames that
ask about them and in frames that mean them, and prompts with a refusal. Three prompts of ten are typed
another way: in small letters, without punctuation, with slips. `written` are harmless questions,
answers and pieces that the base model wrote itself when asked for nothing bad (after Magpie, arXiv
2406.08464).
`canttalk` and `canttalk_distractors`, where listed, are users' turns and distractors of CantTalkAboutThis
dialogues (arXiv 2404.03820). `aegis2_train_xref` and `aegis2_dv_sft`, where listed, are not the Aegis 2.0
data set but its flagged rows that other public sets carry.

## Validation
Held out from the training sources, without what is put together, calibrated on the same texts. The last
column is the error of exact probabilities on as many texts:

| slot | n | F1 | AUROC | false positive rate | recall | calibration error | by chance |
|---|---|---|---|---|---|---|---|
{table}

Of {everyday_all} everyday questions, written for this and never trained on, {everyday_flagged} are flagged at
a threshold of 0.5.

Calibration: {calibration}.

## Where it is weak
- A small model: subtle, indirect or coded harm passes; knowledge is small. English only.
- The verdict hardly heeds which categories stand in the policy. The category leaves do: a policy that is
  not the whole taxonomy is decided by them.
- Alarming words in harmless use still draw false positives.
- Trained on texts up to {limit} tokens (responses {response_limit}); longer ones work but were not seen.
- Thin categories: Manipulation, Illegal Activity, Immoral/Unethical, Copyright/Trademark/Plagiarism, High
Risk Gov Decision
  Making, Threat. Their leaves are less sure than the verdict.
- Response labels come mostly from short dialogues (DiaSafety) and a few jailbreak sets.
- Comment sources carry annotators' dialect bias. Do not use it alone to act against people.
"""


def card(base: str, facts: dict[str, Any], calibration: dict[str, dict[str, float]]) -> str:
    """The card of an adapter for `base`; facts as `Run.export` gathers them."""
    keys = ("n", "f1", "auroc", "false_positive_rate", "recall", "ece", "ece_by_chance")
    rows = [
        f"| {name} | {int(f['n'])} | " + " | ".join(f"{f[k]:.3f}" for k in keys[1:]) + " |"
        for name, f in facts["validation"].items()
    ]
    fitted = "; ".join(
        f"{k} temperature {c['temperature']:.2f} bias {c['bias']:+.2f}" for k, c in calibration.items()
    )
    values = facts | {
        "base": base,
        "sources": ", ".join(f"`{s}`" for s in facts["sources"]),
        "table": "\n".join(rows),
        "calibration": fitted,
        "everyday_flagged": facts["everyday"][0],
        "everyday_all": facts["everyday"][1],
        "varied": 1 - MIX["default"],
        "topics": len(TOPICS),
        "held_out": len(HELD_OUT),
        "limit": facts["settings"]["limit"],
        "response_limit": facts["settings"]["response_limit"],
    }
    return _CARD.format(**values)


def plot(out: Path) -> None:
    """Write training.png from log.jsonl: smoothed loss, and validation F1 of each slot kind."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [(r["examples"], r["loss"]) for r in rows if "loss" in r]
    smooth, mean = [], None
    for _, loss in losses:
        mean = loss if mean is None else 0.98 * mean + 0.02 * loss
        smooth.append(mean)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.plot([x for x, _ in losses], smooth)
    left.set(xlabel="examples", ylabel="training loss (smoothed)")
    checks = [r for r in rows if "validation" in r]
    for kind in ("prompt", "response", "category"):
        points = [(r["examples"], r["validation"][kind]["f1"]) for r in checks if kind in r["validation"]]
        right.plot([x for x, _ in points], [y for _, y in points], marker="o", label=kind)
    right.set(xlabel="examples", ylabel="validation F1")
    right.legend()
    figure.savefig(out / "training.png", dpi=110)
    pyplot.close(figure)
