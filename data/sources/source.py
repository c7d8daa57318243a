"""Where raw image-text pairs come from: files cut into shards, read as batches.

Nothing is ever fetched from a URL: that is img2dataset's job.
"""

import collections
import dataclasses
import glob
import os
import pathlib
from collections.abc import Callable, Iterator

import pyarrow as pa

from align_jax.errors import InputError
from data.sources import html_pages, tables, tars
from data.sources.tables import Columns, Row

RAW = pa.schema(
    [
        ("image", pa.binary()),
        ("url", pa.string()),
        ("alt_text", pa.string()),
        ("language", pa.string()),
    ]
)
BATCH_ROWS = 256
BATCH_BYTES = 64 * 2**20
PAGES_A_SHARD = 1000
MAX_URL_CHARACTERS = 8192
DELIMITERS = {"csv": ",", "tsv": "\t"}


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """A source of raw pairs.

    Attributes:
      kind: a name in READERS.
      path: file, folder or glob; for TFDS the folder of a prepared dataset's version,
        or its name with `data_dir`.
      image_column: of tables: a picture file's bytes, or its path relative to the
        table's folder; "path" too in a `folder`. May be absent where there are URLs.
      url_column: of tables.
      text_column: of tables; field of a .json in tars; feature of TFDS, as in
        "captions/text".
      language_column: of tables; field of a .json in tars; feature of TFDS.
      language: of rows whose source has none.
      split: of TFDS.
      data_dir: of TFDS, where `path` is a name.
      encoding: of CSV and TSV files.
      base_url: URL under which a folder of HTML pages was served, empty if unknown.
      max_characters: a longer raw text is cut.
    """

    kind: str
    path: str
    image_column: str = "image"
    url_column: str = "url"
    text_column: str = "alt_text"
    language_column: str = "language"
    language: str = ""
    split: str = "train"
    data_dir: str = ""
    encoding: str = "utf-8"
    base_url: str = ""
    max_characters: int = 10_000

    def __post_init__(self):
        """Raises InputError for a field out of its range."""
        if self.kind not in READERS:
            raise InputError(
                f"source kind is {self.kind!r}; wanted one of {', '.join(READERS)}"
            )
        if not self.path:
            raise InputError(f"the path of a {self.kind} source is empty")
        if self.max_characters < 1:
            raise InputError(
                f"max_characters is {self.max_characters}; wanted 1 or more"
            )

    @property
    def columns(self) -> Columns:
        """Names of a table's columns."""
        return Columns(
            self.image_column, self.url_column, self.text_column, self.language_column
        )


@dataclasses.dataclass(frozen=True)
class SourceShard:
    """A part of a source that one process reads.

    Attributes:
      name: of it, for messages.
      path: of its file, or the root folder of `files`.
      first: row group, TFDS shard or place in a CSV file where it begins.
      last: where it ends, exclusive; of a CSV file its rows, 0 for all that follow.
      files: pages, relative to `path`.
    """

    name: str
    path: str
    first: int = 0
    last: int = 0
    files: tuple[str, ...] = ()


def list_shards(config: SourceConfig) -> list[SourceShard]:
    """Lists the shards of a source, in an order that depends on the files only.

    Raises:
      InputError: there are none, or a file lacks a column or is of another type.
    """
    list_, _ = READERS[config.kind]
    return list_(config)


def read_shard(
    config: SourceConfig, shard: SourceShard, drops: collections.Counter
) -> Iterator[pa.RecordBatch]:
    """Reads a shard.

    Args:
      config: of the source.
      shard: one of `list_shards(config)`.
      drops: counts what cannot become a pair by the reason.

    Yields:
      Batches of schema RAW of at most 256 rows.

    Raises:
      InputError: a file is damaged where what follows cannot be read.
    """
    _, read = READERS[config.kind]
    rows, size = [], 0
    for image, url, text, language in read(config, shard, drops):
        row = _checked(image, url, text, language, config.max_characters, drops)
        if row is None:
            continue
        rows.append(row)
        size += len(image or b"")
        if len(rows) == BATCH_ROWS or size >= BATCH_BYTES:
            yield _batch(rows)
            rows, size = [], 0
    if rows:
        yield _batch(rows)


