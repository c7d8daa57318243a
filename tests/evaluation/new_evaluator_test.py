import dataclasses
import json

import pytest

from align_jax.evaluate import evaluate
from align_jax.evaluation.evaluators import EVALUATORS
from align_jax.evaluation.runner import make_evaluators, run_evaluators
from tests import tiny
from tests.fixed_encoder import FixedEncoder, perfect


@dataclasses.dataclass(frozen=True)
class LengthConfig:
    text: str


class Length:
    """Scores the length of a text's embedding."""

    Config = LengthConfig

    def __init__(self, config):
        self._text = config.text

    def run(self, embedder):
        (embedding,) = embedder.encode_texts([self._text])
        yield "length", float((embedding**2).sum() ** 0.5)

    def examples(self, embedder):
        return {}


def test_a_new_evaluator_s_score_is_among_the_results(monkeypatch, tmp_path):
    monkeypatch.setitem(EVALUATORS, "length", Length)
    fields = {
        "run": "evaluate",
        "checkpoint": tiny.write_model(tmp_path / "model"),
        "evaluators": {"mine": {"kind": "length", "text": "red left"}},
    }
    evaluate(fields, str(tmp_path / "out"))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results == {"eval/mine/length": pytest.approx(1.0, abs=1e-5)}
    assert "length" in (tmp_path / "out" / "report.html").read_text()


class Unread(Length):
    run = None


class Curt(Length):
    def examples(self):
        return {}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Unread, r"class Unread of EVALUATORS\['length'\] .*lacks .* run\(embedder\)"),
        (Curt, r"class Curt .* has examples\(\), wanted examples\(embedder\)"),
    ],
)
def test_a_class_that_breaks_the_contract_is_refused_at_start(
    broken, message, monkeypatch
):
    monkeypatch.setitem(EVALUATORS, "length", broken)
    with pytest.raises(TypeError, match=message):
        make_evaluators({"mine": {"kind": "length", "text": "red"}})


def test_an_encoder_that_lacks_a_method_is_refused_before_the_first_evaluator():
    class Deaf(FixedEncoder):
        encode_texts = None

    with pytest.raises(TypeError, match="class Deaf of .* lacks the method encode_tex"):
        next(run_evaluators({}, Deaf(perfect, perfect)))
