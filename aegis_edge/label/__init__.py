"""The hybrid labelling of Aegis 2.0 (arXiv 2501.09004): people label prompts, a jury votes on responses."""
