"""Weights in folders of ours and of other codebases."""
