import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.config import read_config
from align_jax.errors import InputError
from align_jax.models.dual_encoder import ModelConfig
from align_jax.models.parameters import variable_shapes
from align_jax.models.transformer import (
    SIZES,
    Transformer,
    TransformerConfig,
    find_tokens,
)
from align_jax.models.vit import SIZES as IMAGE_SIZES
from align_jax.models.vit import VitConfig
from align_jax.training.flops import count_flops
from tests.models import plain_blocks

SMALLEST = TransformerConfig.smallest()
END = SMALLEST.end_token
KEY = jax.eval_shape(lambda: jax.random.key(0))
SIGLIP = dataclasses.replace(
    SMALLEST, causal=False, pooling="last", mask_padding=False, activation="gelu_tanh"
)
TOKENS = np.array([[2, 5, 9, END, 0, 0], [2, END, 7, END, 0, 0], [2, 4, 5, 6, 7, END]])


def create(config):
    """Draws the variables of a tower; none is 0."""
    tower = Transformer(config)
    shapes = jax.eval_shape(partial(tower.init, train=False), KEY, TOKENS, None)
    return tower, {"params": plain_blocks.draw(shapes["params"])}


def encode(config, variables, tokens):
    run = jax.jit(Transformer(config).apply, static_argnums=3)
    return np.asarray(run(variables, jnp.asarray(tokens), None, False))


def encode_plainly(p, tokens, config):
    """Returns one text's feature by plain numpy in float64."""
    length = len(tokens)
    x = p["word_embeddings"]["embedding"].astype(np.float64)[tokens]
    x = x + p["position_embeddings"]["embedding"][:length]
    real = np.flatnonzero(tokens != config.pad_token).max() + 1
    allowed = np.ones((length, length), bool)
    if config.mask_padding:
        allowed[:, real:] = False
    if config.causal:
        allowed = np.tril(allowed)
    for name in config.block_names():
        x = plain_blocks.block(p[name], x, config, allowed=allowed)
    x = plain_blocks.norm(p["final_norm"], x, config.norm_epsilon)
    place = {"end": [*tokens].index(END), "last": length - 1, "first": 0}
    return x[:real].mean(0) if config.pooling == "mean" else x[place[config.pooling]]


@pytest.mark.parametrize(
    "config",
    [
        SMALLEST,
        dataclasses.replace(SIGLIP, layers=2),
        dataclasses.replace(SMALLEST, causal=False, pooling="mean"),
        dataclasses.replace(SIGLIP, pooling="first", activation="quick_gelu"),
    ],
    ids=["smallest", "siglip", "mean", "first"],
)
def test_features_are_those_of_plain_numpy(config):
    _, variables = create(config)
    found = encode(config, variables, TOKENS)
    for row, tokens in zip(found, TOKENS, strict=True):
        expected = encode_plainly(variables["params"], tokens, config)
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-5)


def test_later_tokens_and_padding_change_nothing():
    _, variables = create(SMALLEST)
    later = np.where(np.arange(6) > 3, 11, TOKENS[:1])
    np.testing.assert_array_equal(
        encode(SMALLEST, variables, later), encode(SMALLEST, variables, TOKENS[:1])
    )
    both = dataclasses.replace(SMALLEST, causal=False)
    found = encode(both, variables, TOKENS[:2])
    assert np.abs(found[:1] - encode(both, variables, later)).max() > 1e-3
    shorter = encode(both, variables, TOKENS[:2, :4])
    np.testing.assert_allclose(found, shorter, rtol=1e-5, atol=1e-6)
    seen = dataclasses.replace(both, mask_padding=False)
    assert np.abs(found - encode(seen, variables, TOKENS[:2])).max() > 1e-3


def test_only_the_last_ids_are_padding():
    """CLIP's tokenizer has an id 0 that is a mark, and pads with 0 or with the end."""
    tokens = jnp.array([[2, 0, 5, 3, 0, 0], [0, 0, 0, 0, 0, 0], [2, 3, 3, 3, 3, 3]])
    rows = find_tokens(tokens, SMALLEST)
    assert rows.sum(1).tolist() == [4, 1, 6]
    rows = find_tokens(tokens, dataclasses.replace(SMALLEST, pad_token=END))
    assert rows.sum(1).tolist() == [6, 6, 2]
    assert (np.diff(rows.astype(int), axis=1) <= 0).all()


