"""What this machine is and what it can do at most: for `doctor`, and beside every measured figure."""

from __future__ import annotations

import importlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from aegis_edge.errors import ScorerError


def describe(threads: int | None = None) -> dict[str, Any]:
    """JSON-ready: processor, instruction sets, threads (None: all this process may use). Raises ScorerError
    where the compiled runtime is missing or AEGIS_EDGE_ISA names an instruction set that it can not use."""
    native = _native()
    try:
        isa = native.isa()
    except ValueError as error:
        raise ScorerError(str(error), hint="unset AEGIS_EDGE_ISA to use the best one") from error
    return {
        "cpu": cpu_model(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "isa": isa,
        "available_isas": native.available_isas(),
        "threads": threads or native.usable_threads(),
    }


def peaks(threads: int, seconds: float = 0.3) -> dict[str, float]:
    """Measured in `seconds` each: int8 operations a second from registers, bytes a second from memory."""
    native = _native()
    return {
        "int8_peak": native.int8_peak(threads, seconds),
        "read_bandwidth": native.read_bandwidth(threads, seconds=seconds),
    }


def versions(*packages: str) -> dict[str, str | None]:
    """Installed version of each package, None where it is not installed. Imports none of them."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def cpu_model() -> str:
    """The processor's name as the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() == "model name":
                    return value.strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def forced_isa() -> str | None:
    """The instruction set that AEGIS_EDGE_ISA asks for, None where it is unset."""
    return os.environ.get("AEGIS_EDGE_ISA") or None


def _native() -> Any:
    try:
        return importlib.import_module("aegis_edge._native")
    except ImportError as error:
        raise ScorerError(
            f"the compiled runtime can not be loaded: {error}",
            hint="reinstall aegis-edge on this machine; a C++ compiler builds it",
        ) from error
