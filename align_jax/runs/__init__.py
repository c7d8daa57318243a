"""A run's folder: its config, provenance, metrics and results."""