def _checked(
    image: bytes | None,
    url: str | None,
    text: str | None,
    language: str,
    max_characters: int,
    drops: collections.Counter,
) -> Row | None:
    text, language = (text or "")[:max_characters], language[:64]
    if url and len(url) > MAX_URL_CHARACTERS:
        url = None
    reason = None
    if image is None and not url:
        reason = "no image and no url"
    elif image is not None and len(image) > tables.MAX_IMAGE_BYTES:
        reason = "image too large"
    elif "\0" in text or "\0" in (url or "") or "\0" in language:
        reason = "NUL byte"
    else:
        try:
            f"{url}{text}{language}".encode()
        except UnicodeEncodeError:  # Half of a surrogate pair, as JSON can hold it.
            reason = "undecodable text"
    if reason:
        drops[reason] += 1
        return None
    return image, url or None, text, language


def _batch(rows: list[Row]) -> pa.RecordBatch:
    columns = zip(*rows, strict=True)
    return pa.RecordBatch.from_arrays(
        [pa.array(c, f.type) for c, f in zip(columns, RAW, strict=True)], schema=RAW
    )


def _files(
    config: SourceConfig, suffixes: tuple[str, ...], recursive: bool = False
) -> tuple[str, list[str]]:
    """The root folder of a source and its files, relative to it, in order."""
    path = config.path
    if os.path.isdir(path):
        found = []
        for folder, folders, names in os.walk(path):
            if not recursive:
                folders.clear()
            here = os.path.relpath(folder, path)
            found += [os.path.normpath(os.path.join(here, name)) for name in names]
        found = [name for name in found if name.lower().endswith(suffixes)]
        root, wanted = path, f"files *{', *'.join(suffixes)}"
    else:
        root = path
        while glob.has_magic(root) or not os.path.isdir(root):
            parent = os.path.dirname(root)
            if parent == root or not parent:
                root = parent or "."
                break
            root = parent
        names = [path] if os.path.isfile(path) else glob.glob(path, recursive=True)
        found = [os.path.relpath(name, root) for name in names if os.path.isfile(name)]
        wanted = "a file, a folder or a glob that matches files"
    if not found:
        raise InputError(f"no files at {path} ({config.kind}); wanted {wanted}")
    return root, sorted(found)


def _list_parquet(config: SourceConfig) -> list[SourceShard]:
    root, names = _files(config, (".parquet",))
    shards = []
    for name in names:
        path = os.path.join(root, name)
        file = tables.open_parquet(path)
        tables.check_parquet(file, path, config.columns)
        parts = tables.parquet_parts(file)
        for first, last in parts:
            part = f"[{first}:{last}]" if len(parts) > 1 else ""
            shards.append(SourceShard(name + part, path, first, last))
    if not shards:
        raise InputError(f"{config.path} holds no rows; wanted at least one")
    return shards


def _read_parquet(config, shard, drops) -> Iterator[Row]:
    return tables.read_parquet(
        shard.path, shard.first, shard.last, config.columns, config.language, drops
    )


def _list_csv(config: SourceConfig) -> list[SourceShard]:
    kinds = [config.kind] if config.kind in DELIMITERS else [*DELIMITERS]
    suffixes = tuple(f".{kind}{end}" for kind in kinds for end in ("", ".gz"))
    if config.kind == "folder" and not os.path.isdir(config.path):
        raise InputError(f"no folder {config.path}; wanted one of pictures and a CSV")
    root, names = _files(config, suffixes)
    shards = []
    for name in names:
        path = os.path.join(root, name)
        delimiter = _delimiter(config, path)
        tables.check_csv(path, delimiter, config.encoding, _columns(config))
        parts = tables.csv_parts(path, delimiter, config.encoding)
        for i, (start, rows) in enumerate(parts):
            part = f"[part {i}]" if len(parts) > 1 else ""
            shards.append(SourceShard(name + part, path, start, rows))
    return shards


