"""A source's own categories -> Aegis 2.0 codes: plain tables, no code."""
