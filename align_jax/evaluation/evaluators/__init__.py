"""Evaluators: each embeds a dataset and yields (name, value) pairs."""

from align_jax.evaluation.evaluators.classification import Classification
from align_jax.evaluation.evaluators.crisscrossed import Crisscrossed
from align_jax.evaluation.evaluators.few_shot import FewShot
from align_jax.evaluation.evaluators.linear_probe import LinearProbe
from align_jax.evaluation.evaluators.neighbours import Neighbours
from align_jax.evaluation.evaluators.retrieval import Retrieval
from align_jax.evaluation.evaluators.word_similarity import WordSimilarity
from align_jax.evaluation.evaluators.zero_shot import ZeroShot

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