def _read_csv(config, shard, drops) -> Iterator[Row]:
    return tables.read_csv(
        shard.path,
        shard.first,
        shard.last,
        _delimiter(config, shard.path),
        config.encoding,
        _columns(config),
        config.language,
        drops,
    )


def _columns(config: SourceConfig) -> Columns:
    if config.kind == "folder" and config.image_column == Columns.image:
        return dataclasses.replace(config.columns, image="path")
    return config.columns


def _delimiter(config: SourceConfig, path: str) -> str:
    kind = config.kind
    if kind == "folder":
        kind = "tsv" if ".tsv" in pathlib.Path(path).suffixes else "csv"
    return DELIMITERS[kind]


def _list_tars(config: SourceConfig) -> list[SourceShard]:
    root, names = _files(config, (".tar", ".tar.gz", ".tgz"))
    shards = [SourceShard(name, os.path.join(root, name)) for name in names]
    for shard in shards:
        tars.check_tar(shard.path)
    return shards


def _list_img2dataset(config: SourceConfig) -> list[SourceShard]:
    root, names = _files(config, (".parquet",))
    shards = [SourceShard(name, os.path.join(root, name)) for name in names]
    for shard in shards:
        tars.check_img2dataset(shard.path)
    return shards


def _read_tar(config, shard, drops) -> Iterator[Row]:
    names = (config.text_column, config.language_column)
    return tars.read_tar(shard.path, *names, config.language, drops)


def _read_img2dataset(config, shard, drops) -> Iterator[Row]:
    names = (config.text_column, config.language_column)
    return tars.read_img2dataset(shard.path, *names, config.language, drops)


def _list_pages(config: SourceConfig) -> list[SourceShard]:
    warc = (".warc", ".warc.gz")
    root, names = _files(config, (".html", ".htm", ".xhtml", *warc), recursive=True)
    pages = [name for name in names if not name.lower().endswith(warc)]
    shards = [
        SourceShard(name, os.path.join(root, name))
        for name in names
        if name.lower().endswith(warc)
    ]
    for start in range(0, len(pages), PAGES_A_SHARD):
        part = tuple(pages[start : start + PAGES_A_SHARD])
        shards.append(SourceShard(f"{part[0]} ... {part[-1]}", root, files=part))
    return shards


def _read_pages(config, shard, drops) -> Iterator[Row]:
    if shard.files:
        return html_pages.read_pages(
            shard.files, shard.path, config.base_url, config.language, drops
        )
    return html_pages.read_warc(shard.path, config.language, drops)


def _list_tfds(config: SourceConfig) -> list[SourceShard]:
    from data.sources import tfds_records  # TensorFlow, which no other kind needs.

    shards = tfds_records.count_shards(
        config.path,
        config.data_dir,
        config.split,
        (config.image_column, config.text_column),
    )
    return [
        SourceShard(f"{config.split}[{n}]", config.path, n, n + 1)
        for n in range(shards)
    ]


def _read_tfds(config, shard, drops) -> Iterator[Row]:
    from data.sources import tfds_records

    return tfds_records.read_tfds(
        shard.path,
        config.data_dir,
        f"{config.split}[{shard.first}shard]",
        config.columns,
        config.language,
        drops,
    )


# kind: (lists its shards, reads one).
READERS: dict[str, tuple[Callable, Callable]] = {
    "parquet": (_list_parquet, _read_parquet),
    "csv": (_list_csv, _read_csv),
    "tsv": (_list_csv, _read_csv),
    "webdataset": (_list_tars, _read_tar),
    "img2dataset": (_list_img2dataset, _read_img2dataset),
    "folder": (_list_csv, _read_csv),
    "tfds": (_list_tfds, _read_tfds),
    "html": (_list_pages, _read_pages),
}