# Millions of parameters of OpenCLIP's text encoders with their projection, see
# `vit_test`: CLIP's have no bias in it. Then billions of operations for a text.
SIZES_IN_OPENCLIP = {
    ("clip_b", 49_408, 77, 0): (63.43, 5.96),
    ("clip_l", 49_408, 77, 0): (123.65, 13.3),
    ("clip_h", 49_408, 77, 0): (354.03, 47.09),
    ("clip_G", 49_408, 77, 0): (694.66, 97.86),
    ("siglip_b", 32_000, 64, 1): (110.27, 11.02),
    ("siglip_l", 32_000, 64, 1): (336.19, 39.06),
    ("siglip_so400m", 32_000, 16, 1): (449.68, 13.19),
}
FAST = ("clip_b", "siglip_b")


@pytest.mark.parametrize(
    ("size", "vocabulary", "length", "bias"),
    [
        pytest.param(*case, marks=[] if case[0] in FAST else [pytest.mark.pods])
        for case in SIZES_IN_OPENCLIP
    ],
)
def test_published_sizes(size, vocabulary, length, bias):
    millions, billions = SIZES_IN_OPENCLIP[size, vocabulary, length, bias]
    config = dataclasses.replace(text_config(size, vocabulary, length), scan=True)
    tower, tokens = Transformer(config), jax.ShapeDtypeStruct((1, length), jnp.int32)
    variables = jax.eval_shape(partial(tower.init, train=False), KEY, tokens, None)
    last = config.width**2  # of the projection
    count = sum(x.size for x in jax.tree.leaves(variables)) + last + bias * config.width
    assert round(count / 1e6, 2) == millions
    apply = partial(tower.apply, core_ids=None, train=False)
    work = count_flops(apply, variables, tokens) + 2 * last
    assert work / 1e9 == pytest.approx(billions, rel=2e-3)


def text_config(size, vocabulary, length):
    width, layers, heads, mlp_width = SIZES[size]
    return TransformerConfig(
        vocabulary,
        max_tokens=length,
        positions=length,
        width=width,
        layers=layers,
        heads=heads,
        mlp_width=mlp_width,
        pooling="last",
    )


def image_config(size, patch, side, **fields):
    width, layers, heads, mlp_width = IMAGE_SIZES[size]
    return VitConfig(
        patch=patch,
        width=width,
        layers=layers,
        heads=heads,
        mlp_width=mlp_width,
        position_grid=side // patch,
        **fields,
    )


# Parameters of whole models, openai/clip-vit-base-patch32 and google/siglip2-giant-opt-
# patch16-256, on the Hugging Face Hub.
@pytest.mark.parametrize(
    ("config", "count"),
    [
        (
            ModelConfig(
                image_config("b", 32, 224, pre_norm=True, patch_bias=False),
                text_config("clip_b", 49_408, 77),
                embedding_size=512,
                projection_bias=False,
                temperature_form="log",
            ),
            151_277_313,
        ),
        pytest.param(
            ModelConfig(
                image_config("g_opt", 16, 256, pooling="attention"),
                text_config("siglip_so400m", 256_000, 64),
                logit_bias_init=-10.0,
            ),
            1_871_393_906,
            marks=pytest.mark.pods,
        ),
    ],
    ids=["clip_b32", "siglip2_g_opt"],
)
def test_published_models_have_as_many_parameters(config, count):
    assert sum(np.prod(s, dtype=int) for s in variable_shapes(config).values()) == count


def test_kernels_start_with_clips_deviations():
    config = dataclasses.replace(SMALLEST, width=64, mlp_width=256, layers=2, heads=2)
    variables = jax.jit(Transformer(config).init, static_argnums=3)(
        jax.random.key(0), jnp.asarray(TOKENS), None, False
    )
    layer, width = variables["params"]["layer_01"], 64
    expected = {
        "query": width**-0.5,
        "attention_output": width**-0.5 * 4**-0.5,
        "intermediate": (2 * width) ** -0.5,
        "output": width**-0.5 * 4**-0.5,
    }
    for name, deviation in expected.items():
        assert layer[name]["kernel"].std() == pytest.approx(deviation, rel=0.05)
        assert not layer[name]["bias"].any()
    embeddings = variables["params"]["position_embeddings"]["embedding"]
    assert embeddings.std() == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pooling": "end"}, "end_token None; wanted the id of the token that ends"),
        ({"pooling": "max"}, "pooling is 'max'; known: end, last, mean, first"),
        ({"positions": 63}, "positions is 63, below text_tower.max_tokens, 64"),
        (
            {"end_token": 99},
            "end_token is 99; wanted an id below .*y_size, 50",
        ),
        ({"pad_token": 50}, "pad_token is 50; wanted an id below"),
        ({"heads": 6}, "width is 512; it must be a multiple of text_tower.heads, 6"),
    ],
)
def test_wrong_fields_are_refused(fields, message):
    fields = {"vocabulary_size": 50, "pooling": "last"} | fields
    with pytest.raises(InputError, match=message):
        read_config(TransformerConfig, fields)
