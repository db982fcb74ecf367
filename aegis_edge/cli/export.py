"""`aegis-edge export`: base and adapter to a guard."""

from __future__ import annotations

from pathlib import Path

from aegis_edge.cli.output import extra
from aegis_edge.errors import ExportError
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
    legacy: bool = False,
) -> None:
    """Export and print what came of it. legacy: the older form of the target's format. Raises ExportError."""
    if legacy and target != "tensorrt-llm":
        raise ExportError(f"--legacy is for --target tensorrt-llm, not {target}", hint="leave it out")
    if legacy:
        target = "tensorrt-llm-legacy"
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
