"""The shipped configs: every variant is read whole, without its data."""

import math

import pytest

from align_jax.config import read_config
from align_jax.errors import InputError
from align_jax.evaluate import EvaluateConfig
from align_jax.evaluators import EVALUATORS
from align_jax.parameters import variable_shapes
from align_jax.training_runs import read_run_config
from configs import (
    finetune_fine_grained,
    finetune_imagenet,
    finetune_retrieval,
    linear_probe,
    pretrain_align_b7_base,
    pretrain_align_l2_large,
    quickstart,
    quickstart_transfer,
    zero_shot,
)

L2 = 467_219_796  # of the tower: arXiv 1905.11946's rules at 4.3 and 5.3
TRAINING = {
    "b7": (pretrain_align_b7_base, (), None),
    "l2": (pretrain_align_l2_large, (), None),
    "quickstart": (quickstart, (), None),
    "tuned": (quickstart_transfer, ("tuned",), None),
    "scratch": (quickstart_transfer, ("scratch",), None),
    "imagenet_frozen": (finetune_imagenet, ("frozen",), L2 + 1377 * 1000),
    "imagenet_full": (finetune_imagenet, ("full",), L2 + 1377 * 1000),
    **{
        f"{name}_{stage}": (
            finetune_fine_grained,
            (f"{name},{stage}",),
            L2 + 1377 * finetune_fine_grained.DATASETS[name][1],
        )
        for name in finetune_fine_grained.DATASETS
        for stage in finetune_fine_grained.STAGES
    },
    **{
        f"retrieval_{name}": (finetune_retrieval, (name,), None)
        for name in finetune_retrieval.DATASETS
    },
}


def check_evaluators(described):
    for name, fields in described.items():
        rest = {key: value for key, value in fields.items() if key != "kind"}
        read_config(EVALUATORS[fields["kind"]].Config, rest, name)


@pytest.mark.parametrize("name", TRAINING)
def test_a_training_config_is_read_and_has_the_model_s_size(name):
    module, arguments, parameters = TRAINING[name]
    fields = module.get_config(*arguments).to_dict()
    start = fields.setdefault("initialize", {})
    if "" in start.values():
        with pytest.raises(InputError, match="is empty; name where it comes from"):
            read_run_config(fields)
    config = read_run_config(fields | {"initialize": {n: "RUN" for n in start}})
    check_evaluators(config.evaluators)
    if parameters is not None:
        shapes = variable_shapes(config.model)
        sizes = [math.prod(s) for path, s in shapes.items() if path[0] == "params"]
        assert sum(sizes) == parameters


@pytest.mark.parametrize("module", [zero_shot, linear_probe])
def test_an_evaluation_config_is_read(module):
    fields = module.get_config().to_dict() | {"checkpoint": "RUN"}
    check_evaluators(read_config(EvaluateConfig, fields).evaluators)
    with pytest.raises(ValueError, match="'imagnet'; known: imagenet"):
        module.get_config("imagnet")


@pytest.mark.parametrize(
    "module", [finetune_fine_grained, finetune_imagenet, finetune_retrieval]
)
def test_an_unknown_variant_is_refused(module):
    with pytest.raises(ValueError, match="no .* 'none'; "):
        module.get_config("none")
