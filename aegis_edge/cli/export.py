"""`aegis-edge export`: base and adapter to a guard."""

from __future__ import annotations

from pathlib import Path

from aegis_edge.cli.output import extra
from aegis_edge.guard import default_guard_path
from aegis_edge.policy import Policy


def export(
    base: str,
    adapter: str | None,
    family: str,
    policy: Path | None,
    out: Path | None,
    quantize: str | None,
    rounding: str,
    target: str,
    calibration: Path | None,
    force: bool,
) -> None:
    """Export and print what came of it. Raises ExportError."""
    with extra("export", "an export"):
        from aegis_edge.export.pipeline import export_guard

    rules = None if policy is None else Policy.from_file(policy)
    done = export_guard(
        base,
        adapter,
        family,
        rules,
        out=out or default_guard_path(),
        quantize=quantize,
        rounding=rounding,
        target=target,
        calibration=calibration,
        force=force,
    )
    print(done.summary())
