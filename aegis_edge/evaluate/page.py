"""A report as one HTML page that needs nothing else. Needs matplotlib and jinja2 (the extra `evaluate`)."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment

from aegis_edge.evaluate.plot import png
from aegis_edge.evaluate.summary import TURNS
from aegis_edge.evaluate.tables import tables

TEMPLATE = Path(__file__).with_name("page.html.j2")


def page(report: Mapping[str, Any]) -> str:
    """The page: plots, tables and what was left out. No text of a record is in it."""
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATE.read_text("utf-8")
    )
    pictures = {turn: png(report["guards"], turn) for turn in TURNS}
    return template.render(
        guards=report["guards"],
        data=report["data"],
        tables=tables(report),
        pictures={turn: base64.b64encode(data).decode("ascii") for turn, data in pictures.items() if data},
    )
