import dataclasses
import json

import numpy as np
import pytest

from align_jax.evaluate import evaluate
from align_jax.evaluation.evaluators import EVALUATORS
from align_jax.evaluation.evaluators.retrieval import Retrieval
from align_jax.evaluation.runner import make_evaluators, run_evaluators
from align_jax.report.run_page import score_plots
from align_jax.runs.results import main_scores
from tests import tiny
from tests.fixed_encoder import FixedEncoder, perfect
from tests.report.run_page_test import Page, cells


@dataclasses.dataclass(frozen=True)
class LengthConfig:
    text: str
    power: int = 1


class Length:
    """Scores the length of a text's embedding, a score of a name that is new."""

    Config = LengthConfig

    def __init__(self, config):
        self._text, self._power = config.text, config.power

    def run(self, embedder):
        (embedding,) = embedder.encode_texts([self._text])
        yield "length", np.linalg.norm(embedding) ** self._power  # np.float32
        yield "queries", np.int64(1)

    def examples(self, embedder):
        return {}


def test_a_new_evaluator_s_score_is_in_results_tables_and_curves(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setitem(EVALUATORS, "length", Length)
    fields = {
        "run": "evaluate",
        "checkpoint": tiny.write_model(tmp_path / "model"),
        "evaluators": {"mine": {"kind": "length", "text": "red left"}},
    }
    evaluate(fields, str(tmp_path / "out"))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    length = pytest.approx(1.0, abs=1e-5)
    assert results == {"eval/mine/length": length, "eval/mine/queries": 1}
    head, row, *_ = capsys.readouterr().out.splitlines()
    assert head.split() == ["measure", "trained", "queries"]
    assert row.split() == ["eval/mine/length", "1.000", "1"]
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert ["eval/mine/length", "1.000", "–", "–", "1"] in cells(page)
    assert main_scores(results) == {"mine/length": length}
    (plot,) = score_plots([{"step": step, **results} for step in (0, 4)])
    assert plot["title"] == "mine"
    assert plot["alt"] == "length from 1 at step 0 to 1 at step 4"


class Whole:
    """Has all that the contract asks for."""

    Config = dict

    def __init__(self, config):
        raise AssertionError("not even made")

    def run(self, embedder):
        yield "score", 1.0

    def examples(self, embedder):
        return {}


class Unread(Whole):
    run = None


class Curt(Whole):
    def examples(self):
        return {}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Unread, r"class Unread of EVALUATORS\['mine'\] .*lacks .* run\(embedder\)"),
        (Curt, r"class Curt .* has examples\(\), wanted examples\(embedder\)"),
    ],
)
def test_a_class_that_breaks_the_contract_is_refused_at_start(
    broken, message, monkeypatch
):
    monkeypatch.setitem(EVALUATORS, "mine", broken)
    with pytest.raises(TypeError, match=message):
        make_evaluators({"scores": {"kind": "mine"}})


def test_an_encoder_that_lacks_a_method_is_refused_before_the_first_evaluator():
    class Deaf(FixedEncoder):
        encode_texts = None

    with pytest.raises(
        TypeError, match=r"Deaf as the .* lacks the method encode_texts"
    ):
        next(run_evaluators({}, Deaf(perfect, perfect)))


def test_a_config_that_is_no_dataclass_is_refused(monkeypatch):
    class Plain(Retrieval):
        Config = dict

    monkeypatch.setitem(EVALUATORS, "plain", Plain)
    with pytest.raises(TypeError, match=r"Plain of .*'plain'.* wanted a dataclass of"):
        make_evaluators({"x": {"kind": "plain"}})
