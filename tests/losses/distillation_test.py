import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.config import read_config
from align_jax.devices.mesh import batch_split
from align_jax.errors import InputError
from align_jax.losses.distillation import Teacher, distillation_loss
from align_jax.losses.objective import LossConfig, compute_loss
from tests.jaxprs import largest_array
from tests.reference import distillation_reference, embeddings

D = 24


def as_float32(model):
    return [jnp.asarray(x, jnp.float32) for x in model]


def value_and_gradients(student, teacher, mesh, **options):
    """Returns the sum of the divergences, both of them, and the gradients."""
    known = Teacher(*as_float32(teacher))

    def total(*model):
        found = distillation_loss(*model, known, mesh, **options)
        return found.i2t + found.t2i, found

    gradient = jax.value_and_grad(total, (0, 1, 2), has_aux=True)
    return jax.jit(gradient)(*as_float32(student))


def drawn(n, width, temperature, seed):
    images, texts = embeddings(n, width, seed)
    texts[-1] = texts[0]
    return images, texts, temperature


@pytest.mark.parametrize(
    ("devices", "n", "width", "temperatures", "options"),
    [
        (8, 64, 24, (0.2, 0.05), {}),
        (8, 64, 7, (0.1, 1.0), {"tile": 12}),
        (4, 40, 130, (1 / 64, 1 / 100), {"tile": 7, "negatives": 0.25}),
        (1, 15, 3, (0.5, 0.02), {"tile": 4, "negatives": 1 / 3}),
        (1, 2, 1, (0.3, 0.2), {"tile": 1}),
        (1, 1, 5, (0.3, 0.2), {}),
    ],
)
def test_it_is_the_equation(mesh_of, devices, n, width, temperatures, options):
    student = drawn(n, D, temperatures[0], seed=n)
    teacher = drawn(n, width, temperatures[1], seed=n + 1)
    groups = round(1 / options.get("negatives", 1.0))
    i2t, t2i, expected = distillation_reference(student, teacher, groups)
    (loss, found), gradients = value_and_gradients(
        student, teacher, mesh_of(devices), **options
    )
    np.testing.assert_allclose(found.i2t, i2t, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.t2i, t2i, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(loss, i2t + t2i, rtol=1e-6, atol=2e-6)
    for mine, theirs in zip(gradients, expected, strict=True):
        scale = max(np.abs(theirs).max(), 1e-6)
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("options", [{}, {"tile": 12, "negatives": 0.5}])
def test_slices_and_devices_agree(mesh_of, options):
    student, teacher = drawn(64, D, 0.1, 0), drawn(64, 9, 0.05, 1)
    expected = value_and_gradients(student, teacher, mesh_of(1), **options)
    for mesh in (mesh_of(8), mesh_of(8, slices=2)):
        found = value_and_gradients(student, teacher, mesh, **options)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            found,
            expected,
        )


def test_a_student_that_is_its_teacher_is_at_the_minimum(mesh_of):
    student = drawn(64, D, 0.05, 0)
    (loss, _), still = value_and_gradients(student, student, mesh_of(8), tile=12)
    moved = (np.roll(student[0], 1, 0), *student[1:])
    (more, _), moving = value_and_gradients(moved, student, mesh_of(8), tile=12)
    assert abs(loss) < 1e-6 < 0.1 < more
    for gradient, other in zip(still, moving, strict=True):
        assert np.abs(gradient).max() < 1e-6 * np.abs(other).max()


def test_no_array_is_quadratic_in_the_batch(mesh_of):
    mesh, n = mesh_of(8), 2**16
    split = batch_split(mesh)

    def arrays(width):
        return [jax.ShapeDtypeStruct((n, width), jnp.float32, sharding=split)] * 2

    def total(images, texts, teacher_images, teacher_texts):
        teacher = Teacher(teacher_images, teacher_texts, 0.01)
        found = distillation_loss(images, texts, jnp.float32(0.1), teacher, mesh)
        return found.i2t + found.t2i

    traced = jax.make_jaxpr(jax.grad(total, (0, 1)))(*arrays(64), *arrays(96))
    assert largest_array(traced.jaxpr) <= 2 * n * 96 < n * n / 300


