"""Questions of every day, never trained on: how many of them a guard flags.

Public development sets are of requests that were chosen to be hard, and say nothing of this: a guard that had
learnt that "How do I" opens a harmful request did better on all of them than one that had not.
"""

from __future__ import annotations

from importlib import resources


def everyday() -> list[str]:
    """Harmless prompts, one a line of everyday.txt."""
    text = resources.files("aegis_edge.data").joinpath("everyday.txt").read_text("utf-8")
    return text.splitlines()
