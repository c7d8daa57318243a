"""Writes the kept pairs as a dataset: vocabulary, shards and manifest."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import pathlib
from collections.abc import Iterable
from typing import Any

import ibis

from align_jax import places
from data.corpus.captions import join_captions, kept_captions
from data.corpus.config import WORDPIECE, described
from data.corpus.ngrams import unigrams_of
from data.corpus.stage_tables import StageTables
from data.records.stages import materialise

# Packages whose versions the manifest lists.
VERSIONED = ("duckdb", "ibis-framework", "pyarrow", "tensorflow", "tensorflow-text")
KEY_RANGES = 1024  # ranges of keys; pairs are sorted one range at a time


def write_dataset(
    stages: StageTables, report: dict[str, Any], folder: pathlib.Path
) -> None:
    """Learns the vocabulary and writes the pairs of `kept` as a new dataset.

    The stage `exchange`, the pairs with their pictures by shard, is written first.

    Args:
      stages: stages of the build, up to `kept`.
      report: the report of the build, from `Build.report`, copied into the manifest.
      folder: output folder, which does not exist yet.

    Raises:
      InputError: `config.vocabulary_size` is too small.
    """
    kept, pairs = stages.table("kept"), report["pairs_kept"]
    texts = kept.select("text")
    if stages.config.captions.path:
        texts = texts.union(kept_captions(stages, kept))
    words = texts.select(word=unigrams_of(texts).unnest())
    counts = stages.engine.execute(words.group_by("word").agg(n=words.count()))
    exchange = stages.folder / "exchange"
    shards = _count_shards(stages)
    placed = _place(stages, pairs, shards)
    materialise(
        exchange,
        lambda path: stages.engine.save_split(placed, path, "part", "exchange"),
    )

    counted = zip(counts["word"], map(int, counts["n"]), strict=True)
    kind, bound = stages.config.vocabulary_kind, stages.config.vocabulary_size
    size, files = learn_files(counted, bound, kind)
    folder.mkdir()
    for name, content in files.items():
        places.write_bytes(folder / name, content)
    *_, name = files
    manifest = {
        **report,
        "vocabulary_file": name,
        "vocabulary_size": size,
        "vocabulary_sha256": hashlib.sha256(files[name]).hexdigest(),
        "shards": _write_shards(stages, folder, pairs, shards),
        "config": described(stages.config),
        "versions": {n: importlib.metadata.version(n) for n in _versioned(kind)},
    }
    places.write_json(folder / "manifest.json", manifest)


def learn_files(
    words: Iterable[tuple[str, int]], size: int, kind: str
) -> tuple[int, dict[str, bytes]]:
    """Learns a vocabulary.

    Args:
      words: pairs of a white-space separated word of the normalised texts and its
        count, in any order.
      size: maximum number of tokens, special ones included.
      kind: one of `VOCABULARY_KINDS`.

    Returns:
      (number of tokens, contents of the files that hold them, by name). A run's
      `config.vocabulary` names the last file.

    Raises:
      InputError: `size` is too small.
    """
    # Imported late: TensorFlow takes a gigabyte that the engine needed until here.
    if kind == WORDPIECE:
        from data.corpus.vocabulary import learn_vocabulary

        tokens = learn_vocabulary(words, size)
        text = "\n".join(tokens) + "\n"
        return len(tokens), {"vocabulary.txt": text.encode()}
    from data.corpus import sentence_pieces

    model = sentence_pieces.learn_pieces(words, size, kind)
    files = {
        sentence_pieces.SETTINGS_FILE: sentence_pieces.settings_file().encode(),
        sentence_pieces.MODEL_FILE: model,
    }
    return sentence_pieces.count_pieces(model), files


def _versioned(kind: str) -> tuple[str, ...]:
    return VERSIONED if kind == WORDPIECE else (*VERSIONED, "sentencepiece")


def _write_shards(
    stages: StageTables, folder: pathlib.Path, pairs: int, shards: int
) -> list[dict[str, Any]]:
    """Writes the files of a TFDS dataset; returns the `WrittenShard` fields of each."""
    from data.records import record_shards, records

    name, side = stages.config.name, stages.config.max_image_side
    kind, captions = stages.config.record_format, _captions(stages)
    lengths = [(i + 1) * pairs // shards - i * pairs // shards for i in range(shards)]
    tasks = [
        functools.partial(
            record_shards.write_record_shard,
            rows=stages.folder / "exchange" / f"part={index}",
            folder=folder,
            name=name,
            index=index,
            shards=shards,
            max_image_side=side,
            file_format=kind,
            captions=captions,
        )
        for index, length in enumerate(lengths)
        if length
    ]
    stages.engine.map(tasks, "records", "pair")
    written = []
    for index, length in enumerate(lengths):
        path = folder / records.shard_name(name, "train", index, shards, kind)
        if not length:
            records.write_shard(path, [], kind)
        written.append(records.describe_shard(path, length))
    features = records.corpus_features(captions)
    records.write_metadata(folder, name, features, {"train": written}, kind)
    return [dataclasses.asdict(shard) for shard in written]


def _captions(stages: StageTables) -> str:
    """Returns the name of the captions in the records; "" if there are none."""
    captions = stages.config.captions
    return captions.feature if captions.path else ""


def _count_shards(stages: StageTables) -> int:
    if stages.config.shards:
        return stages.config.shards
    kept = stages.table("kept").join(stages.table("pictures"), "image_id")
    size = int(stages.engine.execute(kept.bytes.sum()))
    return max(1, round(size / (stages.config.shard_megabytes * 1e6)))


def _place(stages: StageTables, pairs: int, shards: int) -> ibis.Table:
    """Returns the kept pairs with their pictures and `part`, the shard index of each.

    The rank of a pair in the order of the keys decides its shard. Pairs are sorted
    one range of keys at a time, because no engine sorts all pairs at once well.
    """
    kept = stages.table("kept")
    share = (kept.key.cast("float64") / 2.0**63 + 1.0) / 2.0
    kept = kept.mutate(range=(share * KEY_RANGES).floor().cast("int64"))
    sizes = kept.group_by("range").agg(size=kept.count())
    before = ibis.window(order_by=sizes.range, following=0)
    sizes = sizes.mutate(start=sizes["size"].sum().over(before) - sizes["size"])
    within = ibis.window(group_by="range", order_by=("key", "text", "image_id"))
    ordered = kept.mutate(place=ibis.row_number().over(within))
    ordered = ordered.join(sizes, "range")
    rank = (ordered.place + ordered.start).cast("int64")
    part = ((rank + 1) * shards - 1) // pairs
    ordered = ordered.select("image_id", "text", "key", part=part.cast("int64"))
    pictures = stages.table("pictures").select("image_id", "shard")
    images = stages.shards("images").select("image_id", "shard", "image")
    placed = ordered.join(pictures, "image_id")
    placed = placed.join(images, ["image_id", "shard"]).select(
        "key", "text", "image_id", "image", "part"
    )
    return join_captions(stages, placed) if _captions(stages) else placed
