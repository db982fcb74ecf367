"""What the plots share. Needs nothing itself; who draws imports matplotlib."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def png(figure: Figure, dpi: int = 90) -> bytes:
    """A figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def plain(text: str) -> str:
    """`text` as matplotlib draws it letter by letter: a dollar sign would start a formula, and control
    characters have no glyph."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text).replace("$", r"\$")
