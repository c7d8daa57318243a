import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.devices.mesh import batch_split, replicated
from align_jax.losses import pair_choice
from align_jax.losses.pair_choice import Choice, Judge, choose_pairs
from tests.jaxprs import largest_array
from tests.reference import choose_pairs_reference, embeddings

N, COUNT, CHUNKS = 160, 32, 4


def judge(pairs, temperature, bias=0.0, weight=1.0):
    images, texts = (jnp.asarray(x, jnp.float32) for x in pairs)
    return Judge(images, texts, jnp.float32(temperature), jnp.float32(bias), weight)


def choose(judges, choice, seeds=(0,)):
    """Chooses from embeddings that are split by rows; returns results of each seed."""
    split, whole = batch_split(choice.mesh), replicated(choice.mesh)
    arrays = [j[:4] for j in judges]
    arrays = jax.device_put(arrays, [(split, split, whole, whole)] * len(judges))

    @jax.jit
    def run(arrays, key):
        weighed = [Judge(*a, j.weight) for a, j in zip(arrays, judges, strict=True)]
        return choose_pairs(weighed, key, choice)

    return [run(arrays, jax.random.key(seed)) for seed in seeds]


def learner_and_reference(loss):
    bias = -2.0 if loss == "sigmoid" else 0.0
    learner = judge(embeddings(N), 0.1, bias)
    reference = judge(embeddings(N, d=16, seed=1), 0.07, 1.5 * bias, weight=-1.0)
    return [learner, reference]


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("used", [(0, 1), (0,), (1,)])
@pytest.mark.parametrize(("devices", "slices", "gain"), [(1, 1, 1.0), (8, 2, 0.5)])
def test_the_choice_is_that_of_the_equations_for_the_same_draws(
    mesh_of, monkeypatch, loss, used, devices, slices, gain
):
    monkeypatch.setattr(pair_choice, "BLOCK_BYTES", 8 * 8 * 3)  # three rows at a time
    judges = [learner_and_reference(loss)[i] for i in used]
    choice = Choice(COUNT, CHUNKS, loss, gain, mesh_of(devices, slices=slices))
    ((chosen, scores),) = choose(judges, choice)
    keys = [jax.random.fold_in(jax.random.key(0), i) for i in range(CHUNKS)]
    noise = np.stack([jax.random.gumbel(key, (N,)) for key in keys])
    exact = [tuple(np.asarray(x, np.float64) for x in j) for j in judges]
    expected = choose_pairs_reference(exact, noise, COUNT, loss, gain)
    np.testing.assert_array_equal(chosen, expected)
    assert len({*expected.tolist()}) == COUNT
    own = [-j[4] * (j[0] * j[1]).sum(1) / j[2] for j in exact]
    if loss == "softmax":
        np.testing.assert_allclose(scores, np.sum(own, 0), rtol=1e-5, atol=1e-5)


def test_all_pairs_are_chosen_in_order_if_none_is_left_out(mesh_of):
    choice = Choice(N, CHUNKS, "softmax", 1.0, mesh_of(8))
    ((chosen, _),) = choose(learner_and_reference("softmax"), choice)
    np.testing.assert_array_equal(chosen, np.arange(N))


def planted():
    """Makes 160 pairs: 40 known, 40 learnable, 40 of noise and 40 alike.

    The learner knows the first only, the reference all but the noise. Pictures of the
    last kind are nearly the same for both models, and so are their texts.
    """
    rng = np.random.default_rng(0)

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    def pairs(known, width):
        images = unit(rng.normal(size=(N, width)))
        texts = unit(rng.normal(size=(N, width)))
        texts[known] = images[known]
        return images, texts

    learner = pairs(np.arange(40), 64)
    reference = pairs(np.r_[0:80, 120:160], 48)
    for images, texts in (learner, reference):
        images[120:] = unit(images[120] + 0.05 * images[120:])
        texts[120:] = images[120:]
    return judge(learner, 0.1), judge(reference, 0.1, weight=-1.0)


def shares(judges, choice):
    """Returns the mean number of chosen pairs of each kind of `planted`."""
    results = choose(judges, choice, seeds=range(5))
    kinds = [np.bincount(rows // 40, minlength=4) for rows, _ in results]
    return np.mean(kinds, axis=0)


def test_learnability_finds_learnable_pairs_and_the_learner_alone_takes_noise(mesh_of):
    learner, reference = planted()
    choice = Choice(32, 8, "softmax", 1.0, mesh_of(1))
    _, learnable, noise, _ = shares([learner, reference], choice)
    assert learnable > 30
    assert noise < 1
    _, learnable, noise, _ = shares([learner], choice)
    assert min(learnable, noise) > 10  # it cannot tell them apart


def test_pairs_that_are_negatives_of_each_other_are_chosen_together(mesh_of):
    learner, _ = planted()
    alike = [
        shares([learner], Choice(32, chunks, "sigmoid", 1.0, mesh_of(1)))[3]
        for chunks in (1, 16)
    ]
    assert alike[1] > 2 * alike[0]


@pytest.mark.parametrize("devices", [1, 8])
def test_memory_is_linear_in_the_pairs_at_the_size_of_the_paper(mesh_of, devices):
    n, width, count = 81_920, 64, 16_384
    choice = Choice(count, 16, "softmax", 1.0, mesh_of(devices))
    vectors = jax.ShapeDtypeStruct((n, width), jnp.float32)
    scalar = jax.ShapeDtypeStruct((), jnp.float32)

    def run(*arrays):
        key = jax.random.key(0)
        return choose_pairs([Judge(*arrays, 1.0)], key, choice)

    program = jax.make_jaxpr(run)(vectors, vectors, scalar, scalar)
    block = pair_choice.BLOCK_BYTES // 8
    largest = largest_array(program.jaxpr)
    assert block <= largest <= max(n * width, 2 * block) < n * count / 100
