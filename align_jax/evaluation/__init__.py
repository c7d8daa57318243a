"""Evaluators, and the rankings, classifiers and scores that they compute."""
