"""The table of evaluation images: pictures that must not be trained on."""

import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from align_jax import places
from align_jax.errors import InputError
from data.pictures.images import describe_images
from data.sources.parquet_tables import open_parquet

EVALUATION_IMAGES = pa.schema([("image_id", pa.string()), ("phash", pa.int64())])
COLUMNS = {"image_id": pa.string(), "phash": pa.int64(), "image": pa.binary()}


def open_evaluation(path: str) -> pq.ParquetFile:
    """Opens the table that `config.evaluation_images` names.

    Raises:
      InputError: the file is missing or not Parquet, the column `image_id` is missing,
        or a column of `COLUMNS` has another type.
    """
    field = "config.evaluation_images"
    place = places.local_path(path)
    if not place.is_file():
        raise InputError(f"no file {path} ({field})")
    file = open_parquet(place, f"{path} ({field})")
    schema = file.schema_arrow
    if "image_id" not in schema.names:
        raise InputError(
            f"{path} lacks the columns ['image_id']; it has {schema.names}"
        )
    for name, kind in COLUMNS.items():
        if name not in schema.names:
            continue
        found = schema.field(name).type
        if str(found).removeprefix("large_") != str(kind):
            raise InputError(f"column {name!r} of {path} is {found}; wanted {kind}")
    return file


def has_hashes(path: str) -> bool:
    """Returns whether a table has hashes, or pictures from which to compute them.

    Args:
      path: path of the Parquet file that `config.evaluation_images` names.

    Raises:
      InputError: `open_evaluation` refuses the file.
    """
    return bool({"phash", "image"} & {*open_evaluation(path).schema_arrow.names})


def write_evaluation(source: str, target: pathlib.Path) -> None:
    """Writes the ids and hashes of the evaluation images, schema EVALUATION_IMAGES.

    A hash that is null in the column `phash`, or without this column every hash, is
    computed from the picture. It is null if the picture is missing or cannot be
    decoded.

    Args:
      source: path of the Parquet file that `config.evaluation_images` names.
      target: path of the Parquet file to write.

    Raises:
      InputError: `open_evaluation` refuses the source.
    """
    file = open_evaluation(source)
    names = [name for name in COLUMNS if name in file.schema_arrow.names]
    with pq.ParquetWriter(target, EVALUATION_IMAGES) as writer:
        for batch in file.iter_batches(256, columns=names):
            ids = batch.column("image_id").to_pylist()
            hashes = [None] * len(ids)
            if "phash" in names:
                hashes = batch.column("phash").to_pylist()
            bare = [i for i, value in enumerate(hashes) if value is None]
            if "image" in names and bare:
                images = batch.column("image").to_pylist()
                measured = describe_images(
                    [ids[i] for i in bare], [images[i] for i in bare]
                )
                for i, value in zip(bare, measured["phash"].to_pylist(), strict=True):
                    hashes[i] = value
            writer.write_batch(
                pa.record_batch(
                    [pa.array(ids), pa.array(hashes, pa.int64())], EVALUATION_IMAGES
                )
            )


def read_hashes(path: pathlib.Path) -> np.ndarray:
    """Returns the M hashes that are not null, as (M,) int64.

    Args:
      path: path of a table that `write_evaluation` wrote.
    """
    return pq.read_table(path)["phash"].drop_null().to_numpy()
