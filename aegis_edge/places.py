"""Where things are on this machine: the user's cache, and the guard that is used when none is named."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from aegis_edge.errors import AegisError


def cache_folder() -> Path:
    """This package's folder in the user's cache: in $XDG_CACHE_HOME, else where the platform keeps caches."""
    xdg = os.environ.get("XDG_CACHE_HOME")
    if xdg:
        cache = Path(xdg)
    elif sys.platform == "win32":
        cache = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        cache = Path.home() / "Library" / "Caches"
    else:
        cache = Path.home() / ".cache"
    return cache / "aegis-edge"


def default_guard_path() -> Path:
    """Where the default guard is looked for when $AEGIS_EDGE_GUARD names no other."""
    return cache_folder() / "guard"


def find_guard() -> Path:
    """The guard in use when none is named: $AEGIS_EDGE_GUARD, else the default one. Raises AegisError where
    there is none."""
    named = os.environ.get("AEGIS_EDGE_GUARD")
    path = Path(named) if named else default_guard_path()
    if not path.is_dir():
        where = (
            f"$AEGIS_EDGE_GUARD names {path}, which is no folder" if named else f"no default guard at {path}"
        )
        raise AegisError(where, hint=f"make one with: aegis-edge export --out {path}")
    return path
