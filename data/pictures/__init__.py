"""Measures pictures and finds those that must not be trained on."""
