"""Readers of raw pairs, one for each type of source."""
