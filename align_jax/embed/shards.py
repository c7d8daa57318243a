"""Embeds the pictures of Parquet files, and their texts, shard by shard.

A shard has the columns `image_id` and `image` (the bytes of a picture's file). For each
shard, a file of the same name is written with the columns `image_id` and `embedding`, D
float32 of unit length, in the same order. The embedding is null if the picture cannot
be read. If texts are embedded too, a shard also has the column `texts`, a list of texts
for each picture, and its file the column `text_embeddings`, a list of one embedding for
each text. A file appears only when it is complete, and model.json beside the files
identifies the model.
"""

import collections
import contextlib
import dataclasses
import glob
import pathlib
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from align_jax import places
from align_jax.embed.model import Model
from align_jax.errors import InputError, one_line
from align_jax.locks import LOCK_FILE, locked
from align_jax.weights.folder import digest

DIGEST_FILE = "model.json"
WANTED = {"image_id": "string", "image": "binary"}
TEXTS, TEXT_EMBEDDINGS = "texts", "text_embeddings"
BATCHES_AT_ONCE = 4  # batches whose encoded pictures are held in memory


@dataclasses.dataclass(frozen=True)
class PictureShard:
    """A Parquet file of pictures to embed.

    Attributes:
      path: path of the Parquet file.
      name: name of the file to write.
      rows: number of pictures.
    """

    path: pathlib.Path
    name: str
    rows: int


def list_shards(sources: list[str], texts: bool = False) -> list[PictureShard]:
    """Lists the Parquet files of the sources, sorted by name within each source.

    Args:
      sources: paths of files, folders (for their *.parquet) or glob patterns, or URLs
        of files or folders.
      texts: whether the files must have the column `texts`.

    Raises:
      InputError: a source has no files, two files would have the same output, or a file
        is not Parquet or lacks a column.
    """
    shards: dict[str, PictureShard] = {}
    for source in sources:
        found = _list(places.as_path(source))
        if not found:
            raise InputError(
                f"no pictures at {source}; wanted a Parquet file, a folder of"
                " *.parquet or a pattern"
            )
        for name in found:
            shard = _open(name, texts)
            other = shards.setdefault(shard.name, shard)
            if other is not shard:
                raise InputError(
                    f"{other.path} and {name} would both become {shard.name}; rename"
                    " one, or give another --out for it"
                )
    return list(shards.values())


def embed_shards(
    model: Model,
    shards: list[PictureShard],
    folder: pathlib.Path,
    batch_size: int,
    progress: Callable[[int], None] = lambda rows: None,
    texts: bool = False,
) -> dict[str, str]:
    """Writes the embeddings of all shards that have none yet.

    Args:
      model: the dual encoder.
      shards: shards to embed.
      folder: path of the output folder, which is new (then it is made) or holds files
        of the same model.
      batch_size: the model's batch size; the pictures of a few batches are in memory at
        a time.
      progress: function called after every few batches, and for each finished shard,
        with the number of pictures done since its last call.
      texts: whether to embed the texts of the pictures too.

    Returns:
      The reason for each picture that could not be read, by "file: image_id". Shards
      that were embedded before are not included.

    Raises:
      InputError: the folder belongs to another model, a folder without a digest holds
        other files, a shard is damaged, a finished file does not have its shard's
        number of rows or the wanted columns, or the disk is full.
    """
    unreadable: dict[str, str] = {}
    schema = _schema(model.width, texts)
    with locked(folder) as lock:
        _claim(folder, model)
        for shard in shards:
            target = folder / shard.name
            if places.exists(target):
                _check_rows(target, shard, schema)
                progress(shard.rows)
                continue
            lock.check()
            # In a bucket, a finished file is sent as a whole.
            sink = pa.BufferOutputStream() if places.is_url(target) else None
            with places.writing(target), contextlib.ExitStack() as stack:
                file = sink or stack.enter_context(places.replacing(target))
                for name, reason in _embed_shard(
                    model, shard, file, schema, batch_size, progress
                ):
                    unreadable[f"{shard.name}: {name}"] = reason
            if sink:
                places.write_bytes(target, sink.getvalue().to_pybytes())
    return unreadable


def _embed_shard(
    model: Model,
    shard: PictureShard,
    file: str | pa.NativeFile,
    schema: pa.Schema,
    batch_size: int,
    progress: Callable[[int], None],
) -> Iterator[tuple[str, str]]:
    """Writes a shard's embeddings; yields (image_id, reason) of unreadable pictures."""
    vector = schema.field("embedding").type
    texts = TEXT_EMBEDDINGS in schema.names
    reasons: dict[int, str] = {}
    first = 0  # index of a batch's first picture
    # Compression or a dictionary would not make the file smaller.
    with pq.ParquetWriter(
        file, schema, compression="none", use_dictionary=False
    ) as writer:
        for batch, embeddings in _embed_batches(
            model, _read(shard, batch_size * BATCHES_AT_ONCE, texts), reasons
        ):
            names = batch["image_id"].cast(pa.string())
            places = range(first, first + len(names))
            bad = [place for place in places if place in reasons]
            missing = np.zeros(len(names), bool)
            missing[[place - first for place in bad]] = True
            column = pa.FixedSizeListArray.from_arrays(
                pa.array(embeddings.ravel()), type=vector, mask=pa.array(missing)
            )
            columns = [names, column]
            if texts:
                columns.append(_embed_texts(model, batch[TEXTS], vector))
            writer.write_batch(pa.record_batch(columns, schema))
            progress(len(names))
            for place in bad:
                reason = reasons.pop(place).removeprefix(f"picture {place} ")
                yield names[place - first].as_py(), reason
            first += len(names)


