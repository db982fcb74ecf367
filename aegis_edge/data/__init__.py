"""Labelled conversations: reading them, and bringing their categories to Aegis 2.0."""

from aegis_edge.data.mapping import Categories, map_categories
from aegis_edge.data.records import Record, read_records

__all__ = ["Categories", "Record", "map_categories", "read_records"]
