import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.devices.kernel_choice import INTERPRET, MOSAIC_INTERPRET, Kernels
from align_jax.devices.mesh import batch_split, make_mesh
from align_jax.models.batch_norm import BatchNorm
from align_jax.models.efficientnet import (
    VARIANTS,
    EfficientNet,
    EfficientNetConfig,
    drop_rates,
    expand_stages,
)
from align_jax.models.layers import rematerialised
from align_jax.models.mbconv import Block, Convolution, MBConv


def build(width, depth, **fields):
    config = EfficientNetConfig(width=width, depth=depth, **fields)
    return EfficientNet(config, batch_norm_group=2)


def shapes_of(model, size=64, **arguments):
    images, cores = jnp.zeros((2, size, size, 3)), jnp.arange(1)
    init = partial(model.init, jax.random.key(0), images, cores, False, **arguments)
    return jax.eval_shape(init)


# Trainable parameters and pooled widths of the published networks without their head.
SIZES = {
    "b0": (3_595_388, 320),
    "b1": (6_101_024, 320),
    "b2": (7_202_562, 352),
    "b3": (10_103_336, 384),
    "b4": (16_742_216, 448),
    "b5": (27_288_112, 512),
    "b6": (39_403_992, 576),
    "b7": (62_143_440, 640),
    "l2": (467_219_796, 1376),
}


