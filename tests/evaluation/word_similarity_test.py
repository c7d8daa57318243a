import pytest
import scipy.stats

from align_jax.errors import InputError
from align_jax.evaluation.evaluators.word_similarity import COLUMNS
from align_jax.evaluation.runner import make_evaluators, run_evaluators
from tests.fixed_encoder import FixedEncoder, perfect


def write_simlex(path, rows):
    names = [*COLUMNS, "Assoc(USF)"]
    lines = [names, *([*row, "1.0"] for row in rows)]
    path.write_text("".join("\t".join(line) + "\n" for line in lines))
    return str(path)


def test_words_are_compared_by_kind(tmp_path):
    rows = [  # the cosines of `perfect` count shared words: 1, 0, 0.5, 0
        ("red left", "red left", "A", "9.0", "1", "1"),
        ("red left", "blue right", "A", "1.0", "2", "1"),
        ("red left", "red right", "N", "8.0", "3", "0"),
        ("blue top", "red left", "N", "2.0", "4", "1"),
    ]
    path = write_simlex(tmp_path / "SimLex-999.txt", rows)
    fields = {"kind": "word_similarity", "path": path}
    with pytest.raises(InputError, match="has 4 pairs; wanted 999"):
        make_evaluators({"words": fields})
    evaluators = make_evaluators({"words": fields | {"expected_pairs": 4}})
    scores = dict(run_evaluators(evaluators, FixedEncoder(perfect, perfect)))
    expected = scipy.stats.spearmanr([9, 1, 8, 2], [1, 0, 0.5, 0]).statistic
    assert scores["eval/words/all_spearman"] == pytest.approx(expected)
    assert scores["eval/words/adjectives_spearman"] == pytest.approx(1)
    assert scores["eval/words/nouns_spearman"] == pytest.approx(1)
    assert scores["eval/words/verbs_pairs"] == 0 == scores["eval/words/verbs_spearman"]
    assert scores["eval/words/hard_pairs"] == 3
    with pytest.raises(InputError, match="no SimLex-999 at nowhere; take SimLex"):
        make_evaluators({"words": fields | {"path": "nowhere"}})
    (tmp_path / "bad.txt").write_text("word1\tword2\n")
    with pytest.raises(InputError, match=r"lacks the columns .*'POS'"):
        make_evaluators({"words": fields | {"path": str(tmp_path / "bad.txt")}})
