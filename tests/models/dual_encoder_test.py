import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.config import read_config
from align_jax.errors import InputError
from align_jax.models.bert import BertConfig
from align_jax.models.classifier import ClassifierConfig
from align_jax.models.dual_encoder import (
    DualEncoder,
    ModelConfig,
    scale_pixels,
    temperature_of,
)
from align_jax.models.efficientnet import EfficientNetConfig
from tests import tiny

IMAGES = jax.random.uniform(jax.random.key(1), (4, 32, 32, 3), minval=-1.0)
TOKENS = jnp.array([[2, 5, 3, 0], [2, 6, 7, 3], [2, 8, 3, 0], [2, 3, 0, 0]])
CORES = jnp.arange(2)
KEY = jax.eval_shape(lambda: jax.random.key(0))


def build(**fields):
    image = EfficientNetConfig(**tiny.IMAGE_TOWER, drop_rate=0.0)
    text = BertConfig(10, max_tokens=4, positions=4, layers=1, hidden=64, dropout=0.0)
    return DualEncoder(ModelConfig(image, text, **fields), batch_norm_group=2)


def test_bfloat16_keeps_parameters_statistics_and_embeddings_in_float32(mixed_types):
    model = build(dtype="bfloat16")
    inputs = (IMAGES, TOKENS, CORES)

    @jax.jit
    def compute():
        variables = model.init(jax.random.key(0), *inputs, False)
        trained = model.apply(variables, *inputs, True, mutable=["batch_stats"])
        whole = build().apply(variables, *inputs, False)
        return variables, trained, whole, model.apply(variables, *inputs, False)

    variables, ((images, texts), changed), whole, half = compute()
    kept = (variables["params"], changed["batch_stats"], images, texts)
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(jnp.linalg.norm(images, axis=1), 1.0, rtol=1e-6)
    for narrow, wide in zip(half, whole, strict=True):
        assert (narrow * wide).sum(1).min() > 0.999  # cosine
        assert np.abs(narrow - wide).max() > 1e-5  # so it was computed in bfloat16


@pytest.mark.parametrize("width", [640, 320, 160, 80])
def test_a_linear_layer_gives_the_ablations_widths(width):
    model = build(embedding_size=width)
    shapes = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), IMAGES, TOKENS, CORES, False)
    )
    (images, texts), variables = shapes
    assert images.shape == texts.shape == (4, width)
    assert variables["params"]["image_projection"]["kernel"].shape == (80, width)


def test_the_temperature_has_either_form_and_a_bias_is_added_on_demand():
    for fields, scalars in (
        ({}, {"temperature"}),
        ({"temperature_form": "log"}, {"log_temperature"}),
        ({"logit_bias_init": -3.0}, {"temperature", "logit_bias"}),
    ):
        init = partial(build(**fields).init, method="encode_texts")
        params = jax.eval_shape(init, jax.random.key(0), TOKENS)["params"]
        assert set(params) == scalars | {"text_tower", "text_projection"}
    assert temperature_of({"temperature": 0.5}) == 0.5
    assert temperature_of({"log_temperature": np.log(0.5)}) == pytest.approx(0.5)


def test_levels_are_scaled_to_one_range_or_by_means_and_deviations():
    levels = jnp.arange(256, dtype=jnp.uint8).reshape(1, 16, 16, 1).repeat(3, 3)

    def to_one_range(levels):
        return levels.astype(jnp.float32) / 127.5 - 1.0

    for compute in (lambda function: function, jax.jit):
        expected = compute(to_one_range)(levels)
        np.testing.assert_array_equal(compute(scale_pixels)(levels), expected)
        np.testing.assert_array_equal(compute(scale_pixels)(expected), expected)
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    expected = (np.asarray(levels) / 255 - mean) / std
    np.testing.assert_allclose(scale_pixels(levels, mean, std), expected, atol=1e-6)
    model = build(pixel_mean=mean, pixel_std=std)
    images = jax.eval_shape(partial(model.init, method="encode_images"), KEY, levels)
    assert "image_tower" in images["params"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"pixel_std": (0.5, 0.0, 0.5)},
            r"pixel_std\[1\] is 0.0; wanted above 0",
        ),
        (
            {"pixel_mean": (0.5, 0.5, 128)},
            r"model.pixel_mean\[2\] is 128.0; wanted 0",
        ),
        ({"pixel_mean": (0.5,)}, r"pixel_mean is \(0.5,\); wanted 3 values, not 1"),
    ],
)
@pytest.mark.parametrize("kind", [ModelConfig, ClassifierConfig])
def test_wrong_scales_of_pixels_are_refused(kind, fields, message):
    towers = {"image_tower": {}, "text_tower": {"vocabulary_size": 9}}
    towers = towers if kind is ModelConfig else {"image_tower": {}, "classes": 2}
    with pytest.raises(InputError, match=message):
        read_config(kind, towers | fields, "config.model")


def test_projections_have_a_bias_or_none():
    for bias, names in ((True, {"kernel", "bias"}), (False, {"kernel"})):
        model = build(projection_bias=bias, embedding_size=8)
        params = jax.eval_shape(
            partial(model.init, train=False), KEY, IMAGES, TOKENS, CORES
        )["params"]
        assert {*params["image_projection"]} == {*params["text_projection"]} == names


def test_model_init_is_called_in_one_file_and_apply_in_three():
    package = pathlib.Path(__file__).parents[2] / "align_jax"
    texts = {path.name: path.read_text() for path in package.rglob("*.py")}
    users = [
        n for call in ("init(", "apply(") for n in texts if f"model.{call}" in texts[n]
    ]
    assert sorted(users) == [
        "encoders.py",  # of an export
        "programs.py",  # of embeddings
        "train_state.py",
        "train_step.py",
    ]