# Tracing takes seconds. configs_test.py counts B1, B3, B5, B7 and L2.
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.pods] * (n != "b0")) for n in VARIANTS],
)
def test_published_sizes(name):
    model = build(*VARIANTS[name])
    params = shapes_of(model)["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert (count, model.config.output_width) == SIZES[name]


def test_published_depths_and_statistics():
    blocks = {
        n: sum(map(len, expand_stages(build(*VARIANTS[n]).config))) for n in SIZES
    }
    assert (blocks["b0"], blocks["b3"], blocks["b5"]) == (16, 26, 39)
    assert (blocks["b7"], blocks["l2"]) == (55, 88)
    statistics = shapes_of(build(*VARIANTS["b7"]))["batch_stats"]
    assert sum(leaf.size for leaf in jax.tree.leaves(statistics)) == 305_600


@pytest.mark.parametrize(
    ("padding", "size", "grids"),
    [
        ("keras", 289, (144, 144, 72, 36, 18, 18, 9, 9)),
        ("same", 289, (145, 145, 73, 37, 19, 19, 10, 10)),
        ("keras", 600, (300, 300, 150, 75, 37, 37, 18, 18)),
        ("same", 600, (300, 300, 150, 75, 38, 38, 19, 19)),
        *(
            pytest.param(*case, marks=pytest.mark.pods)
            for case in [
                ("keras", 360, (180, 180, 90, 45, 22, 22, 11, 11)),
                ("same", 360, (180, 180, 90, 45, 23, 23, 12, 12)),
                ("keras", 475, (237, 237, 118, 59, 29, 29, 14, 14)),
                ("same", 475, (238, 238, 119, 60, 30, 30, 15, 15)),
            ]
        ),
    ],
)
def test_published_grids(padding, size, grids):
    # Only the first block of a stage has a stride, so one size is enough for all
    # blocks.
    depth = VARIANTS["b7"][1] if size == 289 else 0.1
    model = build(VARIANTS["b7"][0], depth, padding=padding)
    seen = shapes_of(
        model,
        size,
        capture_intermediates=lambda module, _: isinstance(
            module, MBConv | Convolution
        ),
        mutable=["params", "batch_stats", "intermediates"],
    )["intermediates"]
    first = 0
    found = [seen["stem"]["__call__"][0].shape[1]]
    for stage in expand_stages(model.config):
        found.append(seen[f"block_{first:02}"]["__call__"][0].shape[1])
        first += len(stage)
    assert tuple(found) == grids


def test_the_top_convolution_is_built_when_asked_for():
    params = shapes_of(build(*VARIANTS["b0"], top_conv=True))["params"]
    assert params["top"]["kernel"].shape == (1, 1, 320, 1280)
    assert EfficientNetConfig(top_conv=True).output_width == 1280
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == 4_007_548  # Keras' B0 without its classifier


def test_stochastic_depth_grows_with_the_block():
    rates = drop_rates(EfficientNetConfig(drop_rate=0.2))
    np.testing.assert_allclose(rates, 0.2 * np.arange(16) / 16)


@pytest.mark.parametrize("field", ["padding", "rematerialise", "kernels"])
def test_an_unknown_choice_is_refused(field):
    with pytest.raises(ValueError, match=f"image_tower.{field} is 'x'; known: "):
        EfficientNetConfig(**{field: "x"})


@pytest.fixture(scope="module")
def run_small():
    """Returns a function from config to a step's loss, statistics and gradients."""
    stages = ((1, 3, 2, 1, 16), (3, 5, 2, 6, 24))  # two blocks are scanned as one
    config = EfficientNetConfig(width=0.25, drop_rate=0.5, stages=stages)
    images = jax.random.normal(jax.random.key(1), (4, 33, 33, 3))
    cores = jnp.arange(2)
    variables = jax.jit(EfficientNet(config, 2).init, static_argnums=3)(
        jax.random.key(0), images, cores, False
    )

    def run(**fields):
        model = EfficientNet(dataclasses.replace(config, **fields), 2)

        def score(params):
            out, changed = model.apply(
                {**variables, "params": params},
                images,
                cores,
                True,
                rngs={"dropout": jax.random.key(2)},
                mutable=["batch_stats"],
            )
            return jnp.square(out).sum(), changed

        step = jax.jit(jax.value_and_grad(score, has_aux=True))
        compiled = step.lower(variables["params"]).compile(
            {"xla_backend_optimization_level": 3}  # XLA's default; the tests set 0
        )
        return compiled(variables["params"])

    return run


@pytest.fixture(scope="module")
def plain(run_small):
    return run_small()


# Beside tower_forms_test.py, which does this for EfficientNetV2, on the same module and
# eight devices.
@pytest.mark.pods
@pytest.mark.parametrize(
    "fields",
    [{"rematerialise": "blocks"}, {"scan": True, "rematerialise": "stages"}],
)
def test_execution_changes_neither_result_nor_gradient(run_small, plain, fields):
    found = run_small(**fields)
    assert jax.tree.structure(found) == jax.tree.structure(plain)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(plain[1]))
    for a, b in zip(*map(jax.tree.leaves, (found, plain)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * scale)


@pytest.mark.parametrize(
    ("kind", "stride", "choice"),
    [
        (INTERPRET, 1, "none"),
        pytest.param(INTERPRET, 2, "pointwise", marks=pytest.mark.pods),
        (MOSAIC_INTERPRET, 1, "blocks"),
    ],
)
def test_kernels_change_neither_a_blocks_result_nor_its_gradient(kind, stride, choice):
    mesh = make_mesh(devices=jax.devices()[:2])
    block = Block(5, stride, 6, 8, 8, residual=stride == 1)
    x = jax.random.normal(jax.random.key(0), (4, 7, 5, 8))
    x = jax.device_put(x, batch_split(mesh))
    plain = MBConv(block, partial(BatchNorm, group_size=2))
    create = jax.jit(plain.init, static_argnums=3)
    variables = create(jax.random.key(1), x, None, True)

    def run(kernels, choice="none"):
        norm = partial(BatchNorm, group_size=2, kernels=kernels)
        layer = rematerialised(MBConv, choice, 3)(block, norm, kernels=kernels)

        def score(params):
            out, changed = layer.apply(
                {**variables, "params": params}, x, None, True, mutable=["batch_stats"]
            )
            return jnp.sin(out).sum(), (out, changed)

        return jax.jit(jax.value_and_grad(score, has_aux=True))(variables["params"])

    found, wanted = run(Kernels(kind, mesh), choice), run(Kernels())
    for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_pointwise_keeps_what_convolutions_return_and_no_other_wide_array(capsys):
    block, x = Block(3, 1, 6, 8, 8, residual=True), jnp.ones((4, 7, 5, 8))
    layer = rematerialised(MBConv, "pointwise", 3)(
        block, partial(BatchNorm, group_size=2)
    )
    create = jax.jit(layer.init, static_argnums=3)
    variables = create(jax.random.key(1), x, None, False)

    def score(params):
        changed = {**variables, "params": params}
        return layer.apply(changed, x, None, True, mutable=["batch_stats"])[0].sum()

    jax.ad_checkpoint.print_saved_residuals(score, variables["params"])
    kept = [line for line in capsys.readouterr().out.splitlines() if "[4,7,5," in line]
    assert sorted(line.partition(" from ")[0] for line in kept) == [
        "f32[4,7,5,48] named 'convolution'",
        "f32[4,7,5,48] named 'convolution'",
        "f32[4,7,5,8]",  # the block's input
        "f32[4,7,5,8] named 'convolution'",
    ]


def test_a_depthwise_kernel_starts_as_the_published_one():
    layer = Convolution(512, 5, depthwise=True)
    kernel = layer.init(jax.random.key(0), jnp.zeros((1, 8, 8, 512)))["params"]
    np.testing.assert_allclose(kernel["kernel"].std(), (2 / 25) ** 0.5, rtol=0.05)


@pytest.fixture(scope="module")
def smallest():
    """Returns a network of four blocks, the last two equal, and its variables."""
    last = (1, 3, 1, 6, 64)
    stages = (*EfficientNetConfig.smallest().stages, last)
    model = build(0.25, 1.0, drop_rate=0.0, stages=stages)
    images, cores = jnp.zeros((4, 32, 32, 3)), jnp.arange(2)
    create = jax.jit(model.init, static_argnums=3)
    return model, create(jax.random.key(0), images, cores, False)


@pytest.mark.parametrize("train", [False, True])
def test_every_pixel_and_every_parameter_matters(smallest, train):
    model, variables = smallest
    images = jax.random.normal(jax.random.key(1), (4, 33, 33, 3))
    cores = jnp.arange(2)
    weights = jax.random.normal(jax.random.key(2), (4, 16))

    def score(params, images):
        out, _ = model.apply(
            {**variables, "params": params}, images, cores, train, mutable=True
        )
        return (out * weights).sum()

    gradients = jax.jit(jax.grad(score, (0, 1)))
    to_params, to_images = gradients(variables["params"], images)
    assert (np.abs(to_images).sum((0, 3)) > 0).all()
    flat = jax.tree_util.tree_leaves_with_path(to_params)
    dead = [jax.tree_util.keystr(path) for path, g in flat if not np.any(g)]
    assert not dead


def test_an_image_is_encoded_alone_in_evaluation_and_with_its_group_in_training(
    smallest,
):
    model, variables = smallest
    images = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
    cores = jnp.arange(2)

    @partial(jax.jit, static_argnums=1)
    def encode(images, train):
        return model.apply(variables, images, cores, train, mutable=True)[0]

    def moved(train):
        changed = images.at[3].add(1.0)
        return np.any(encode(images, train) != encode(changed, train), axis=1).tolist()

    assert moved(False) == [False, False, False, True]
    assert moved(True) == [False, False, True, True]


def test_a_shift_before_a_pointwise_convolution_and_its_batch_norm_is_taken_out(
    smallest,
):
    # Hence the gradient of these biases is zero up to rounding, see pods_test.py.
    model, variables = smallest
    images = jax.random.normal(jax.random.key(1), (4, 64, 64, 3))

    @jax.jit
    def encode(params):
        shifted = {**variables, "params": params}
        return model.apply(shifted, images, jnp.arange(2), True, mutable=True)[0]

    plain = encode(variables["params"])
    *blocks, last = sorted(name for name in variables["params"] if "block_" in name)
    assert len(blocks) == 3
    for block in (*blocks, last):
        changed = jax.tree.map(lambda x: x, variables["params"])
        changed[block]["project_norm"]["bias"] += 0.1
        same = np.allclose(encode(changed), plain, atol=1e-4)
        assert same == (block != last), block
