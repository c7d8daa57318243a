"""Tests of the shipped configs: every variant is read completely, without its data."""

import dataclasses
import functools
import math

import pytest

from align_jax.config import as_json, differing_fields
from align_jax.devices.mesh import make_mesh
from align_jax.errors import InputError
from align_jax.evaluation.evaluators import EVALUATORS
from align_jax.models.parameters import tower_shapes, variable_shapes
from align_jax.report.run_kinds import fill_defaults
from align_jax.runs.results import PUBLISHED
from align_jax.training.flops import count_model_flops
from align_jax.training.training_runs import read_run_config
from configs import (
    finetune_fine_grained,
    finetune_imagenet,
    finetune_retrieval,
    linear_probe,
    pretrain_align_b7_base,
    pretrain_align_b7_base_2026,
    pretrain_align_l2_large,
    pretrain_align_multilingual,
    pretrain_b3_mini_cc3m,
    quickstart,
    quickstart_transfer,
    zero_shot,
)
from configs.sweeps import (
    data,
    embedding_size,
    families,
    losses,
    mini_data,
    mini_embedding_size,
    mini_families,
    mini_losses,
    mini_negatives,
    mini_nested,
    mini_scored,
    mini_temperature,
    mini_towers,
    negatives,
    temperature,
    towers,
)
from tests.models.published_sizes_test import count_convnext, count_efficientnet_v2


def vit_size(width, layers, patch, grid):
    """Counts a vision transformer with mean pooling by hand."""
    first = (3 * patch**2 + 1 + grid**2) * width
    layer = 4 * (width + 1) * width + (8 * width + 5) * width + 2 * 2 * width
    return first + layers * layer + 2 * width


# Parameters and width of image towers without their head, by the rules of
# arXiv 1905.11946.
IMAGE = {
    "b1": (6_101_024, 320),
    "b3": (10_103_336, 384),
    "b5": (27_288_112, 512),
    "b7": (62_143_440, 640),
    "l2": (467_219_796, 1376),
    # Published with a classifier of 1000 classes; V2-S also with a 1 x 1 convolution.
    "convnext_t": (28_589_128 - 769 * 1000, 768),
    "v2_s": (21_458_488 - 1281 * 1000 - (256 + 2) * 1280, 256),
    "vit_s16": (vit_size(384, 12, patch=16, grid=18), 384),
}
L2 = IMAGE["l2"][0]
TEXT = {"mini": (4, 256), "medium": (8, 512), "base": (12, 768), "large": (24, 1024)}


def text_size(layers, hidden, words, positions=512):
    """Counts the parameters of a text tower by hand."""
    embeddings = (words + positions + 2 + 2) * hidden  # the last 2 are of a LayerNorm
    layer = 4 * (hidden + 1) * hidden + (8 * hidden + 5) * hidden + 2 * 2 * hidden
    return embeddings + layers * layer


def pair_size(image, text, projected=None, words=100_000):
    """Counts two towers, the layers that join them and the temperature by hand."""
    parameters, width = IMAGE[image]
    layers, hidden = TEXT[text]
    if projected:
        parameters += (width + 1) * projected
    joint = (hidden + 1) * (projected or width)
    return parameters + text_size(layers, hidden, words) + joint + 1


# The quickstart: the image tower is counted as built, all other parts by hand.
MINI_TOWER = 1_034_334
MINI_TEXT = text_size(2, 128, words=4096, positions=12)
SMALL_TEXT = text_size(1, 64, words=4096, positions=12)
MINI = MINI_TOWER + MINI_TEXT + 129 * 240 + 1
# Half of V2-S's channels and 0.15 of its blocks.
V2 = "1,1,1,16 1,2,4,24 1,2,4,32 1,2,4,64 2,1,6,80 3,2,6,128"
CONVNEXT = ((1, 48), (1, 96), (3, 192))
TRAINING = {
    "b7": (pretrain_align_b7_base, (), pair_size("b7", "base")),
    "b7_2026": (pretrain_align_b7_base_2026, (), pair_size("b7", "base")),
    "l2": (pretrain_align_l2_large, (), pair_size("l2", "large")),
    "b3_mini_cc3m": (pretrain_b3_mini_cc3m, (), pair_size("b3", "mini", 640)),
    "multilingual": (
        pretrain_align_multilingual,
        (),
        pair_size("l2", "large", words=250_000),
    ),
    "quickstart": (quickstart, (), MINI),
    "tuned": (quickstart_transfer, ("tuned",), MINI_TOWER + 241 * 21),
    "scratch": (quickstart_transfer, ("scratch",), MINI_TOWER + 241 * 21),
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
        f"retrieval_{name}": (finetune_retrieval, (name,), pair_size("l2", "large"))
        for name in finetune_retrieval.DATASETS
    },
}

