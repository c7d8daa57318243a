import cmath
import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from align_jax.config import read_config
from align_jax.errors import InputError
from align_jax.models.parameters import tower_shapes
from align_jax.models.positions import (
    resize_grid,
    rotary_positions,
    sincos_positions,
)
from align_jax.models.vit import SIZES, Vit, VitConfig
from align_jax.training.flops import count_flops
from tests.models import plain_blocks

SMALLEST = VitConfig.smallest()
CLIP = dataclasses.replace(
    SMALLEST,
    pooling="cls",
    registers=0,
    patch_bias=False,
    activation="quick_gelu",
    norm_epsilon=1e-5,
    layer_scale=None,
    qk_norm=False,
)


def create(config, seed=0):
    """Draws the variables of a tower; none is 0."""
    tower = Vit(config)
    images = jnp.zeros((1, 64, 64, 3))
    shapes = jax.eval_shape(partial(tower.init, train=False), KEY, images, None)
    return tower, {"params": plain_blocks.draw(shapes["params"], seed)}


KEY = jax.eval_shape(lambda: jax.random.key(0))
IMAGES = np.random.default_rng(1).normal(size=(2, 16, 19, 3)).astype(np.float32)


def wave_positions(side, width):
    """Sines and cosines of whole coordinates, one patch and frequency at a time."""
    count = width // 4
    rows = []
    for y in range(side):
        for x in range(side):
            angles = [10_000 ** (-i / (count - 1)) for i in range(count)]
            row = [f(z * a) for z, f in ((x, np.sin), (x, np.cos)) for a in angles]
            rows.append(row + [f(y * a) for f in (np.sin, np.cos) for a in angles])
    return np.array(rows)


