"""The models and the pictures that the picture rules of a build need."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align_jax.config import read_config
from align_jax.errors import InputError
from data.corpus.builder import build, check_inputs
from data.corpus.config import EngineConfig, PictureConfig
from data.corpus.ingest import identify
from data.pictures import nsfw
from tests import tiny
from tests.data.corpus.copied_pictures import make_config
from tests.data.corpus.corpus_test import draw


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write_model(
        tmp_path_factory.mktemp("model") / "model", max_pixels=230 * 230
    )


@pytest.fixture(scope="module")
def config(model, tmp_path_factory):
    return make_config(model, tmp_path_factory.mktemp("raw"))


def test_a_model_of_pornography_drives_the_build(
    config, tmp_path, here, monkeypatch, capsys
):
    loaded, scored = [], []

    def load(threads):
        loaded.append(threads)

        def scorer(images):
            scored.extend(images)
            return np.array([image == draw(5) for image in images], np.float32)

        return scorer

    monkeypatch.setitem(nsfw.SCORERS, "fake", load)
    pictures = dataclasses.replace(config.pictures, nsfw_model="fake", max_nsfw=0.5)
    config = dataclasses.replace(config, pictures=pictures)
    build(config, tmp_path / "corpus")
    assert loaded == [None, None]  # the check, then scores with a thread per core
    assert len(scored) == 37
    assert draw(50) not in scored
    assert "NOT EVALUATED" not in capsys.readouterr().out
    kept = pq.read_table(tmp_path / "corpus" / "stages" / "kept.parquet")
    assert len(kept) == 34
    assert identify(draw(5)) not in kept["image_id"].to_pylist()


def test_what_the_rule_needs_is_checked_before_anything_is_written(
    config, model, tmp_path, here
):
    def refused(message, folder=tmp_path / "new", **changes):
        with pytest.raises(InputError, match=message) as caught:
            build(dataclasses.replace(config, **changes), folder)
        assert "\n" not in str(caught.value)
        assert not folder.exists()

    refused(
        "config.pictures.embedding_model needs .* config.evaluation_images is empty",
        evaluation_images="",
    )
    hashes = tmp_path / "hashes"
    pq.write_table(pa.table({"image_id": ["x"], "phash": [1]}), hashes)
    refused(
        r"1 rows and the columns \['image_id', 'phash'\]; wanted `image`",
        evaluation_images=str(hashes),
    )
    nowhere = PictureConfig(embedding_model=str(tmp_path / "nowhere"))
    refused("embedding_model is '.*nowhere', which is not there", pictures=nowhere)
    with pytest.raises(
        InputError, match=r"max_cosine is 1\.0; wanted 0 or more, below 1"
    ):
        read_config(PictureConfig, {"max_cosine": 1.0})
    with pytest.raises(InputError, match="shared_clusters=11, nearest_clusters=10"):
        PictureConfig(shared_clusters=11)
    with pytest.raises(InputError, match="shared_clusters is 0; wanted 1 or more"):
        read_config(PictureConfig, {"shared_clusters": 0})
    with pytest.raises(InputError, match="clusters=4096, cluster_sample=100"):
        PictureConfig(cluster_sample=100)
    with pytest.raises(InputError, match=r"embedding_batch_size is 0; wanted 1 or mo"):
        read_config(EngineConfig, {"embedding_batch_size": 0})
    check_inputs(config)
    assert here == [["--check"]]


def test_evaluation_images_of_which_none_can_be_embedded_are_an_error(
    config, tmp_path, here
):
    broken = tmp_path / "broken"
    pq.write_table(pa.table({"image_id": ["x"], "image": [b"no picture"]}), broken)
    with pytest.raises(InputError, match=r"none of the pictures of .*broken .* can be"):
        build(
            dataclasses.replace(config, evaluation_images=str(broken)),
            tmp_path / "corpus",
        )
