"""Evaluators: each embeds a dataset and yields (name, value) pairs."""

from align_jax.evaluators.crisscrossed import Crisscrossed
from align_jax.evaluators.neighbours import Neighbours
from align_jax.evaluators.retrieval import Retrieval
from align_jax.evaluators.word_similarity import WordSimilarity
from align_jax.evaluators.zero_shot import ZeroShot

EVALUATORS = {
    "crisscrossed": Crisscrossed,
    "neighbours": Neighbours,
    "retrieval": Retrieval,
    "word_similarity": WordSimilarity,
    "zero_shot": ZeroShot,
}
