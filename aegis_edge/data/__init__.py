"""Labelled conversations: reading them, and bringing their categories to Aegis 2.0."""

from aegis_edge.data.files import Tally, read_file
from aegis_edge.data.mapping import Categories, map_categories
from aegis_edge.data.records import DataError, Record, read_records

__all__ = ["Categories", "DataError", "Record", "Tally", "map_categories", "read_file", "read_records"]
