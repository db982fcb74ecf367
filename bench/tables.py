"""Rows to tables: what the terminal and the page show alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aegis_edge.bench.length import FROM, TO
from aegis_edge.bench.stages import STAGES
from aegis_edge.cli.output import size

Row = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """A title, a sentence on how to read it, column names, and lines of as many cells; the first is the
    scorer."""

    title: str
    note: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def tables(rows: Sequence[Row]) -> list[Table]:
    """The report's tables, in order; those without a row are left out."""
    found = [_fidelity(rows), *_times(rows), _lengths(rows), _stages(rows), _bindings(rows), _costs(rows)]
    found.append(_details(rows))
    return [table for table in found if table.lines]


def scorers(rows: Sequence[Row]) -> list[str]:
    """Names in the order of their first row."""
    return list(dict.fromkeys(row["scorer"] for row in rows))


def of_kind(rows: Sequence[Row], kind: str) -> list[Row]:
    return [row for row in rows if row["kind"] == kind]


def milliseconds(value: float) -> str:
    """Three significant digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _fidelity(rows: Sequence[Row]) -> Table:
    found = of_kind(rows, "fidelity")
    prompts = f"{found[0]['verdicts']} verdicts ({found[0]['prompts']} prompts)" if found else ""
    return Table(
        "Verdicts against the fp32 parent",
        f"Measured before anything was timed, on {prompts}. far: flips where the parent's probability is "
        "outside 0.3 to 0.7. Margin: logit of unsafe minus logit of safe.",
        ("scorer", "flips", "far", "mean margin error", "of the margins' std", "worst margin error"),
        tuple(
            (
                row["scorer"],
                f"{row['flips']:.2%}",
                str(row["far_flips"]),
                f"{row['margin_error']:.4f}",
                f"{row['relative_error']:.2%}",
                f"{row['worst']:.3f}",
            )
            for row in found
        ),
    )


def _times(rows: Sequence[Row]) -> list[Table]:
    found = of_kind(rows, "time")
    groups: list[tuple[str, Callable[[Row], bool]]] = [
        ("One check, the guard's own policy", lambda row: row["group"] == "policy"),
        ("One check, no policy: the whole forward pass", lambda row: row["group"] == "bare"),
        ("One check after a long policy; a batch", lambda row: row["group"] == "other"),
    ]
    return [_time(title, [row for row in found if belongs(row)], rows) for title, belongs in groups]


def _time(title: str, found: Sequence[Row], rows: Sequence[Row]) -> Table:
    names = list(dict.fromkeys(row["scenario"] for row in found))
    flips = {row["scorer"]: f"{row['flips']:.2%}" for row in of_kind(rows, "fidelity")}
    medians = {(row["scorer"], row["scenario"]): row["p50_ms"] for row in found}
    lines = []
    first = scorers(found)[0] if found else ""
    for scorer in scorers(found):
        cells = []
        for name in names:
            value = medians[scorer, name]
            ratio = value / medians[first, name]
            cells.append(milliseconds(value) + (f" ({ratio:.1f}x)" if scorer != first else ""))
        lines.append((scorer, flips.get(scorer, ""), *cells))
    limits = {row["scenario"]: row.get("limit_ms") for row in found}
    if found and all(limits.values()):
        lines.append(("machine's limit", "", *(milliseconds(float(limits[name] or 0)) for name in names)))
    note = f"Median milliseconds end to end, tokenising included; in brackets as a multiple of {first}'s."
    return Table(title, note, ("scorer", "flips", *names), tuple(lines))


def _lengths(rows: Sequence[Row]) -> Table:
    under = {"policy": "the guard's own", "bare": "none"}
    found = of_kind(rows, "length")
    shown = found[0]["tokens"] if found else []
    return Table(
        "Cost against length",
        f"Microseconds a token; growth of that from {FROM} to {TO} tokens; attention's share of the longest, "
        "fitted as what grows with the keys looked at; deviation: the largest from linear beyond it.",
        ("scorer", "policy", *(f"{n} tokens" for n in shown), "growth", "attention", "deviation"),
        tuple(
            (
                row["scorer"],
                under[row["group"]],
                *(milliseconds(value) for value in row["per_token_us"]),
                *(f"{row[key]:.1%}" for key in ("growth", "attention_share", "deviation")),
            )
            for row in found
        ),
    )


def _bindings(rows: Sequence[Row]) -> Table:
    found = of_kind(rows, "binding")
    value = {(row["binding"], row["call"]): row["p50_us"] for row in found}
    tokens = found[0]["tokens"] if found else 0
    return Table(
        "What the binding costs",
        "The same calls through three bindings, median microseconds: one with nothing to do, and a check's "
        f"pass over {tokens} tokens.",
        ("binding", "trivial", "real"),
        tuple(
            (name, f"{value[name, 'trivial']:.2f}", f"{value[name, 'real']:.1f}")
            for name in dict.fromkeys(row["binding"] for row in found)
        ),
    )


def _stages(rows: Sequence[Row]) -> Table:
    found = of_kind(rows, "stage")
    columns = (*STAGES, "total", "unsafe")
    value = {(row["scorer"], row["tokens"], row["stage"]): row["p50_ms"] for row in found}
    return Table(
        "Stages of a check",
        "Median milliseconds. total: the whole call; unsafe: the same where the verdict is unsafe, which "
        "adds a pass over a leaf a category.",
        ("scorer", "tokens", *columns),
        tuple(
            (scorer, str(tokens), *(milliseconds(value[scorer, tokens, stage]) for stage in columns))
            for scorer, tokens in dict.fromkeys((row["scorer"], row["tokens"]) for row in found)
        ),
    )


def _costs(rows: Sequence[Row]) -> Table:
    return Table(
        "What a scorer costs to have",
        "In a process of its own: imports, weights, policy; the first check after it; the most memory held.",
        ("scorer", "load", "first check", "peak memory"),
        tuple(
            (
                row["scorer"],
                f"{row['load_seconds']:.2f} s",
                f"{milliseconds(1e3 * row['first_check_seconds'])} ms",
                size(row["peak_bytes"]),
            )
            for row in of_kind(rows, "cost")
        ),
    )


def _details(rows: Sequence[Row]) -> Table:
    return Table(
        "Every measurement",
        "Milliseconds a call. Peak: share of the int8 peak that the call's necessary multiplies come to, "
        "attention not counted; the median of peaks measured in turns with the scorers.",
        ("scorer", "scenario", "p50", "p90", "p99", "samples", "checks a second", "peak"),
        tuple(
            (
                row["scorer"],
                row["scenario"],
                *(milliseconds(row[f"p{share}_ms"]) for share in (50, 90, 99)),
                str(row["samples"]),
                f"{row['checks_per_second']:.1f}",
                f"{row['share_of_peak']:.0%}",
            )
            for row in of_kind(rows, "time")
        ),
    )
