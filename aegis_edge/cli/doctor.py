"""`aegis-edge doctor`: what this machine can run, and how fast it could be."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from aegis_edge import __version__, machine
from aegis_edge.cli.output import print_rows
from aegis_edge.guard import default_guard_path

# What a check needs, then what only an export needs.
PACKAGES = ("numpy", "tokenizers", "safetensors", "typer", "rich", "torch", "transformers", "peft", "gguf")


def doctor(threads: int | None, *, as_json: bool) -> None:
    """Measure (about a second) and print. Raises ScorerError where the compiled runtime is unusable."""
    found = examine(threads)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        _print(found)


def examine(threads: int | None) -> dict[str, Any]:
    """JSON-ready; speeds in operations and bytes a second."""
    about = machine.describe(threads)
    folder = Path(os.environ.get("AEGIS_EDGE_GUARD") or default_guard_path())
    return {
        "aegis_edge": __version__,
        **about,
        "forced_isa": machine.forced_isa(),
        **machine.peaks(about["threads"]),
        "packages": machine.versions(*PACKAGES),
        "guard": {"path": str(folder), "found": folder.is_dir()},
    }


def _print(found: dict[str, Any]) -> None:
    others = ", ".join(name for name in found["available_isas"] if name != found["isa"])
    forced = ", forced by AEGIS_EDGE_ISA" if found["forced_isa"] else ""
    guard = found["guard"]
    absent = [name for name, number in found["packages"].items() if number is None]
    rows = {
        "aegis-edge": f"{found['aegis_edge']}, Python {found['python']}, {found['platform']}",
        "processor": found["cpu"],
        "instruction set": f"{found['isa']}{forced} (also: {others or 'none'})",
        "threads": str(found["threads"]),
        "int8 peak": f"{found['int8_peak'] / 1e9:.0f} GOPS, measured from registers",
        "memory": f"{found['read_bandwidth'] / 1e9:.1f} GB/s, measured reading",
        "packages": ", ".join(f"{name} {number}" for name, number in found["packages"].items() if number),
        "not installed": ", ".join(absent) or "nothing",
        "default guard": guard["path"]
        if guard["found"]
        else f"none at {guard['path']}; make it with: aegis-edge export",
    }
    print_rows(rows.items())
