"""A corpus built with the rule that compares embeddings, through all its stages."""

import dataclasses
import io
import json
import shutil
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

import align_jax
from align_jax.embed import __main__ as embed
from align_jax.embed import shards
from align_jax.errors import InputError
from data.corpus import builder, score
from data.corpus.builder import Build, build, check_inputs, format_report
from data.corpus.config import CorpusConfig, EngineConfig, PictureConfig
from data.corpus.engines import DuckDB
from data.corpus.ingest import identify
from data.corpus.rules import RuleBounds
from data.pictures import embeddings, nsfw
from data.sources.config import SourceConfig
from tests import tiny
from tests.data.corpus.corpus_test import draw, records_of, sentence

MIRRORED, CROPPED = 10_048, 10_195  # the tiny model sees that their copies are alike
MAX_COSINE = 0.92


def changed(number: int, change) -> bytes:
    file = io.BytesIO()
    change(Image.open(io.BytesIO(draw(number)))).save(file, "PNG")
    return file.getvalue()


def large() -> bytes:
    """Draws a picture with a hash but no embedding: it is too large for the model."""
    return draw(60, (250, 250))


COPIES = [
    changed(MIRRORED, ImageOps.mirror),
    changed(CROPPED, lambda picture: picture.crop((9, 9, 192, 192)).resize((201, 201))),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write_model(
        tmp_path_factory.mktemp("model") / "model", max_pixels=230 * 230
    )


@pytest.fixture(scope="module")
def config(model, tmp_path_factory):
    """Three shards of pictures; two pictures are copies of evaluation images."""
    folder = tmp_path_factory.mktemp("raw")
    pictures = [*map(draw, range(34)), *COPIES, large()]
    dropped = draw(50)  # by a cheaper rule, so no picture rule sees it
    rows = [(picture, sentence(4, i)) for i, picture in enumerate(pictures)]
    rows += [(dropped, "")]
    for n in range(3):
        image, text = zip(*rows[n::3], strict=True)
        table = {"image": image, "alt_text": text, "language": ["en"] * len(image)}
        pq.write_table(pa.table(table), folder / f"{n}.parquet")
    held_out = {
        "image_id": ["mirrored", "cropped", "broken"],
        "image": [draw(MIRRORED), draw(CROPPED), b"no picture"],
    }
    pq.write_table(pa.table(held_out), folder / "held_out")
    return CorpusConfig(
        name="planted",
        seed=3,
        ingest=SourceConfig("parquet", str(folder / "*.parquet")),
        rules=RuleBounds(),
        vocabulary_size=100,
        evaluation_images=str(folder / "held_out"),
        pictures=PictureConfig(embedding_model=model, max_cosine=MAX_COSINE),
        engine=EngineConfig(workers=1),
        shards=2,
    )


def run_here(model, arguments):
    """Runs the model in this process, which saves the imports of another process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["embed", f"--model={model}", *arguments])
        embed.main()


@pytest.fixture(scope="module")
def built(config, tmp_path_factory):
    """The folder of the corpus; a separate process embedded the pictures."""
    folder, run = tmp_path_factory.mktemp("built") / "corpus", embeddings._run

    def check_here(model, arguments):
        (run_here if arguments == ["--check"] else run)(model, arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embeddings, "_run", check_here)
        build(config, folder)
    return folder


@pytest.fixture
def here(monkeypatch):
    """Makes the model run in this process; returns the list of its arguments."""
    asked = []

    def run(model, arguments):
        asked.append(arguments)
        run_here(model, arguments)

    monkeypatch.setattr(embeddings, "_run", run)
    return asked


def scores_of(folder):
    rows = pq.read_table(folder / "stages" / "scores").to_pylist()
    return {row["image_id"]: row for row in rows}


def kept_of(folder):
    return pq.read_table(folder / "stages" / "kept.parquet").sort_by("key").to_pylist()


def assert_same(folder, built):
    assert records_of(folder) == records_of(built)
    assert_same_stages(folder, built)


def assert_same_stages(folder, built):
    assert kept_of(folder) == kept_of(built)
    for stage in ("scores", "embeddings"):
        for path in (built / "stages" / stage).iterdir():
            other = folder / "stages" / stage / path.name
            assert other.read_bytes() == path.read_bytes(), path


def test_copies_of_evaluation_images_are_dropped_and_all_else_is_kept(built):
    scores = scores_of(built)
    assert identify(draw(50)) not in scores and len(scores) == 37
    near = {name for name, row in scores.items() if row["near_embedding"]}
    assert near == {identify(copy) for copy in COPIES}
    assert not any(row["near_duplicate"] for row in scores.values())
    kept = pq.read_table(built / "stages" / "kept.parquet")["image_id"].to_pylist()
    assert set(kept) == scores.keys() - near
    report = json.loads((built / "report.json").read_text())
    rules = {rule["rule"]: rule for rule in report["rules"]}
    assert [*rules][-3:] == ["pornographic", "near_duplicate", "near_embedding"]
    assert rules["near_embedding"] == {
        "rule": "near_embedding",
        "breaks": 2,
        "first": 2,
    }
    assert rules["near_duplicate"]["breaks"] == 0
    assert [row["rule"] for row in report["off"]] == ["pornographic"]
    assert report["not_embedded"] == {"pictures": 1, "evaluation_images": 1}
    assert "NOT COMPARED: 1 evaluation images could not" in format_report(report)
    page = (built / "report.html").read_text()
    assert "Likeness to the nearest evaluation image" in page
    assert "1 pictures could not be embedded" in page


def test_scores_hold_the_cosine_with_the_nearest_evaluation_image(model, built):
    """With so few pictures, all images share all clusters, so all are compared."""
    scores = scores_of(built)
    pictures = [draw(i) for i in range(34)] + COPIES
    encode = align_jax.load(model).encode_images
    cosines = encode(pictures) @ encode([draw(MIRRORED), draw(CROPPED)]).T
    found = [scores[identify(picture)]["cosine"] for picture in pictures]
    np.testing.assert_allclose(found, cosines.max(1).clip(0), atol=1e-5)
    assert scores[identify(large())]["cosine"] is None
    # No cosine is so near the bound that rounding could move it across.
    assert np.abs(np.array(found) - MAX_COSINE).min() > 1e-3


def test_files_to_embed_are_removed_and_embeddings_kept(built):
    assert not (built / "stages" / "to_embed").exists()
    names = {path.name for path in (built / "stages" / "embeddings").iterdir()}
    written = {f"{i:05}.parquet" for i in range(3)}
    assert names == written | {"evaluation.parquet", "model.json"}


def test_two_workers_write_the_same_bytes(config, built, tmp_path, here, monkeypatch):
    # corpus_test proves that the records do not depend on the number of workers.
    monkeypatch.setattr(Build, "records", lambda self, report: None)
    config = dataclasses.replace(config, engine=EngineConfig(workers=2))
    build(config, tmp_path / "corpus")
    assert len(here) == 2  # a check and one run, for any number of shards
    assert_same_stages(tmp_path / "corpus", built)


@pytest.mark.spark
def test_spark_drops_the_same_pictures(config, built, tmp_path, here):
    engine = EngineConfig(kind="spark", spark_master="local[2]", memory_limit="2GB")
    build(dataclasses.replace(config, engine=engine), tmp_path / "corpus")
    assert_same(tmp_path / "corpus", built)


def test_a_build_killed_while_it_embeds_goes_on_with_the_next_shard(
    config, built, tmp_path, here, monkeypatch
):
    embed_shard = shards._embed_shard

    def killed(model, shard, *arguments):
        if shard.name == "00001.parquet":
            raise KeyboardInterrupt
        return embed_shard(model, shard, *arguments)

    folder = tmp_path / "corpus"
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_embed_shard", killed)
        with pytest.raises(KeyboardInterrupt):
            build(config, folder)
    first = folder / "stages" / "embeddings" / "00000.parquet"
    written = first.stat().st_mtime_ns
    assert not (first.parent / "00001.parquet").exists()
    assert not (folder / "stages" / "near_duplicates.npz").exists()
    build(config, folder)
    assert first.stat().st_mtime_ns == written
    assert_same(folder, built)


def test_a_build_killed_between_two_shards_of_scores_does_not_embed_again(
    config, built, tmp_path, here, monkeypatch
):
    def killed(index, **arguments):
        if index == 1:
            raise KeyboardInterrupt
        return score.score_shard(index=index, **arguments)

    folder = tmp_path / "corpus"
    with monkeypatch.context() as patch:
        patch.setattr(builder, "score_shard", killed)
        with pytest.raises(KeyboardInterrupt):
            build(config, folder)
    assert {path.name for path in (folder / "stages" / "scores").iterdir()} == {
        "00000.parquet"
    }
    before = len(here)
    build(config, folder)
    assert [*map(len, here[before:])] == [1]  # only the check
    assert_same(folder, built)


def test_a_small_sample_for_the_clusters_is_one_of_the_lowest_names(
    config, built, tmp_path
):
    from data.corpus.embedding_rule import _read_sample

    shutil.copytree(built, tmp_path / "copy")
    stages = Build(config, tmp_path / "copy")
    scores = scores_of(built)
    wanted = [name for name in sorted(scores) if scores[name]["cosine"] is not None]
    everything = _read_sample(stages, 1000)
    assert len(everything) == len(wanted) == 36
    by_name = dict(zip(wanted, everything, strict=True))
    few = _read_sample(stages, 7)
    lowest = [name for name in sorted(scores)[:7] if name in by_name]
    np.testing.assert_array_equal(few, [by_name[name] for name in lowest])
    stages.close()


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
    assert len(scored) == 37 and draw(50) not in scored
    assert "NOT EVALUATED" not in capsys.readouterr().out
    kept = pq.read_table(tmp_path / "corpus" / "stages" / "kept.parquet")
    assert len(kept) == 34 and identify(draw(5)) not in kept["image_id"].to_pylist()


@pytest.mark.parametrize("workers", [1, 2])
def test_models_take_one_thread_where_there_are_many_processes(
    config, built, tmp_path, here, monkeypatch, workers
):
    shutil.copytree(built, tmp_path / "copy")
    stages = Build(
        dataclasses.replace(config, engine=EngineConfig(workers=workers)),
        tmp_path / "copy",
    )
    (tmp_path / "copy" / "stages" / "kept.parquet").unlink()
    given = []
    monkeypatch.setattr(DuckDB, "map", lambda self, tasks, *more: given.extend(tasks))
    stages.score()
    stages.close()
    threads = [task.keywords["threads"] for task in given]
    assert threads == [None if workers == 1 else 1] * 3


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
    with pytest.raises(InputError, match="max_cosine is 1.0; wanted 0 to less than 1"):
        PictureConfig(max_cosine=1.0)
    with pytest.raises(InputError, match="shared_clusters=11, nearest_clusters=10"):
        PictureConfig(shared_clusters=11)
    with pytest.raises(InputError, match="shared_clusters=0"):
        PictureConfig(shared_clusters=0)
    with pytest.raises(InputError, match="clusters=4096, cluster_sample=100"):
        PictureConfig(cluster_sample=100)
    with pytest.raises(InputError, match="config.engine.embedding_batch_size is 0"):
        EngineConfig(embedding_batch_size=0)
    check_inputs(config)
    assert here == [["--check"]]


def test_evaluation_images_of_which_none_can_be_embedded_are_an_error(
    config, tmp_path, here
):
    broken = tmp_path / "broken"
    pq.write_table(pa.table({"image_id": ["x"], "image": [b"no picture"]}), broken)
    with pytest.raises(InputError, match="none of the pictures of .*broken .* can be"):
        build(
            dataclasses.replace(config, evaluation_images=str(broken)),
            tmp_path / "corpus",
        )
