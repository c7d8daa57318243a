"""Writes embeddings of datasets by a teacher, for tests of `align_jax`."""

import pathlib

import numpy as np

from align_jax.input.datasets import DatasetConfig, open_dataset
from align_jax.input.teacher_files import file_of

WIDTH = 5


def draw_rows(count, width=WIDTH, seed=0):
    """Draws unit embeddings of pictures and texts, (2, count, width) float32."""
    rows = np.random.default_rng(seed).normal(size=(2, count, width))
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows.astype(np.float32)


def write_teacher(folder: pathlib.Path, part: DatasetConfig, width=WIDTH, **arrays):
    """Writes random embeddings of a dataset with one text for each record.

    `arrays` are further arrays of each file. Returns the embeddings of `draw_rows`, in
    the order of the records.
    """
    shards = open_dataset(part).shards
    folder.mkdir(exist_ok=True)
    rows, first = draw_rows(sum(shard.records for shard in shards), width), 0
    for shard in shards:
        images, texts = rows[:, first : first + shard.records]
        np.savez(file_of(folder, shard.path), images=images, texts=texts, **arrays)
        first += shard.records
    return rows
