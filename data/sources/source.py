"""Sources of raw image-text pairs: files, cut into shards and read as batches.

Nothing is ever fetched from a URL; img2dataset does that. To add a type of source,
write a class that fulfils `Source` and add one line to `SOURCES`.
"""

import collections
import dataclasses
from collections.abc import Iterator
from typing import Protocol

import pyarrow as pa

from align_jax import places
from align_jax.config import choose
from align_jax.contracts import check_contract
from align_jax.errors import InputError
from data.sources.config import SourceConfig
from data.sources.csv_tables import CsvSource, FolderSource, TsvSource
from data.sources.files import MAX_IMAGE_BYTES, RawPair, SourceShard
from data.sources.html_pages import HtmlSource
from data.sources.img2dataset import Img2datasetSource
from data.sources.json_lines import JsonLinesSource
from data.sources.parquet_tables import ParquetSource
from data.sources.subsets import Subset, open_subset, parse_uid
from data.sources.tars import WebdatasetSource
from data.sources.tfds_records import TfdsSource

RAW = pa.schema(
    [
        ("image", pa.binary()),
        ("url", pa.string()),
        ("alt_text", pa.string()),
        ("language", pa.string()),
    ]
)
RAW_WITH_UID = RAW.append(pa.field("uid", pa.string()))
BATCH_ROWS = 256
BATCH_BYTES = 64 * 2**20
MAX_URL_CHARACTERS = 8192


class Source(Protocol):
    """A type of source of raw pairs: lists its shards and reads each of them.

    An object belongs to one source. It is made on every machine that reads a shard, so
    making it must not open anything.
    """

    def __init__(self, config: SourceConfig) -> None:
        """Stores the fields of the source."""

    def list_shards(self) -> list[SourceShard]:
        """Cuts the source into shards, in an order that depends on the files only.

        One process reads a shard, so it should hold some thousand pairs and no more
        than some hundred megabytes. Only `read` uses the fields of a shard, so each
        class defines their meaning. A resumed build must find the same shards.

        Raises:
          InputError: no shard exists, or a file lacks a column or has another type.
        """

    def read(
        self, shard: SourceShard, drops: collections.Counter[str]
    ) -> Iterator[RawPair | None]:
        """Reads a shard in the order of its files: one item for each row.

        A row is whatever should give one pair: a line of a table, a text of a list, a
        sample of a tar, an <img> of a page. A file that ends too early is one more row.
        Pairs need no check. `read_shard` drops and counts pairs that are too large,
        have neither picture nor URL, or cannot be stored.

        Args:
          shard: one of `list_shards`.
          drops: counter of the reasons why rows give no pair; a cut file counts once.

        Yields:
          The pair of each row, or None where one reason was counted in `drops`. A pair
            without a language has the config's `language`.

        Raises:
          InputError: a file is damaged and the rest cannot be read.
        """


SOURCES: dict[str, type[Source]] = {
    "parquet": ParquetSource,
    "csv": CsvSource,
    "tsv": TsvSource,
    "jsonl": JsonLinesSource,
    "webdataset": WebdatasetSource,
    "img2dataset": Img2datasetSource,
    "folder": FolderSource,
    "tfds": TfdsSource,
    "html": HtmlSource,
}


WITH_UIDS = ("parquet", "webdataset", "img2dataset")  # the kinds that give uids


def choose_source(kind: str) -> type[Source]:
    """Returns the class of a type of source, by its name in SOURCES.

    Raises:
      InputError: no source has this name.
      TypeError: the class does not fulfil `Source`.
    """
    source = choose(SOURCES, kind, "source kind")
    check_contract(source, Source, f"SOURCES[{kind!r}]")
    return source


def list_shards(config: SourceConfig) -> list[SourceShard]:
    """Lists the shards of a source, in an order that depends on the files only.

    Raises:
      InputError: no shard exists, or a file lacks a column or has another type, or the
        subset cannot be used.
    """
    if config.subset:
        check_uids(config.kind, f"for the subset {config.subset}")
        open_subset(config.subset)
    return _open_source(config).list_shards()


