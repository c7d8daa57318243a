import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from align_jax.devices.kernel_choice import INTERPRET, Kernels
from align_jax.losses import contrastive_gpu
from align_jax.models.efficientnet import VARIANTS, EfficientNet, EfficientNetConfig
from align_jax.training.flops import count_flops, count_model_flops
from tests import steps


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_products_are_counted_by_hand():
    assert count_flops(jnp.dot, shape(3, 4), shape(4, 5)) == 2 * 3 * 4 * 5
    gradient = jax.grad(lambda a, b: (a @ b).sum(), (0, 1))
    assert count_flops(gradient, shape(3, 4), shape(4, 5)) == 2 * (2 * 3 * 4 * 5)
    batched = lambda a, b: jnp.einsum("bij,bjk->bik", a, b)  # noqa: E731
    assert count_flops(batched, shape(7, 3, 4), shape(7, 4, 5)) == 7 * 2 * 3 * 4 * 5

    def scanned(x, w):
        return lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=6)[0]

    assert count_flops(jax.jit(scanned), shape(2, 4), shape(4, 4)) == 6 * 2 * 2 * 4 * 4


@pytest.mark.parametrize(("groups", "channels"), [(1, 6), (3, 6)])
def test_convolutions_and_their_gradients_are_counted_by_hand(groups, channels):
    def convolve(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            (2, 2),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    x, kernel = shape(5, 9, 9, channels), shape(3, 3, channels // groups, 12)
    forward = 2 * (5 * 4 * 4 * 12) * (3 * 3 * channels // groups)
    assert count_flops(convolve, x, kernel) == forward
    total = lambda *args: convolve(*args).sum()  # noqa: E731
    to_kernel = count_flops(jax.grad(total, 1), x, kernel)
    assert to_kernel == forward
    to_x = count_flops(jax.grad(total, 0), x, kernel)
    assert to_x == pytest.approx(
        forward, rel=0.3
    )  # counted for the 9 x 9 positions of x, not for 8 x 8 = 4 x 4 outputs at stride 2


# Billions of multiplications with additions, from arXiv 1905.11946, table 2.
@pytest.mark.parametrize(
    ("name", "size", "billions"),
    [
        ("b0", 224, 0.39),
        pytest.param("b1", 240, 0.70, marks=pytest.mark.pods),
        pytest.param("b2", 260, 1.0, marks=pytest.mark.pods),
        pytest.param("b3", 300, 1.8, marks=pytest.mark.pods),
        pytest.param("b4", 380, 4.2, marks=pytest.mark.pods),
        pytest.param("b5", 456, 9.9, marks=pytest.mark.pods),
        pytest.param("b6", 528, 19.0, marks=pytest.mark.pods),
        ("b7", 600, 37.0),
    ],
)
def test_published_sizes(name, size, billions):
    width, depth = VARIANTS[name]
    config = EfficientNetConfig(width, depth, top_conv=True, scan=True)
    model, cores = EfficientNet(config, 1), jnp.arange(1)
    images = shape(1, size, size, 3)
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), cores, False)
    )
    apply = lambda variables, x: model.apply(variables, x, cores, False)  # noqa: E731
    found = count_flops(apply, variables, images) / 2e9
    assert found == pytest.approx(billions, rel=0.06)


def test_a_step_is_counted_once_however_it_is_computed(tmp_path, mesh_of):
    config = steps.read(tmp_path)
    plan = config.make_plan(mesh_of(1))
    found = count_model_flops(plan, config.batch_shapes(plan.mesh))
    tower = dataclasses.replace(config.model.image_tower, rematerialise="blocks")
    model = dataclasses.replace(config.model, image_tower=tower)
    again = dataclasses.replace(config, model=model, microbatches=2, fsdp=4)
    plan = again.make_plan(mesh_of(4, 4))
    assert count_model_flops(plan, again.batch_shapes(plan.mesh)) == found
    assert min(found.values()) > 0

    frozen = dataclasses.replace(config.optimizer, frozen=("^image_tower/",))
    held = dataclasses.replace(config, optimizer=frozen).make_plan(mesh_of(1))
    less = count_model_flops(held, config.batch_shapes(held.mesh))
    assert less["text_tower"] == found["text_tower"]
    assert less["image_tower"] == pytest.approx(found["image_tower"] / 3, rel=0.1)


@pytest.mark.parametrize("part", ["image_tower", "loss"])
def test_a_step_with_kernels_is_counted_as_without(
    tmp_path, mesh_of, monkeypatch, part
):
    config = steps.read(tmp_path)
    loss = dataclasses.replace(config.loss, precision="default")
    plan = dataclasses.replace(config, loss=loss).make_plan(mesh_of(1))
    wanted = count_model_flops(plan, config.batch_shapes(plan.mesh))
    kernels = Kernels(INTERPRET, plan.mesh)
    if part == "loss":
        monkeypatch.setattr(contrastive_gpu, "choose_kernels", lambda *_: kernels)
        plan = dataclasses.replace(plan, seed=plan.seed + 1)  # counts are cached
    else:
        plan = dataclasses.replace(plan, model=plan.model.clone(kernels=kernels))
    assert count_model_flops(plan, config.batch_shapes(plan.mesh)) == wanted
