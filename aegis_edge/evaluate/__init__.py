"""Metrics of guards."""
