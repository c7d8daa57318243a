"""Sources and tasks of evaluation sets."""
