import json

import numpy as np
import pytest

from align_jax.models.parameters import unflatten
from tests import steps
from tests.reference import contrastive_reference, embeddings
from tests.two_processes import (
    CASES,
    STEPS,
    embed,
    make_config,
    open_embedder,
    rank,
    score,
)
from tests.worker_processes import run_joined


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def results(root):
    """The arrays and metrics that two processes of four devices each computed."""
    make_config(str(root))  # writes the data that both processes read
    run_joined("tests.two_processes", root, 2)
    arrays = np.load(root / "arrays.npz")
    return arrays, json.loads((root / "metrics.json").read_text())


def variables_of(arrays):
    names = [name for name in arrays if name.startswith("variables/")]
    return unflatten({tuple(n.split("/")[1:]): arrays[n] for n in names})


def test_small_values_are_gathered_by_process_and_nothing_is_compiled(results):
    arrays, _ = results
    found = {n.split("/")[1]: arrays[n] for n in arrays if n.startswith("exchange/")}
    numbers = [[10 * i, 10 * i + 1] for i in range(12)]
    np.testing.assert_array_equal(found["numbers"], np.float32(numbers))
    large = np.stack([np.full((2, 3), 2**63 + i, np.uint64) for i in range(2)])
    np.testing.assert_array_equal(found["large"], large)
    assert found["truth"].tolist() == [False, True]
    assert found["empty"].shape == (2, 0, 4)
    assert found["compiled"] == 0


@pytest.mark.parametrize("case", range(len(CASES)))
def test_loss_and_gradients_equal_the_equation(results, case):
    arrays, _ = results
    n, smoothing, temperature = CASES[case]
    i2t, t2i, gradients = contrastive_reference(*embeddings(n), temperature, smoothing)
    np.testing.assert_allclose(arrays[f"loss/{case}"], i2t + t2i, rtol=1e-5)
    for i, expected in enumerate(gradients):
        found, scale = arrays[f"gradient/{case}/{i}"], np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale)


def test_steps_agree_with_one_device(results, root, mesh_of):
    arrays, rows = results
    expected = steps.run(make_config(str(root)), mesh_of(1), STEPS)
    steps.assert_same(rows, variables_of(arrays), expected)


def test_a_process_that_lost_its_local_checkpoint_gets_it_from_the_other(root, results):
    found = [json.loads((root / f"restored_{i}.json").read_text()) for i in range(2)]
    # Split over all devices, the lost parts are nowhere else.
    assert found == [[True, False]] * 2


def test_two_processes_embed_what_one_does_and_read_each_picture_once(
    root, results, mesh_of
):
    arrays, _ = results
    expected, read = embed(open_embedder(str(root), mesh_of(8), variables_of(arrays)))
    assert read == list(range(13))
    assert np.isnan(expected[4]).all()
    assert np.isfinite(np.delete(expected, 4, 0)).all()
    np.testing.assert_allclose(arrays["embeddings"], expected, atol=1e-5)
    shares = [json.loads((root / f"read_{i}.json").read_text()) for i in range(2)]
    assert shares == [[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12]]


def test_two_processes_rank_as_one_does(results, mesh_of):
    arrays, _ = results
    expected = rank(mesh_of(3))
    assert len(expected) == 6
    for name, wanted in expected.items():
        fitted = name in ("weights", "bias")
        tolerance = 1e-3 if fitted else 1e-6
        np.testing.assert_allclose(arrays[f"ranking/{name}"], wanted, atol=tolerance)


def test_two_processes_score_and_save_as_one_does(root, results, mesh_of):
    arrays, _ = results
    embedder = open_embedder(str(root), mesh_of(8), variables_of(arrays))
    expected = score(str(root), embedder)
    assert expected[0] == expected[1]
    assert len(expected[0]) > 20
    for index in range(2):
        assert json.loads((root / f"scores_{index}.json").read_text()) == expected
    files = sorted(p.parent.name for p in (root / "saved_by_2").glob("*/*/*.parquet"))
    assert files == ["images", "texts", "texts"]