BASELINE = pair_size("b5", "base", 640)
# Number of parameters by run, or one number for all runs.
SWEEPS = {
    towers: {
        f"{i}_{t}": pair_size(i, t, None if i == "b7" else 640)
        for i in towers.IMAGE
        for t in towers.TEXT
    },
    embedding_size: {
        "baseline": BASELINE,
        **{f"embedding_{n}": pair_size("b5", "base", n) for n in (320, 160, 80)},
    },
    negatives: BASELINE,
    temperature: BASELINE,
    data: {
        name: pair_size(name[:2], name[3:7], 640 if name.startswith("b3") else None)
        for name in data.get_sweep()
    },
    mini_towers: {
        "baseline": MINI,
        "small_image": 157_518 + 113 * 240 + MINI_TEXT + 129 * 240 + 1,
        "small_text": MINI_TOWER + SMALL_TEXT + 65 * 240 + 1,
        "small_both": 157_518 + 113 * 240 + SMALL_TEXT + 65 * 240 + 1,
    },
    mini_embedding_size: {
        "baseline": MINI,
        **{f"embedding_{n}": MINI - 129 * 240 + 241 * n + 129 * n for n in (60, 15, 4)},
    },
    families: {name: pair_size(name, "mini", 640) for name in families.FAMILIES},
    losses: {"baseline": BASELINE, "sigmoid": BASELINE + 1},
    mini_families: {
        f"{name}_{seed}": size + MINI - MINI_TOWER
        for name, size in {
            "efficientnet": MINI_TOWER,
            "efficientnet_v2": count_efficientnet_v2(V2, 32).parameters + 129 * 240,
            "vit": vit_size(128, 3, patch=8, grid=4) + 129 * 240,
            "convnext": count_convnext(CONVNEXT, 32).parameters + 193 * 240,
        }.items()
        for seed in mini_families.SEEDS
    },
    mini_losses: {"baseline": MINI, "sigmoid": MINI + 1, "sigmoid_bias": MINI + 1},
    mini_negatives: MINI,
    mini_nested: MINI,
    mini_scored: MINI,
    mini_temperature: MINI,
    mini_data: MINI,
}


# Values for fields that change no parameter, so that runs share traced towers.
SHAPELESS = {"drop_rate": 0.0, "batch_norm_momentum": 0.9, "padding": "same"}
SHAPELESS |= {"frozen_statistics": False, "dropout": 0.0, "init_std": 0.02}
SHAPELESS |= {"scan": False, "rematerialise": "none"}
BERT = {"rematerialise": False}
# Fields of a shorter tower with an output of the same width.
SHORT = {
    "efficientnet": lambda config: {"stages": config.rows[-1:], "depth": 0.1},
    "efficientnet_v2": lambda config: {"stages": config.rows[-1:], "depth": 0.1},
    "convnext": lambda config: {"stages": ((1, config.output_width),)},
    "vit": lambda config: {"layers": 1},
    "transformer": lambda config: {"layers": 1},
    "bert": lambda config: {"layers": 1},
}


def without_options(config):
    """Returns a tower's config with the values of `SHAPELESS`."""
    names = {field.name for field in dataclasses.fields(config)}
    values = SHAPELESS | (BERT if config.kind == "bert" else {})
    own = {name: value for name, value in values.items() if name in names}
    return dataclasses.replace(config, **own)


def total(shapes):
    return sum(math.prod(s) for path, s in shapes.items() if path[0] == "params")


@functools.cache
def count_tower(name, config):
    return total(tower_shapes(name, config))


@functools.cache
def count_rest(model):
    """Counts a model's parameters outside its towers, which should be small."""
    towers = sum(total(tower_shapes(*tower)) for tower in model.towers.items())
    return total(variable_shapes(model)) - towers


def count_parameters(model):
    """Counts a model by its parts; all but the towers is traced with short towers."""
    plain = {name: without_options(tower) for name, tower in model.towers.items()}
    short = {
        name: dataclasses.replace(tower, **SHORT[tower.kind](tower))
        for name, tower in plain.items()
    }
    towers = sum(count_tower(*tower) for tower in plain.items())
    return towers + count_rest(dataclasses.replace(model, **short))


def test_a_model_has_the_parameters_of_its_parts():
    for module, variant in ((quickstart, ()), (quickstart_transfer, ("tuned",))):
        fields = module.get_config(*variant).to_dict() | {"initialize": {}}
        model = read_run_config(fields).model
        assert count_parameters(model) == total(variable_shapes(model))


