"""Evaluators: each embeds a dataset and yields (name, value) pairs."""

from align_jax.evaluators.retrieval import Retrieval
from align_jax.evaluators.zero_shot import ZeroShot

EVALUATORS = {"retrieval": Retrieval, "zero_shot": ZeroShot}
