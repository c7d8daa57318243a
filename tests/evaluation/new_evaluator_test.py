import pytest

from align_jax.evaluation.evaluators import EVALUATORS
from align_jax.evaluation.runner import make_evaluators, run_evaluators
from tests.fixed_encoder import FixedEncoder, perfect


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

    with pytest.raises(TypeError, match="class Deaf of .* lacks the method encode_tex"):
        next(run_evaluators({}, Deaf(perfect, perfect)))