def _embed_batches(
    model: Model, batches: Iterator[pa.RecordBatch], unreadable: dict[int, str]
) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
    """Yields each batch of pictures without its pictures, and their embeddings (N, D).

    The next batches are read while the devices compute.

    Args:
      model: the dual encoder.
      batches: batches with the column `image`.
      unreadable: argument of `Model.stream_images`.
    """
    waiting: collections.deque[pa.RecordBatch] = collections.deque()

    def pictures() -> Iterator[bytes]:
        for batch in batches:
            waiting.append(batch.drop_columns(["image"]))
            yield from (image or b"" for image in batch["image"].to_pylist())

    found = np.zeros((0, model.width), np.float32)
    for rows in model.stream_images(pictures(), unreadable):
        found = np.concatenate([found, rows])
        while waiting and len(waiting[0]) <= len(found):
            count = len(waiting[0])
            yield waiting.popleft(), found[:count]
            found = found[count:]


def _embed_texts(
    model: Model, texts: pa.ListArray, vector: pa.FixedSizeListType
) -> pa.ListArray:
    """Embeds lists of texts; a null list gives no embedding, a null text that of ""."""
    found = [rows or [] for rows in texts.to_pylist()]
    flat = [text or "" for rows in found for text in rows]
    numbers = pa.array(model.encode_texts(flat).ravel())
    values = pa.FixedSizeListArray.from_arrays(numbers, type=vector)
    ends = np.cumsum([0, *map(len, found)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), values)


def _schema(width: int, texts: bool) -> pa.Schema:
    """Returns the schema of a file of embeddings."""
    vector = pa.list_(pa.float32(), width)
    fields = [("image_id", pa.string()), ("embedding", vector)]
    return pa.schema(fields + [(TEXT_EMBEDDINGS, pa.list_(vector))] * texts)


def _read(shard: PictureShard, rows: int, texts: bool) -> Iterator[pa.RecordBatch]:
    """Yields the wanted columns of a shard, `rows` at a time."""
    try:
        yield from pq.ParquetFile(_source(shard.path)).iter_batches(
            rows, columns=[*WANTED, *([TEXTS] * texts)]
        )
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{shard.path} is damaged: {one_line(error)}") from error


def _list(path: pathlib.Path) -> list[pathlib.Path]:
    """Lists the Parquet files of one source; see `list_shards`."""
    if places.is_file(path):
        return [path]
    if places.is_folder(path):
        names = places.list_names(path)
        return [path / name for name in names if name.endswith(".parquet")]
    return [*map(pathlib.Path, sorted(glob.glob(str(path))))]


def _source(path: pathlib.Path) -> pathlib.Path | pa.BufferReader:
    """Returns what pyarrow reads: the path, or the content of a file in a bucket."""
    return pa.BufferReader(places.read_bytes(path)) if places.is_url(path) else path


def _open(path: pathlib.Path, texts: bool) -> PictureShard:
    try:
        file = pq.ParquetFile(_source(path))
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} is not a Parquet file: {one_line(error)}") from error
    schema = file.schema_arrow
    wanted = [*WANTED, *([TEXTS] * texts)]
    lacking = [name for name in wanted if name not in schema.names]
    if lacking:
        raise InputError(f"{path} lacks the columns {lacking}; it has {schema.names}")
    for name, kind in WANTED.items():
        found = schema.field(name).type
        if str(found).removeprefix("large_") != kind:
            raise InputError(f"column {name!r} of {path} is {found}; wanted {kind}")
    if texts:
        found = schema.field(TEXTS).type
        lists = pa.types.is_list(found) or pa.types.is_large_list(found)
        if not lists or str(found.value_type).removeprefix("large_") != "string":
            raise InputError(
                f"column {TEXTS!r} of {path} is {found}; wanted lists of strings"
            )
    name = path.name.removesuffix(".parquet") + ".parquet"
    return PictureShard(path, name, file.metadata.num_rows)


def _claim(folder: pathlib.Path, model: Model) -> None:
    """Binds a folder to the model: creates it and writes the model's digest into it.

    If the folder has the digest of this model, its other files are not checked.

    Raises:
      InputError: the folder has another model's digest, or it has none but holds files
        that are not temporary.
    """
    found = digest(model.weights)
    path = folder / DIGEST_FILE
    if places.exists(path):
        if places.read_object(path).get("digest") != found:
            raise InputError(
                f"{folder} holds embeddings of another model ({path}); give another"
                " folder, or remove it"
            )
        return
    if not places.is_free(folder, (LOCK_FILE, places.TEMPORARY)):
        raise InputError(
            f"{folder} is there and holds no embeddings of ours; give a new folder"
        )
    places.make_folder(folder)
    described = {"digest": found, "width": model.width, "step": model.weights.step}
    places.write_json(path, described)


def _check_rows(target: pathlib.Path, shard: PictureShard, schema: pa.Schema) -> None:
    try:
        file = pq.ParquetFile(_source(target))
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{target} is damaged: {one_line(error)}") from error
    rows, names = file.metadata.num_rows, file.schema_arrow.names
    if names != schema.names:
        raise InputError(
            f"{target} has the columns {names}; wanted {schema.names}: remove it, or"
            " give another folder"
        )
    if rows != shard.rows:
        raise InputError(
            f"{target} has {rows} embeddings, but {shard.path} {shard.rows} pictures;"
            " remove it"
        )
