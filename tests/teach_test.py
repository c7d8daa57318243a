"""`main.py --teacher` embeds a run's pairs with a model, as the model embeds them."""

import itertools

import numpy as np
import pytest

from align_jax import load
from align_jax.errors import InputError
from align_jax.input.datasets import DatasetConfig
from align_jax.teach import teach
from tests import tiny
from tests.input.batches import open_batches
from tests.input.written import pairs_of, write_parquet, write_tars

LENGTHS = [5, 9]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("teacher") / "model")


@pytest.fixture(scope="module")
def model(source):
    return load(source, 8)


@pytest.fixture(scope="module")
def fields(tmp_path_factory, model):
    """A run on two datasets; a picture of the first one is broken."""
    root = tmp_path_factory.mktemp("run")
    fields = tiny.make_run(root)
    shards = pairs_of(LENGTHS)
    shards[1][2] = (b"broken", shards[1][2][1])
    write_tars(root / "tars", shards)
    write_parquet(root / "rows", shards)
    fields["input"]["teacher_width"] = model.width
    fields["input"]["datasets"] = {
        name: {
            "format": format_,
            "directory": str(root / name),
            "teacher": str(root / f"{name}_teacher"),
        }
        for name, format_ in (("tars", "webdataset"), ("rows", "parquet"))
    }
    fields["input"]["datasets"]["rows"]["max_pairs"] = 3
    return fields


@pytest.fixture(scope="module", autouse=True)
def taught(fields, source):
    teach(fields, source)


def test_batches_hold_what_the_model_says_of_their_pairs(fields, model):
    pairs = [*itertools.chain(*pairs_of(LENGTHS))]
    images = model.encode_images([image for image, _ in pairs])
    texts = model.encode_texts([text for _, text in pairs])
    parts = {
        name: DatasetConfig(**part)
        for name, part in fields["input"]["datasets"].items()
    }
    drawn = open_batches(parts, batch=4, streams=1, teacher_width=model.width)
    for batch in itertools.islice(drawn, 10):
        numbers = batch["tokens"][:, 0]
        np.testing.assert_allclose(batch["teacher_image"], images[numbers], atol=1e-3)
        np.testing.assert_allclose(batch["teacher_text"], texts[numbers], atol=1e-3)
    drawn.close()


def test_what_is_there_is_left_and_the_rest_is_written(fields, source, capsys):
    folder = tiny.pathlib.Path(fields["input"]["datasets"]["tars"]["teacher"])
    kept, removed = folder / "00000.tar.npz", folder / "00001.tar.npz"
    before, times = removed.read_bytes(), kept.stat().st_mtime_ns
    with np.load(removed) as found:
        assert np.isnan(found["images"][2]).all()
        assert np.isfinite(found["texts"]).all()
    removed.unlink()
    teach(fields, source)
    assert removed.read_bytes() == before
    assert kept.stat().st_mtime_ns == times
    printed = capsys.readouterr().out
    assert f"{folder}: embeddings of 14 pairs in 2 shards, of 1 before" in printed
    assert "rows_teacher: embeddings of 5 pairs in 1 shards, of 1 before" in printed
    assert "config.loss.teacher_temperature = 1 is the temperature" in printed


def test_another_teacher_is_refused(fields, tmp_path):
    other = tiny.write_model(tmp_path / "model", seed=1)
    with pytest.raises(InputError, match=r"tar.npz has embeddings of another model"):
        teach(fields, other)


def test_the_config_must_name_the_width(fields, source):
    for width, message in ((0, "width is 0; wanted"), (7, "numbers, and .* is 7")):
        changed = fields | {"input": fields["input"] | {"teacher_width": width}}
        with pytest.raises(InputError, match=message):
            teach(changed, source)
    plain = {n: p | {"teacher": ""} for n, p in fields["input"]["datasets"].items()}
    part = fields["input"] | {"datasets": plain, "teacher_width": 0}
    with pytest.raises(InputError, match=r"width is 0; .* a folder `teacher` for each"):
        teach(fields | {"input": part}, source)
