"""Tests of the towers that `benchmarks.step` knows by name, and of its counts."""

import jax
import jax.numpy as jnp
import pytest

from align_jax.models.parameters import FIRST_INPUTS, variable_shapes
from align_jax.models.towers import build_tower
from align_jax.weights.open_clip_config import read_open_clip, write_open_clip
from benchmarks import normalise
from benchmarks.step_flags import read_flags
from benchmarks.step_towers import count_outputs, image_tower, make_model


def flags_of(*arguments):
    return read_flags("", [*arguments, "--dtype=float32", "--scan"])


def count_parameters(config):
    shapes = variable_shapes(config)
    return sum(
        jnp.prod(jnp.array(shape)).item()
        for path, shape in shapes.items()
        if path[0] == "params"
    )


def test_a_clip_of_both_names_is_the_published_one():
    """OpenAI's ViT-B/32 has 151,277,313 parameters; OpenCLIP's config says the same."""
    flags = flags_of("--image=vit_b/32", "--text=clip_b", "--tokens=77")
    flags.image_size = 224
    model = make_model(flags)
    assert count_parameters(model) == 151_277_313
    described = write_open_clip(model, flags.image_size)
    assert (described["vision_cfg"]["patch_size"], described["embed_dim"]) == (32, 512)
    again = read_open_clip(described, None, "model")
    assert count_parameters(again) == 151_277_313


def test_a_siglip_has_its_form():
    model = make_model(flags_of("--image=vit_2x64/8", "--text=siglip_1x128"))
    image, text = model.image_tower, model.text_tower
    assert (image.pooling, text.pooling, text.layers, text.width) == (
        "attention",
        "last",
        1,
        128,
    )
    assert (image.layers, image.heads, image.mlp_width, model.width) == (2, 1, 256, 64)


def outputs_in(jaxpr):
    """Sums the outputs of products and convolutions in a traced program."""
    found = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            found += equation.outvars[0].aval.size
        for value in equation.params.values():
            parts = value if isinstance(value, list | tuple) else [value]
            inner = [getattr(part, "jaxpr", part) for part in parts]
            each = [
                outputs_in(program) for program in inner if hasattr(program, "eqns")
            ]
            found += max(each, default=0)  # only one branch of a `cond` runs
    return found


@pytest.mark.parametrize(("name", "side"), [("vit_2x64/8", 24), ("convnext_t", 64)])
def test_outputs_are_those_of_the_traced_tower(name, side):
    flags = flags_of(f"--image={name}", "--text=clip_2x64", f"--image_size={side}")
    flags.scan = False
    config = image_tower(flags)
    tower = build_tower("image_tower", config, jnp.float32)
    variables = jax.eval_shape(
        lambda: tower.init(jax.random.key(0), FIRST_INPUTS["images"], None, False)
    )
    images = jnp.zeros((1, side, side, 3))
    traced = jax.make_jaxpr(
        lambda variables, x: tower.apply(variables, x, None, False)
    )(variables, images)
    found = outputs_in(traced.jaxpr)
    if name.startswith("vit"):
        tokens = 1 + (side // 8) ** 2
        found -= config.layers * config.heads * tokens**2  # the scores
    assert found == count_outputs(config, side)


def test_outputs_of_an_efficientnet_are_its_normalisations_inputs():
    config = image_tower(flags_of("--image=b5"))
    found = normalise.layers(config, 289)
    assert count_outputs(config, 289) == sum(
        count * layer.size**2 * layer.channels for layer, count in found.items()
    )


def test_the_first_stages_of_v2_have_no_depthwise_convolution():
    config = image_tower(flags_of("--image=v2_s"))
    first = 112**2 * 24 * (1 + 2)  # stem and two blocks of one convolution
    second = 56**2 * (4 * 24 + 48 + 3 * (4 * 48 + 48))
    rest = count_outputs(config, 224) - first - second
    third = 28**2 * (4 * 48 + 64 + 3 * (4 * 64 + 64))
    assert rest > third
    small = type(config)(stages=config.stages[:3])
    assert count_outputs(small, 224) == first + second + third