def turn_of(config):
    """A function that turns a token's channels as complex numbers, by y or x."""
    before, side = (config.pooling == "cls") + config.registers, config.position_grid

    def turn(token, channels):
        half = len(channels) // 2
        patch = token - before
        numbers = channels[:half] + 1j * channels[half:]
        if patch >= 0:
            for i in range(half):
                coordinate = patch % side if i < half // 2 else patch // side
                frequency = 100 ** (-(i % (half // 2)) / (half // 2))
                numbers[i] *= cmath.exp(1j * coordinate * frequency)
        return np.concatenate([numbers.real, numbers.imag])

    return turn


def encode_plainly(p, image, config):
    """Returns one picture's features by plain numpy in float64."""
    side, size = config.position_grid, config.patch
    corners = [(i * size, j * size) for i in range(side) for j in range(side)]
    cut = [image[i : i + size, j : j + size] for i, j in corners]
    x = np.stack([np.einsum("ijc,ijcw->w", c, p["patches"]["kernel"]) for c in cut])
    x = x + p["patches"].get("bias", 0.0)
    leading = []
    if config.pooling == "cls":
        leading.append(p["class_token"].astype(np.float64))
    if config.positions == "learned":
        *first, _ = np.split(p["position_embeddings"], [-side * side])
        leading = [token + own[0] for token, own in zip(leading, first, strict=False)]
        x = x + p["position_embeddings"][-side * side :]
    elif config.positions == "sincos":
        x = x + wave_positions(side, config.width)
    leading += [*p.get("registers", ())]
    x = np.stack([*leading, *x])
    if config.pre_norm:
        x = plain_blocks.norm(p["pre_norm"], x, config.norm_epsilon)
    turn = turn_of(config) if config.positions == "rope" else None
    for name in config.block_names():
        x = plain_blocks.block(p[name], x, config, turn=turn)
    if config.final_norm:
        x = plain_blocks.norm(p["final_norm"], x, config.norm_epsilon)
    if config.pooling == "cls":
        return x[0]
    x = x[len(leading) :]
    if config.pooling == "mean":
        return x.mean(0)
    pool = p["pool"]
    y = plain_blocks.attend(pool, pool["probe"].astype(np.float64), x, config)
    normed = plain_blocks.norm(pool["norm"], y, config.norm_epsilon)
    return (y + plain_blocks.feed_forward(pool, normed, config))[0]


@pytest.mark.parametrize(
    "config",
    [
        SMALLEST,
        dataclasses.replace(CLIP, layers=2),
        dataclasses.replace(
            SMALLEST, positions="rope", pooling="mean", activation="gelu_tanh", heads=1
        ),
        dataclasses.replace(CLIP, positions="rope", final_norm=False, registers=2),
        dataclasses.replace(CLIP, positions="sincos", pre_norm=False),
    ],
    ids=["smallest", "clip", "rope", "rope_cls", "sincos"],
)
def test_features_are_those_of_plain_numpy(config):
    tower, variables = create(config)
    found = jax.jit(lambda x: tower.apply(variables, x, None, False))(IMAGES)
    for row, image in zip(found, IMAGES.astype(np.float64), strict=True):
        expected = encode_plainly(variables["params"], image, config)
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-5)


# Millions of parameters of OpenCLIP's image encoders
# (https://github.com/mlfoundations/open_clip/blob/main/docs/model_profile.csv): CLIP's
# with their projection, which is no part of the tower, and SigLIP's without one. Then
# billions of operations for a picture of 224 pixels.
SIZES_IN_OPENCLIP = {
    ("s", 16, 384): (21.81, 9.2),
    ("b", 32, 512): (87.85, 8.82),
    ("b", 16, 512): (86.19, 35.13),
    ("l", 14, 768): (303.97, 162.03),
    ("h", 14, 1024): (632.08, 334.59),
    ("g", 14, 1024): (1012.65, 534.06),
    ("G", 14, 1280): (1844.91, 967.5),
    ("b", 16, None): (92.88, 35.42),
    ("so400m", 14, None): (427.68, 220.35),
}
FAST = (("b", 32, 512), ("so400m", 14, None))


@pytest.mark.parametrize(
    ("size", "patch", "projection"),
    [
        pytest.param(*case, marks=[] if case in FAST else [pytest.mark.pods])
        for case in SIZES_IN_OPENCLIP
    ],
)
def test_published_sizes(size, patch, projection):
    millions, billions = SIZES_IN_OPENCLIP[size, patch, projection]
    width, layers, heads, mlp_width = SIZES[size]
    config = VitConfig(
        patch=patch,
        width=width,
        layers=layers,
        heads=heads,
        mlp_width=mlp_width,
        pooling="cls" if projection else "attention",
        position_grid=224 // patch,
        pre_norm=projection is not None,
        patch_bias=projection is None,
        scan=True,
    )
    tower, images = Vit(config), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    apply = partial(tower.apply, core_ids=None, train=False)
    variables = jax.eval_shape(partial(tower.init, train=False), KEY, images, None)
    last = width * (projection or 0)
    count = sum(x.size for x in jax.tree.leaves(variables)) + last
    assert round(count / 1e6, 2) == millions
    work = count_flops(apply, variables, images) + 2 * last
    assert work / 1e9 == pytest.approx(billions, rel=2e-3)


def test_the_tiny_size_is_the_published_one():
    """timm's vit_tiny_patch16_224, with a layer to 1000 classes; 1.3e9 products."""
    width, layers, heads, mlp_width = SIZES["ti"]
    config = VitConfig(
        width=width, layers=layers, heads=heads, mlp_width=mlp_width, scan=True
    )
    tower, images = Vit(config), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(partial(tower.init, train=False), KEY, images, None)
    count = sum(x.size for x in jax.tree.leaves(variables))
    assert count + 1000 * (width + 1) == 5_717_416
    apply = partial(tower.apply, core_ids=None, train=False)
    assert round(count_flops(apply, variables, images) / 2e9, 1) == 1.3


def test_every_pixel_of_a_patch_and_every_parameter_matters():
    tower, variables = create(dataclasses.replace(SMALLEST, drop_rate=0.0))
    weights = jax.random.normal(jax.random.key(2), (2, 16))

    @jax.jit
    def gradients(params, images):
        def score(params, images):
            out = tower.apply({"params": params}, images, None, False)
            return (out * weights).sum()

        return jax.grad(score, (0, 1))(params, images)

    to_params, to_images = gradients(variables["params"], IMAGES)
    seen = np.abs(to_images).sum((0, 3)) > 0
    assert seen[:, :16].all()
    assert not seen[:, 16:].any()  # they fill no patch
    flat = jax.tree_util.tree_leaves_with_path(to_params)
    assert not [jax.tree_util.keystr(path) for path, g in flat if not np.any(g)]


def test_learned_positions_are_resized_as_pictures_are():
    grid = np.random.default_rng(0).normal(size=(7, 7, 3)).astype(np.float32)
    assert resize_grid(grid, 7, 7) is grid
    for height, width in ((12, 10), (4, 5), (7, 3)):
        found = resize_grid(jnp.asarray(grid), height, width)
        for channel in range(3):
            plane = Image.fromarray(grid[..., channel])
            expected = plane.resize((width, height), Image.Resampling.BICUBIC)
            np.testing.assert_allclose(found[..., channel], expected, atol=1e-5)


def test_coordinates_of_other_grids_lie_between_those_of_the_grid():
    ours = sincos_positions(4, 4, 4, 16)
    np.testing.assert_allclose(ours, wave_positions(4, 16), atol=1e-6)
    # The centre of a patch is that of three patches of a grid three times as fine.
    fine = sincos_positions(12, 12, 4, 16).reshape(12, 12, 16)
    np.testing.assert_allclose(fine[1::3, 1::3].reshape(16, 16), ours, atol=1e-6)
    fine, ours = rotary_positions(6, 6, 2, 8, 1), rotary_positions(2, 2, 2, 8, 1)
    for own, finer in zip(ours, fine, strict=True):
        middle = finer[0, 1:, 0].reshape(6, 6, 4)[1::3, 1::3].reshape(4, 4)
        np.testing.assert_allclose(middle, own[0, 1:, 0], atol=1e-6)
        np.testing.assert_array_equal(finer[0, 0], own[0, 0])


def test_rotations_make_attention_a_function_of_distances():
    rotation = rotary_positions(3, 3, 3, 8, 2)
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
    rotated = (
        rotation.rotate(jnp.broadcast_to(x, (1, 11, 1, 8))) for x in (query, key)
    )
    logits = np.einsum("bqhd,bkhd->qk", *rotated)
    plain = (query * key).sum()
    np.testing.assert_allclose(np.diag(logits), plain, rtol=1e-5)
    np.testing.assert_allclose(logits[:2, :2], plain, rtol=1e-5)
    patches = logits[2:, 2:].reshape(3, 3, 3, 3)
    right = [patches[0, 0, 1, 2], patches[1, 0, 2, 2]]  # one down and two to the right
    np.testing.assert_allclose(right[0], right[1], rtol=1e-5)
    assert abs(patches[0, 0, 2, 1] - right[0]) > 1e-3


@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_patch_dropout_leaves_out_a_share_of_the_patches(positions):
    config = dataclasses.replace(
        CLIP, positions=positions, position_grid=4, patch_dropout=0.7, drop_rate=0.0
    )
    tower, variables = create(config)
    images = np.random.default_rng(3).normal(size=(4, 32, 32, 3)).astype(np.float32)

    @jax.jit
    def used(seed):
        def score(images):
            keys = {"dropout": jax.random.key(seed)}
            out = tower.apply(variables, images, jnp.arange(2), True, rngs=keys)
            return (out * jnp.arange(16.0)[None]).sum()

        slopes = jnp.abs(jax.grad(score)(images))
        return slopes.reshape(4, 4, 8, 4, 8, 3).sum((2, 4, 5)) > 0

    first, second = used(0), used(1)
    np.testing.assert_array_equal(first.sum((1, 2)), 16 - round(16 * 0.7))
    assert (first != second).any()
    assert (first[0] != first[1]).any()


def test_no_dropout_is_evaluation():
    config = dataclasses.replace(SMALLEST, patch_dropout=0.0, drop_rate=0.0)
    tower, variables = create(config)
    run = jax.jit(tower.apply, static_argnums=3)
    trained, evaluated = (run(variables, IMAGES, None, t) for t in (True, False))
    np.testing.assert_array_equal(trained, evaluated)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"pooling": "max"},
            "pooling is 'max'; known: cls, mean, attention",
        ),
        ({"positions": "none"}, "image_tower.positions is 'none'; .*sincos, rope"),
        ({"activation": "relu"}, "image_tower.activation is 'relu'; .*gelu_tanh"),
        ({"rematerialise": "stages"}, "rematerialise is 'stages'; known: none, blocks"),
        ({"heads": 7}, "width is 768; it must be a multiple of image_tower.heads, 7"),
        ({"positions": "sincos", "width": 6, "heads": 2}, "width 6; wanted a mul"),
        (
            {"positions": "rope", "heads": 128},
            "width 6 .*heads 128.; wanted a",
        ),
        ({"patch_dropout": 1.0}, "patch_dropout is 1.0; wanted 0 or more, below 1"),
        ({"layers": 100}, "layers is 100; wanted 1 to 99"),
    ],
)
def test_wrong_fields_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        read_config(VitConfig, fields)


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="has cuDNN")
def test_an_attention_that_the_devices_lack_is_refused():
    config = dataclasses.replace(VitConfig.smallest(), attention="cudnn")
    tower = Vit(config, jnp.bfloat16)
    with pytest.raises(InputError, match=r"attention is 'cudnn', .* wanted 'xla'"):
        jax.eval_shape(
            lambda: tower.init(
                jax.random.key(0), jnp.zeros((2, 16, 16, 3)), jnp.arange(2), False
            )
        )
    assert config.computed_once().attention == "xla"


def test_a_picture_below_a_patch_is_refused():
    with pytest.raises(InputError, match=r"64 x 64 pixels and .*patch is 128; wan"):
        tower_shapes("image_tower", VitConfig(patch=128))
