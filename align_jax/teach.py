"""Embeds the pairs of a training run with a teacher, for distillation.

    python main.py --config=configs/X.py --teacher=MODEL

MODEL is any source that `align_jax.load` reads. The embeddings of each dataset are
written to the folder that its field `teacher` names, one file for each shard; see
`align_jax.input.teacher_files`. The datasets stay as they are. Shards with embeddings
are left out, so the same command continues after an interruption.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from align_jax import places, shard_files
from align_jax.embed.model import Model, load
from align_jax.errors import InputError
from align_jax.input.datasets import DatasetConfig, open_dataset
from align_jax.input.formats.dataset import Dataset, ShardPart, naming_damage
from align_jax.input.shards import Shard
from align_jax.input.teacher import check_embeddings, check_folders
from align_jax.input.teacher_files import file_of, write_embeddings
from align_jax.training.training_runs import read_run_config
from align_jax.weights.folder import digest

BATCH_SIZE = 128  # pictures or texts that all devices together embed at a time
TOGETHER = 4 * BATCH_SIZE  # records in memory at a time


def teach(fields: dict[str, Any], source: str) -> None:
    """Embeds the pairs of a run's datasets.

    Whole shards are embedded, also if the run uses a part of the last one.

    Args:
      fields: the literal config of a training run; its `run` is a key of `TRAINING`.
      source: source of the teacher.

    Raises:
      InputError: bad fields or data, no folder for a dataset's embeddings, no dual
        encoder, embeddings of another width than the config's, a file of another model
        or shard or of two shards, several processes, or a failure to write.
    """
    config = read_run_config(fields).input
    if jax.process_count() > 1:
        raise InputError("--teacher embeds in one process; wanted no --distributed")
    if not config.teacher_width:
        raise InputError(
            "config.input.teacher_width is 0; wanted the width of the teacher's"
            " embeddings, and a folder `teacher` for each dataset"
        )
    model = load(source, BATCH_SIZE)
    if model.width != config.teacher_width:
        raise InputError(
            f"the embeddings of {source} have {model.width} numbers, and"
            f" config.input.teacher_width is {config.teacher_width}"
        )
    name, parts = digest(model.weights), [*config.datasets.values()]
    opened = [open_dataset(part) for part in parts]
    check_folders(opened, parts)
    for part, dataset in zip(parts, opened, strict=True):
        _embed_dataset(model, dataset, part, name)
    print(
        f"config.loss.teacher_temperature = {model.temperature:.4g} is the temperature"
        " that the teacher learned"
    )


def _embed_dataset(model: Model, used: Dataset, part: DatasetConfig, name: str) -> None:
    """Embeds the shards of a dataset that have no embeddings.

    Args:
      model: the teacher.
      used: the opened dataset, perhaps with a part of the last shard only.
      part: config of the dataset.
      name: hash of the teacher.
    """
    import tqdm

    whole = dataclasses.replace(part, fraction=1.0, max_pairs=0)
    dataset = used if whole == part else open_dataset(whole)
    paths = {shard.path for shard in used.shards}
    shards = {shard.path: shard for shard in dataset.shards if shard.path in paths}
    there = shard_files.for_each(
        lambda path: _is_there(shards[path], whole, model.width, name), [*shards]
    )
    sizes = [shard.records for shard in shards.values()]
    total = sum(sizes)
    with tqdm.tqdm(desc="embed", unit="pair", total=total, disable=None) as bar:
        bar.update(sum(itertools.compress(sizes, there)))
        for shard, done in zip(shards.values(), there, strict=True):
            if not done:
                _embed_shard(model, dataset, whole, shard, name, bar.update)
    print(
        f"{part.teacher}: embeddings of {total} pairs in {len(shards)} shards, of"
        f" {sum(there)} before"
    )


def _is_there(shard: Shard, part: DatasetConfig, width: int, name: str) -> bool:
    """Whether a shard has embeddings; raises InputError if another model made them.

    Args:
      shard: the shard.
      part: config of its dataset.
      width: width of the teacher's embeddings.
      name: hash of the teacher.
    """
    place = file_of(part.teacher, shard.path)
    if not places.exists(place):
        return False
    found = check_embeddings(shard, part, width)
    if found != name:
        raise InputError(
            f"{place} has embeddings of another model"
            f" ({found or 'without a name'}); give another folder, or remove it"
        )
    return True


def _embed_shard(
    model: Model,
    dataset: Dataset,
    part: DatasetConfig,
    shard: Shard,
    name: str,
    progress: Callable[[int], Any],
) -> None:
    """Embeds all records of a shard, and writes the file.

    Args:
      model: the teacher.
      dataset: the opened dataset.
      part: config of the dataset.
      shard: the shard.
      name: hash of the teacher.
      progress: function called with numbers of embedded records.
    """
    images, texts, counts = [], [], []
    records = _read_records(dataset, shard)
    while group := list(itertools.islice(records, TOGETHER)):
        # A picture that cannot be read has a row of NaN, and its pair is replaced.
        images.append(model.encode_images([image for image, _ in group], {}))
        lists = [found for _, found in group]
        flat = [text.decode(errors="replace") for found in lists for text in found]
        texts.append(model.encode_texts(flat))
        counts += [len(found) for found in lists]
        progress(len(group))
    write_embeddings(
        part.teacher,
        shard.path,
        images=np.concatenate(images).astype(np.float16),
        texts=np.concatenate(texts).astype(np.float16),
        counts=np.array(counts),
        features=part.targets,
        model=name,
    )


def _read_records(
    dataset: Dataset, shard: Shard
) -> Iterator[tuple[bytes, list[bytes]]]:
    """Yields the picture and all texts of each record of a shard, in order."""
    import tensorflow as tf

    path, last = tf.constant(shard.path), tf.constant(shard.records, tf.int64)
    first = tf.constant(0, tf.int64)
    groups = dataset.read(ShardPart(path, first, last, BATCH_SIZE))

    def ragged(texts: tf.Tensor | tf.RaggedTensor) -> tf.RaggedTensor:
        if isinstance(texts, tf.RaggedTensor):
            return texts
        return tf.RaggedTensor.from_tensor(texts[:, None])

    with naming_damage([dataset], lambda: [shard.path]):
        for group in groups:
            images, features = dataset.parse(group)
            texts = tf.concat([ragged(found) for found in features], 1)
            yield from zip(images.numpy(), texts.to_list(), strict=True)