def check_filled(fields):
    """Checks that a config with its defaults, as JSON, is the same config."""
    filled = as_json(fill_defaults(fields))
    assert as_json(fill_defaults(filled)) == filled
    assert {*fields} <= {*filled}
    for name, evaluator in filled["evaluators"].items():
        wanted = dataclasses.fields(EVALUATORS[evaluator["kind"]].Config)
        own = {"kind", *(field.name for field in wanted)}
        assert {*evaluator} - {"width"} == own, name
    return filled


@pytest.mark.parametrize("name", TRAINING)
def test_a_training_config_is_read_and_has_the_model_s_size(name):
    module, arguments, parameters = TRAINING[name]
    fields = module.get_config(*arguments).to_dict()
    start = fields.setdefault("initialize", {})
    if "" in start.values():
        with pytest.raises(InputError, match="is empty; name where it comes from"):
            read_run_config(fields)
    fields["initialize"] = {n: "RUN" for n in start}
    config = read_run_config(fields)
    filled = read_run_config(check_filled(fields))
    assert filled == dataclasses.replace(config, evaluators=filled.evaluators)
    assert count_parameters(config.model) == parameters


@pytest.mark.parametrize("sweep", SWEEPS, ids=lambda sweep: sweep.__name__)
def test_a_sweep_s_runs_are_read_and_have_their_models_sizes(sweep):
    expected = SWEEPS[sweep]
    for name in sweep.get_sweep():
        fields = sweep.get_config(name).to_dict()
        config = read_run_config(fields, name)
        assert {*fields["model"]} < {*check_filled(fields)["model"]}
        size = expected[name] if isinstance(expected, dict) else expected
        assert size == count_parameters(config.model), name
    with pytest.raises(ValueError, match="no run 'none'; known: "):
        sweep.get_config("none")


@pytest.mark.parametrize(
    ("module", "millions"),
    [(pretrain_align_b7_base, 224.886), (pretrain_align_l2_large, 873.9)],
)
def test_the_papers_configs_have_its_parameters(module, millions):
    config = read_run_config(module.get_config().to_dict())
    found = count_parameters(config.model) / 1e6
    assert found == pytest.approx(millions, abs=0.06)
    config.make_plan(make_mesh())  # the batch divides


def test_the_paper_s_tables_name_the_sweeps_runs():
    rows = {name for table in PUBLISHED["tables"] for name in table.get("runs", {})}
    sweeps = (towers, embedding_size, negatives, temperature, data)
    assert rows == {name for sweep in sweeps for name in sweep.get_sweep()}


def test_what_the_ablations_change_is_what_the_paper_changes():
    def fields(sweep, name):
        return sweep.get_config(name).to_dict()

    base = fields(negatives, "baseline")
    half = fields(negatives, "negatives_50")
    fixed = fields(temperature, "temperature_1_64")
    small = fields(data, "b7_base_3m")
    assert differing_fields(base, half) == ["config.loss.negatives: 'absent' -> 0.5"]
    assert differing_fields(base, fixed) == [
        "config.model.temperature_init: 'absent' -> 0.015625",
        "config.optimizer.frozen: 'absent' -> ('^temperature$',)",
    ]
    assert base["total_steps"] == 1_000_000
    assert small["total_steps"] == 100_000
    assert small["input"]["datasets"]["corpus"]["max_pairs"] == 3_000_000
    assert {*base["evaluators"]} == {"coco", "neighbours"}


@pytest.mark.parametrize(
    ("sweep", "suffix", "unit"),
    [
        (mini_families, "_0", 1),
        pytest.param(families, "", 1000, marks=pytest.mark.pods),
    ],
)
def test_families_take_equal_operations(sweep, suffix, unit):
    work = {}
    for name, (_, steps) in sweep.FAMILIES.items():
        run = read_run_config(sweep.get_config(f"{name}{suffix}").to_dict())
        mesh = make_mesh()
        plan = run.make_plan(mesh)
        step = sum(count_model_flops(plan, run.batch_shapes(mesh)).values())
        assert run.total_steps == steps
        assert steps % unit == 0
        work[name] = (step * steps, step)
    budget, _ = next(iter(work.values()))
    for name, (done, step) in work.items():
        assert done <= budget < done + step * unit, name


@pytest.mark.parametrize("module", [zero_shot, linear_probe])
def test_an_evaluation_config_is_read(module):
    fields = module.get_config().to_dict() | {"checkpoint": "RUN"}
    check_filled(fields)
    with pytest.raises(ValueError, match="'imagnet'; known: imagenet"):
        module.get_config("imagnet")


@pytest.mark.parametrize(
    "module", [finetune_fine_grained, finetune_imagenet, finetune_retrieval]
)
def test_an_unknown_variant_is_refused(module):
    with pytest.raises(ValueError, match=r"no .* 'none'; "):
        module.get_config("none")
