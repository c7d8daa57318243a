"""Similarity of words: SimLex-999 (arXiv 1408.3456; ALIGN, arXiv 2102.05918, sec. 7).

Each word is encoded as a text. The cosines of two words' outputs of the text tower,
before the projection to the pictures' width, are correlated with people's ratings.
"""

import csv
import dataclasses
from collections.abc import Iterator

import numpy as np

from align_jax import places
from align_jax.embed.encoder import Encoder
from align_jax.errors import InputError, check_count
from align_jax.evaluation.examples import Example
from align_jax.evaluation.scores import rank_correlation
from align_jax.ranges import Natural

PAIRS = 999
COLUMNS = ("word1", "word2", "POS", "SimLex999", "concQ", "SimAssoc333")
PARTS_OF_SPEECH = {"adjectives": "A", "nouns": "N", "verbs": "V"}


@dataclasses.dataclass(frozen=True)
class WordSimilarityConfig:
    """The rated pairs of words.

    Attributes:
      path: path of SimLex-999.txt, from SimLex-999.zip on
        https://fh295.github.io/simlex.html.
      expected_pairs: number of pairs that the file must have; 0 for any.
    """

    path: str
    expected_pairs: Natural = PAIRS


class WordSimilarity:
    """Spearman's correlation with people's ratings, for all pairs and for groups.

    The groups are parts of speech, quarters of concreteness, and SimLex's hard pairs.
    """

    Config = WordSimilarityConfig

    def __init__(self, config: WordSimilarityConfig) -> None:
        """Reads the file; raises InputError if it is missing or is not SimLex-999."""
        path = places.resolve(config.path)
        if not places.exists(path):
            raise InputError(
                f"no SimLex-999 at {config.path}; take SimLex-999.txt from the archive"
                " on https://fh295.github.io/simlex.html"
            )
        lines = places.read_text(path).splitlines()
        reader = csv.DictReader(lines, delimiter="\t")
        lacking = set(COLUMNS) - set(reader.fieldnames or ())
        if lacking:
            raise InputError(f"{config.path} lacks the columns {sorted(lacking)}")
        rows = list(reader)
        check_count(config.path, len(rows), config.expected_pairs, "pairs")
        self.pairs = [(row["word1"], row["word2"]) for row in rows]
        self.ratings = np.array([float(row["SimLex999"]) for row in rows])
        self.kinds = {"all": np.ones(len(rows), bool)}
        for name, letter in PARTS_OF_SPEECH.items():
            self.kinds[name] = np.array([row["POS"] == letter for row in rows])
        for quarter in "1234":
            kind = np.array([row["concQ"] == quarter for row in rows])
            self.kinds[f"concreteness_{quarter}"] = kind
        self.kinds["hard"] = np.array([row["SimAssoc333"] == "1" for row in rows])

    def run(self, embedder: Encoder) -> Iterator[tuple[str, float]]:
        """Yields `<group>_spearman`, in [-1, 1], and `<group>_pairs` of every group.

        Raises:
          FloatingPointError: a feature of a word is not finite.
        """
        words = list(dict.fromkeys(word for pair in self.pairs for word in pair))
        features = embedder.text_features(words)
        if not np.isfinite(features).all():
            raise FloatingPointError("features of words are not finite")
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        index = {word: i for i, word in enumerate(words)}
        first, second = np.array([[index[w] for w in pair] for pair in self.pairs]).T
        cosines = np.einsum("pd,pd->p", features[first], features[second])
        for name, kind in self.kinds.items():
            yield (
                f"{name}_spearman",
                rank_correlation(self.ratings[kind], cosines[kind]),
            )
            yield f"{name}_pairs", int(kind.sum())

    def examples(self, embedder: Encoder) -> dict[str, Iterator[Example]]:
        """Returns {}: the report shows no examples of this evaluator."""
        return {}
