"""Checks a dataset on disk; `python -m data.doctor` runs it."""
