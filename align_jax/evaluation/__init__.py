"""Evaluators, and the scores that they compute from embeddings."""
