"""Embeddings of pictures and texts, computed by align_jax in a separate process.

The corpus builder imports no training code; it runs `python -m align_jax.embed`. The
process runs on this machine and uses all of its accelerators.
"""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from align_jax import places
from align_jax.errors import InputError, one_line

FIELD = "config.pictures.embedding_model"  # of the rule `near_embedding`
KEPT_BYTES = 10_000  # of a process's output, kept to find its last line


def check_model(model: str, field: str = FIELD) -> None:
    """Checks that a model exists and can embed pictures, by loading it in a process.

    Args:
      model: path of a run or of a folder of weights, for `align_jax.load`.
      field: config field or flag of the model, for messages.

    Raises:
      InputError: the path does not exist, or align_jax cannot load the model.
    """
    place = places.resolve(model)
    if not any(map(places.exists, (place, f"{place}.index"))):
        raise InputError(f"{field} is {model!r}, which is not there")
    _run_named(model, ["--check"], field)


def embed_pictures(
    model: str,
    pictures: pathlib.Path,
    folder: pathlib.Path,
    batch_size: int,
    *,
    texts: bool = False,
    field: str = FIELD,
) -> None:
    """Embeds the pictures of all Parquet files of a folder.

    Args:
      model: path of a run or of a folder of weights, for `align_jax.load`.
      pictures: folder of files with the columns `image_id` and `image`, and `texts` if
        the texts are embedded too.
      folder: output folder, for files of the same names; existing files are kept.
      batch_size: number of pictures that the model embeds at a time.
      texts: whether to embed the texts of each picture too.
      field: config field or flag of the model, for messages.

    Raises:
      InputError: the process failed; the message holds the last line of its stderr.
    """
    arguments = [f"--images={pictures}", f"--out={folder}"]
    arguments += [f"--batch_size={batch_size}", "--child", *(["--texts"] * texts)]
    _run_named(model, arguments, field)


def read_embeddings(path: pathlib.Path) -> tuple[pa.Array, np.ndarray]:
    """Reads a file that `embed_pictures` wrote; skips pictures without an embedding.

    Returns:
      The image ids (N,) and float32 unit vectors (N, D).

    Raises:
      InputError: the file is missing, damaged or holds something else, or a vector is
        not of unit length.
    """
    try:
        table = pq.ParquetFile(path).read(["image_id", "embedding"])
        table = table.filter(table["embedding"].is_valid())
        column = table["embedding"].combine_chunks()
        flat = column.flatten().to_numpy(zero_copy_only=False)
        found = flat.reshape(len(table), column.type.list_size)
        names = table["image_id"].combine_chunks().cast(pa.string())
    except (OSError, KeyError, AttributeError, ValueError, pa.ArrowException) as error:
        raise InputError(
            f"{path} has no columns `image_id` and `embedding`, a list of as many"
            f" numbers for each picture ({one_line(error)})"
        ) from error
    return names, unit_vectors(found, str(path))


@dataclasses.dataclass(frozen=True)
class PairEmbeddings:
    """The embeddings of N pictures and of their T texts.

    Attributes:
      image_ids: (N,) ids of the pictures.
      images: (N, D) float32 of unit length; NaN where a picture cannot be read.
      texts: (T, D) float32 of unit length, those of a picture in a row.
      owners: (T,) index of each text's picture.
    """

    image_ids: pa.Array
    images: np.ndarray
    texts: np.ndarray
    owners: np.ndarray


def read_pair_embeddings(path: pathlib.Path) -> PairEmbeddings:
    """Reads a file that `embed_pictures` wrote with texts.

    Raises:
      InputError: the file is missing, damaged or holds something else.
    """
    try:
        table = pq.ParquetFile(path).read().combine_chunks()
        names = ("image_id", "embedding", "text_embeddings")
        ids, images, lists = (_only_chunk(table[name]) for name in names)
        width = images.type.list_size
        vectors = np.full((len(ids), width), np.nan, np.float32)
        readable = images.is_valid().to_numpy(zero_copy_only=False)
        numbers = images.flatten().to_numpy(zero_copy_only=False)
        vectors[readable] = numbers.reshape(-1, width)
        texts = lists.flatten().flatten().to_numpy(zero_copy_only=False)
        counts = lists.value_lengths().to_numpy(zero_copy_only=False)
        owners = np.repeat(np.arange(len(ids)), counts)
        texts = texts.reshape(len(owners), width)
    except (OSError, KeyError, AttributeError, ValueError, pa.ArrowException) as error:
        raise InputError(
            f"{path} has no columns `image_id`, `embedding` and `text_embeddings` of"
            f" one width ({one_line(error)})"
        ) from error
    return PairEmbeddings(ids, vectors, texts, owners)


def _only_chunk(column: pa.ChunkedArray) -> pa.Array:
    """Returns the rows of a column of one chunk or none as an array."""
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


def unit_vectors(found: np.ndarray, name: str, width: int | None = None) -> np.ndarray:
    """Checks that vectors (N, D) are unit vectors; returns them as contiguous float32.

    Args:
      found: vectors to check.
      name: name of the vectors, for messages.
      width: required D; None allows any.

    Raises:
      InputError: the shape is wrong, or a length differs from 1 by 0.01 or more.
    """
    if found.ndim != 2 or (width is not None and found.shape[1] != width):
        raise InputError(
            f"{name}: found shape {found.shape}, wanted (N, {width or 'D'})"
        )
    vectors = np.ascontiguousarray(found, np.float32)
    lengths = np.linalg.norm(vectors, axis=1)
    wrong = np.flatnonzero(~(np.abs(lengths - 1) < 1e-2))
    if len(wrong):
        raise InputError(
            f"{name}: row {wrong[0]} has length {lengths[wrong[0]]},"
            " wanted unit vectors"
        )
    return vectors


def _chunks(stream: IO[bytes] | None) -> Iterator[bytes]:
    """Yields the output of a process as soon as it is written."""
    while stream is not None and (chunk := os.read(stream.fileno(), KEPT_BYTES)):
        yield chunk


def _run_named(model: str, arguments: list[str], field: str) -> None:
    """Runs align_jax.embed; an error names the field of the model."""
    try:
        _run(model, arguments)
    except InputError as error:
        raise InputError(f"{field} is {model!r}, but {error}") from error


def _run(model: str, arguments: list[str]) -> None:
    """Runs align_jax.embed; shows its progress if stderr is a terminal.

    Raises:
      InputError: the exit code of the process is not 0.
    """
    root = str(pathlib.Path(__file__).parents[2])
    paths = filter(None, (root, os.environ.get("PYTHONPATH")))
    command = [sys.executable, "-m", "align_jax.embed", f"--model={model}", *arguments]
    said = b""
    # No shell reads the arguments, and the program is our own.
    with subprocess.Popen(  # noqa: S603
        command,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        stderr=subprocess.PIPE,
    ) as process:
        try:
            for chunk in _chunks(process.stderr):
                said = (said + chunk)[-KEPT_BYTES:]
                if sys.stderr.isatty():
                    sys.stderr.write(chunk.decode(errors="replace"))
                    sys.stderr.flush()
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        lines = re.split(r"[\r\n]+", said.decode(errors="replace").strip())
        last = lines[-1].removeprefix("align_jax.embed: ")
        raise InputError(
            "`python -m align_jax.embed` ended with exit code"
            f" {process.returncode}: {last}"
        )