def check_uids(kind: str, use: str) -> None:
    """Raises InputError if the sources of a kind have no uids.

    Args:
      kind: a name in SOURCES.
      use: purpose of the uids, for the message.
    """
    if kind not in WITH_UIDS:
        raise InputError(
            f"a source of kind {kind!r} has no uids {use}; wanted one of"
            f" {', '.join(WITH_UIDS)}"
        )


def read_shard(
    config: SourceConfig,
    shard: SourceShard,
    drops: collections.Counter[str],
    uids: bool = False,
) -> Iterator[pa.RecordBatch]:
    """Reads the usable pairs of a shard, with texts cut to `config.max_characters`.

    A pair is dropped and counted if it has neither picture nor URL, a picture of more
    than MAX_IMAGE_BYTES, a text that cannot be stored as UTF-8 without NUL, or a uid
    that is not in the subset. At the end, the rows of the shard are the pairs and the
    drops.

    Args:
      config: config of the source.
      shard: one of `list_shards(config)`.
      drops: counter of the reasons why rows and pairs are dropped.
      uids: whether to drop pairs without a uid, and to give the uids of the others.

    Yields:
      Batches of schema RAW, with uids RAW_WITH_UID, of at most 256 rows; a batch also
        ends when its pictures reach 64 MiB.

    Raises:
      InputError: a file is damaged and the rest cannot be read, or the source counted
        another number of drops than it has rows without a pair.
    """
    source, schema = _open_source(config), RAW_WITH_UID if uids else RAW
    subset = Subset(config.subset) if config.subset else None
    rows: list[RawPair] = []
    size = empty = 0
    counted: collections.Counter[str] = collections.Counter()  # by the source
    for pair in source.read(shard=shard, drops=counted):
        if pair is None:
            empty += 1
            continue
        row, reason = _check(pair, config.max_characters)
        if subset is not None and pair.uid not in subset:
            reason = "not in the subset" if pair.uid else "no uid"
        elif uids and parse_uid(pair.uid) is None:
            reason = "no uid"
        if reason:
            drops[reason] += 1
            continue
        rows.append(row)
        size += len(row.image or b"")
        if len(rows) == BATCH_ROWS or size >= BATCH_BYTES:
            yield _batch(rows, schema)
            rows, size = [], 0
    if rows:
        yield _batch(rows, schema)
    drops.update(counted)
    if empty != counted.total():
        raise InputError(
            f"the source {config.kind!r} miscounts {shard.name}: {empty} rows gave no"
            f" pair, but the counted drops are {dict(counted)}"
        )


def _open_source(config: SourceConfig) -> Source:
    """Makes the source of a config, after resolving its paths."""
    path = places.resolve(config.path)
    if config.kind == "tfds" and not places.is_folder(path):
        path = config.path  # the name of a dataset
    data_dir = config.data_dir and places.resolve(config.data_dir)
    resolved = dataclasses.replace(config, path=path, data_dir=data_dir)
    return choose_source(config.kind)(config=resolved)


def _check(pair: RawPair, max_characters: int) -> tuple[RawPair, str]:
    """Returns a pair with its texts cut, and why it is dropped ("" if it is kept).

    A URL that is too long is replaced by None.
    """
    image, url = pair.image, pair.url
    text, language = (pair.alt_text or "")[:max_characters], pair.language[:64]
    if url and len(url) > MAX_URL_CHARACTERS:
        url = None
    row, reason = RawPair(image, url or None, text, language, pair.uid), ""
    if image is None and not url:
        reason = "no image and no url"
    elif image is not None and len(image) > MAX_IMAGE_BYTES:
        reason = "image too large"
    elif "\0" in text or "\0" in (url or "") or "\0" in language:
        reason = "NUL byte"
    else:
        try:
            f"{url}{text}{language}".encode()
        except UnicodeEncodeError:  # half of a surrogate pair, from JSON
            reason = "undecodable text"
    return row, reason


def _batch(rows: list[RawPair], schema: pa.Schema) -> pa.RecordBatch:
    columns = zip(*(row[: len(schema)] for row in rows), strict=True)
    arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