PARAMS = {"temperature": jnp.float32(0.2), "logit_bias": jnp.float32(-1.0)}


def loss_and_gradient(mesh, step=0, teacher=None, **fields):
    """Returns the loss, its metrics and its gradient by the images."""
    images, texts = as_float32(embeddings(16, D))
    if teacher is None:
        teacher = as_float32(embeddings(16, 6, seed=3))

    def loss(images):
        temperature = {"teacher_temperature": 0.1} if "distillation" in fields else {}
        config = read_config(LossConfig, temperature | fields)
        return compute_loss(
            (images, texts), None, PARAMS, config, mesh, (*teacher,), step
        )

    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(images)
    return float(value), metrics, np.asarray(gradient)


@pytest.mark.parametrize(
    "fields",
    [{}, {"kind": "sigmoid"}, {"reduction": "mean", "widths": (24, 6)}],
    ids=str,
)
def test_the_loss_is_the_mixture_by_the_share_of_the_step(mesh_of, fields):
    mesh = mesh_of(4)
    plain, metrics, by_plain = loss_and_gradient(mesh, **fields)
    student, teacher = embeddings(16, D), embeddings(16, 6, seed=3)
    divergences = distillation_reference((*student, 0.2), (*teacher, 0.1))
    factor = 0.5 if "reduction" in fields else 1.0
    pure = factor * (divergences[0] + divergences[1])
    by_pure = factor * divergences[2][0]
    shares = ((0, 0.25), (10, 0), (20, 1))
    for step, share in ((0, 0.25), (9, 0.25), (10, 0.0), (19, 0.0), (20, 1.0)):
        loss, found, gradient = loss_and_gradient(
            mesh, step, distillation=shares, **fields
        )
        assert loss == pytest.approx((1 - share) * plain + share * pure, rel=1e-5)
        expected = (1 - share) * by_plain + share * by_pure
        np.testing.assert_allclose(gradient, expected, atol=1e-5)
        assert found["distillation_share"] == share
        assert found["distillation_i2t"] == pytest.approx(divergences[0], rel=1e-5)
        assert {n: found[n] for n in metrics} == metrics
        if not share:
            assert loss == plain
            np.testing.assert_array_equal(gradient, by_plain)


def test_one_number_is_the_share_of_all_steps(mesh_of):
    fixed = loss_and_gradient(mesh_of(4), 7, distillation=((0, 0.5),))[0]
    assert loss_and_gradient(mesh_of(4), 7, distillation=0.5)[0] == fixed


def test_distillation_from_itself_at_share_1_moves_nothing(mesh_of):
    itself = as_float32(embeddings(16, D))
    fields = {"distillation": 1, "teacher_temperature": 0.2, "tile": 5}
    loss, _, gradient = loss_and_gradient(mesh_of(4), teacher=itself, **fields)
    assert abs(loss) < 1e-6
    _, _, other = loss_and_gradient(mesh_of(4), **fields)
    assert np.abs(gradient).max() < 1e-6 * np.abs(other).max()


def test_share_0_is_no_distillation():
    for shares in (0, 0.0, ((0, 0), (5, 0))):
        assert not read_config(LossConfig, {"distillation": shares}).distils


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"distillation": 1.5}, "1.5; wanted 0 to 1"),
        ({"distillation": ((0, 0.5), (10, -1))}, "wanted 0 to 1"),
        ({"distillation": ((5, 0.5),)}, "loss.distillation begins phases at steps"),
        ({"distillation": 0.5}, "loss.teacher_temperature None; wanted a number"),
        (
            {"teacher_temperature": 0.1},
            "loss.teacher_temperature is 0.1 .* wanted None",
        ),
        ({"distillation": True}, "True .bool.; wanted float"),
        ({"distillation": 1, "kind": "cross_entropy"}, "which compares no pairs"),
    ],
)
def test_wrong_fields_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        read_config(LossConfig, fields)


def test_the_embeddings_of_a_teacher_are_needed(mesh_of):
    with pytest.raises(ValueError, match="needs the embeddings of a teacher"):
        loss_and_gradient(mesh_of(4), teacher=(), distillation=1)
