"""Scenarios times scorers, measured side by side: `aegis-edge bench`."""
