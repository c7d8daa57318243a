"""Evaluation sets in a bucket have the scores of the same files on disk."""

import pytest

from align_jax.evaluation.datacomp import find_sets
from align_jax.evaluation.runner import make_evaluators
from tests import wds
from tests.evaluation import aro_test, languages_test, selection_test
from tests.evaluation.aro_test import CutEncoder

pytestmark = pytest.mark.buckets
CACHED = "datasets--org--wds_mnist_test"


def write_cached(root):
    """Writes a set as it lies in the hub's cache, without links, as in a bucket."""
    wds.write_classes(root / CACHED / "snapshots" / "abc")
    (root / CACHED / "refs").mkdir()
    (root / CACHED / "refs" / "main").write_text("abc")
    return {"directory": str(root)}


WRITERS = {
    "wds": [
        lambda root: {"directory": wds.write_classes(root)},
        lambda root: {"directory": wds.write_captions(root)},
        write_cached,
    ],
    "selection": [
        selection_test.write_sugar_crepe,
        selection_test.write_winoground,
        aro_test.write_authors,
        aro_test.write_snapshot,
        aro_test.write_order,
    ],
    "languages": [languages_test.write_crossmodal, languages_test.write_xtd],
}


@pytest.mark.parametrize("kind", WRITERS)
def test_sets_in_a_bucket_have_the_scores_of_those_on_disk(storage, tmp_path, kind):
    encoder = CutEncoder({"red left": "red top", "blue top": "blue left"})
    scores: list[float] = []
    for number, write in enumerate(WRITERS[kind]):
        root = tmp_path / str(number)
        fields = {"kind": kind} | write(root)
        url = storage.upload(root, f"{kind}{number}")
        remote = {
            name: value.replace(str(root), url) if isinstance(value, str) else value
            for name, value in fields.items()
        }
        assert remote["directory"].startswith("gs://")
        evaluators = make_evaluators({"disk": fields, "bucket": remote})
        disk, bucket = (dict(each.run(encoder)) for each in evaluators.values())
        assert disk == bucket
        scores += [value for name, value in disk.items() if "chance" not in name]
    assert any(0 < value < 1 for value in scores)


def test_datacomp_s_sets_are_found_in_a_bucket(storage, tmp_path):
    write_cached(tmp_path)
    wds.write_classes(tmp_path / "wds_gtsrb_test")
    url = storage.upload(tmp_path, "datacomp")
    assert find_sets(url) == {
        "GTSRB": f"{url}/wds_gtsrb_test",
        "MNIST": f"{url}/{CACHED}/snapshots/abc",
    }
