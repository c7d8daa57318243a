"""Checks an existing dataset."""
