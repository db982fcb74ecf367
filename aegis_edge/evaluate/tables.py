"""A report to tables: what the terminal and the page show alike."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aegis_edge import taxonomy
from aegis_edge.evaluate.summary import TURNS
from aegis_edge.tables import Table

_NOTES = {
    "by_source": "Of the data, as its files tell.",
    "by_category": "The unsafe dialogues of a category against all that is safe. A category belongs to the "
    "dialogue: it need not be the turn's.",
    "by_label_source": "Who labelled, where the file tells.",
}
_PARTS = {"by_source": "source", "by_category": "category", "by_label_source": "label source"}
_COLUMNS = ("turns", "unsafe", "precision", "recall", "F1", "FPR", "AUROC", "AUPRC", "ECE")
_KEYS = ("precision", "recall", "f1", "false_positive_rate", "auroc", "auprc", "ece")


def tables(report: Mapping[str, Any]) -> list[Table]:
    """The report's tables, in order; those without a line are left out."""
    guards = report["guards"]
    found = [_overall(guards), _coverage(guards), *_comparison(report), _following(guards), _topics(guards)]
    found += [table for guard in guards for table in _parts(guard, guards)]
    found += [_attribution(guard, guards) for guard in guards]
    return [table for table in found if table.lines]


def number(value: float | None, signed: bool = False) -> str:
    """A share to three digits; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:+.3f}" if signed else f"{value:.3f}"


def _overall(guards: Sequence[Mapping[str, Any]]) -> Table:
    """A column a guard and turn, a line a metric."""
    found = [(_title(turn, guard, guards), guard[turn]) for guard in guards for turn in TURNS if guard[turn]]
    lines = [
        ("turns judged", *(f"{of['overall']['n']:,}" for _, of in found)),
        ("unsafe", *(f"{of['overall']['positives']:,}" for _, of in found)),
        ("threshold", *(f"{of['threshold']:g}" for _, of in found)),
    ]
    for name, key in (
        ("precision", "precision"),
        ("recall", "recall"),
        ("F1", "f1"),
        ("accuracy", "accuracy"),
        ("false positive rate (FPR)", "false_positive_rate"),
        ("AUROC", "auroc"),
        ("AUPRC", "auprc"),
        ("expected calibration error (ECE)", "ece"),
        ("ECE of exact probabilities on as many", "ece_by_chance"),
    ):
        lines.append((name, *(number(of["overall"][key]) for _, of in found)))
    for name, key in (("FPR at recall", "fpr_at_recall"), ("recall at FPR", "recall_at_fpr")):
        points = found[0][1]["overall"][key] if found else ()
        lines += [
            (f"{name} {point}", *(number(of["overall"][key][point]) for _, of in found)) for point in points
        ]
    note = "Unsafe is the positive class. Verdicts at the guard's own thresholds."
    return Table("Figures", note, ("", *(title for title, _ in found)), tuple(lines) if found else ())


def _coverage(guards: Sequence[Mapping[str, Any]]) -> Table:
    lines = tuple(
        (_title(turn, guard, guards), *(f"{guard['coverage'][turn][key]:,}" for key in _COVERAGE))
        for guard in guards
        for turn in TURNS
        if guard["coverage"][turn]["labelled"]
    )
    note = "Too long: the text does not fit the context and was left out. Cut: judged by its beginning alone."
    return Table("What was judged", note, ("turn", *(key.replace("_", " ") for key in _COVERAGE)), lines)


_COVERAGE = ("labelled", "judged", "cut", "too_long")


def _parts(guard: Mapping[str, Any], guards: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    for turn in TURNS:
        for part, name in _PARTS.items() if guard[turn] else ():
            groups = guard[turn][part]
            lines = tuple((_name(key), *_line(figures)) for key, figures in groups.items())
            yield Table(
                f"{_title(turn, guard, guards).capitalize()}, by {name}",
                _NOTES[part],
                (name, *_COLUMNS),
                lines,
            )


def _line(figures: Mapping[str, Any]) -> tuple[str, ...]:
    return (f"{figures['n']:,}", f"{figures['positives']:,}", *(number(figures[key]) for key in _KEYS))


def _attribution(guard: Mapping[str, Any], guards: Sequence[Mapping[str, Any]]) -> Table:
    lines = tuple(
        (
            _name(code),
            f"{of['certain']:,}",
            number(of["recall"]),
            f"{of['claims']:,}",
            number(of["precision"]),
        )
        for code, of in guard["attribution"].items()
    )
    note = (
        "Of unsafe dialogues found unsafe. Recall: named where the category is certain. Precision: certain "
        "where it is named, of those claims that can be decided."
    )
    title = _title("categories named", guard, guards).capitalize()
    return Table(title, note, ("category", "certain", "recall", "claims", "precision"), lines)


def _comparison(report: Mapping[str, Any]) -> list[Table]:
    if not report["comparison"]:
        return []
    first, second = (guard["name"] for guard in report["guards"])
    lines = []
    for turn in TURNS:
        of = report["comparison"][turn]
        if of:
            low, high = of["interval"]
            lines.append(
                (
                    turn,
                    f"{of['pairs']:,}",
                    f"{of['flips']:.2%}",
                    f"{of['to_unsafe']:,} / {of['to_safe']:,}",
                    f"{of['mended']:,} / {of['broken']:,}",
                    f"{number(of['f1'][0])} -> {number(of['f1'][1])}",
                    f"{number(of['difference'], True)} [{number(low, True)}, {number(high, True)}]",
                )
            )
    note = (
        f"From {first} to {second}, on the turns both judged. The interval of the F1 difference holds 95 % "
        "of paired bootstrap samples."
    )
    columns = ("turn", "pairs", "flips", "to unsafe / safe", "mended / broken", "F1", "difference")
    return [Table("Two guards", note, columns, tuple(lines))]


def _following(guards: Sequence[Mapping[str, Any]]) -> Table:
    lines = []
    uncovered = gone = 0
    for guard in guards:
        found = guard.get("policy_following")
        if not found:
            continue
        uncovered, gone = found["uncovered"], found["all_gone"]
        for turn in TURNS:
            if found[turn]:
                title = _title(turn, guard, guards)
                lines.append((title, *_shares(found[turn])))
                lines += [(f"  {_name(c)}", *_shares(of)) for c, of in found[turn]["by_category"].items()]
    note = (
        "Of what the guard flags rightly: let through under the policy without any category that may hold; "
        f"still flagged under these categories alone. Not measured: {uncovered} whose categories no policy "
        f"of the run leaves out, {gone} to which every category may apply (of the last guard)."
    )
    return Table("Policy following", note, ("", "flagged", "let through", "still flagged"), tuple(lines))


def _topics(guards: Sequence[Mapping[str, Any]]) -> Table:
    lines = []
    notes = []
    for guard in guards:
        found = guard.get("topic_following")
        if found:
            lines.append((guard["name"], *_two(found)))
            lines += [(f"  {kind}", *_two(of)) for kind, of in found["by_kind"].items()]
            lines += [(f"  {topic}", *_two(of)) for topic, of in found["by_topic"].items()]
            notes.append(_OWN_TOPICS)
        found = guard.get("topic_dialogues")
        if found:
            lines.append((f"{guard['name']}, published dialogues", *_two(found)))
            lines.append((f"  {found['turns']:,} users' turns let through", number(found["kept"]), ""))
            lines.append((f"  {found['distractors']:,} distractors flagged", number(found["found"]), ""))
            lines += [(f"  {domain}", *_two(of)) for domain, of in found["by_domain"].items()]
            notes.append(_DIALOGUES)
    return Table("Topic following", " ".join(dict.fromkeys(notes)), ("", "accuracy", "AUROC"), tuple(lines))


_OWN_TOPICS = (
    "The project's own prompts under policies that allow one topic alone, or forbid it; the topics are "
    "held out of training, and half of the prompts break the policy."
)
_DIALOGUES = (
    "Published dialogues: users' turns against distractors, each judged alone under a policy that allows the "
    "dialogue's topic alone; accuracy is the mean of the two shares."
)


def _two(of: Mapping[str, Any]) -> tuple[str, str]:
    return number(of["accuracy"]), number(of["auroc"])


def _shares(of: Mapping[str, Any]) -> tuple[str, str, str]:
    return f"{of['flagged']:,}", f"{of['let_through']:.1%}", f"{of['still_flagged']:.1%}"


def _title(turn: str, guard: Mapping[str, Any], guards: Sequence[Mapping[str, Any]]) -> str:
    return turn if len(guards) == 1 else f"{turn}, {guard['name']}"


def _name(key: str) -> str:
    hazard = taxonomy.find(key)
    return f"{hazard.code} {hazard.name}" if hazard is not None and hazard.code == key else key
