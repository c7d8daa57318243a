"""Evaluators: each embeds a dataset and yields (name, value) pairs."""

from align_jax.evaluators.classification import Classification
from align_jax.evaluators.crisscrossed import Crisscrossed
from align_jax.evaluators.few_shot import FewShot
from align_jax.evaluators.linear_probe import LinearProbe
from align_jax.evaluators.neighbours import Neighbours
from align_jax.evaluators.retrieval import Retrieval
from align_jax.evaluators.word_similarity import WordSimilarity
from align_jax.evaluators.zero_shot import ZeroShot

EVALUATORS = {
    "classification": Classification,
    "crisscrossed": Crisscrossed,
    "few_shot": FewShot,
    "linear_probe": LinearProbe,
    "neighbours": Neighbours,
    "retrieval": Retrieval,
    "word_similarity": WordSimilarity,
    "zero_shot": ZeroShot,
}
