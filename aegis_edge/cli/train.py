"""`aegis-edge train`: the options are those of `python -m aegis_edge.train`."""

from __future__ import annotations

from collections.abc import Sequence

from aegis_edge.cli.output import extra


def train(arguments: Sequence[str]) -> None:
    """Train an adapter and print the folder it is in."""
    with extra("train", "training"):
        from aegis_edge.train.__main__ import settings
        from aegis_edge.train.loop import run

    print(run(settings(list(arguments))))
