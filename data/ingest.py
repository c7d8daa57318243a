"""Raw image-text pairs to normalised tables.

A raw table is a Parquet file with the columns `image` (the bytes of a picture file),
`alt_text` and `language`; further columns, such as sources and licences, stay behind.
Texts are normalised once, here, because SQL engines disagree on lower-casing.
"""

import dataclasses
import hashlib
import pathlib
import unicodedata
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import DataError

PAIRS = pa.schema(
    [
        ("image_id", pa.string()),
        ("alt_text", pa.string()),
        ("text", pa.string()),
        ("language", pa.string()),
        ("key", pa.int64()),
    ]
)
RAW_COLUMNS = {
    "image": pa.binary(),
    "alt_text": pa.string(),
    "language": pa.string(),
}


@dataclasses.dataclass(frozen=True)
class IngestConfig:
    """Where raw pairs come from.

    Attributes:
      pairs: Parquet file of raw pairs.
      max_characters: a longer text is cut after normalisation.
    """

    pairs: str
    max_characters: int = 1000


def normalise(text: str, max_characters: int) -> str:
    """NFKC, case folding, control characters to spaces, single spaces, cut."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    # Folding can undo the composition (as for the Turkish dotted capital I).
    folded = unicodedata.normalize("NFKC", folded)
    printable = (c if unicodedata.category(c)[0] != "C" else " " for c in folded)
    return " ".join("".join(printable).split())[:max_characters].rstrip()


def identify(image: bytes) -> str:
    """Names a picture by its bytes: the first 32 hex digits of their SHA-256."""
    return hashlib.sha256(image).hexdigest()[:32]


def shuffle_key(seed: int, image_id: str, text: str) -> int:
    """A signed 64-bit key: sorting by it shuffles the pairs, for every seed anew."""
    content = f"{seed}\0{image_id}\0{text}".encode()
    digest = hashlib.blake2b(content, digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def open_table(
    path: str, columns: dict[str, pa.DataType], field: str
) -> pq.ParquetFile:
    """Opens a Parquet file.

    Args:
      path: of the file.
      columns: names and types of the columns it must have; large types will do.
      field: config field that names the file, for messages.

    Raises:
      DataError: the file is missing, empty, not Parquet, or lacks a column.
    """
    if not pathlib.Path(path).is_file():
        raise DataError(
            f"no file {path} ({field}); the quickstart's are made by"
            " `python -m data.quickstart --out=DIR`"
        )
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} ({field}) is not a Parquet file: {reason}") from error
    schema = file.schema_arrow
    missing = [name for name in columns if name not in schema.names]
    if missing:
        raise DataError(f"{path} lacks the columns {missing}; it has {schema.names}")
    for name, kind in columns.items():
        found = schema.field(name).type
        alike = str(found).removeprefix("large_") == str(kind)
        if not (alike or pa.types.is_null(found)):
            raise DataError(f"column {name!r} of {path} is {found}; wanted {kind}")
    if not file.metadata.num_rows:
        raise DataError(f"{path} ({field}) holds no rows; wanted at least one")
    return file


def _read_batches(file: pq.ParquetFile, path: str) -> Iterator[pa.RecordBatch]:
    batches = file.iter_batches(columns=list(RAW_COLUMNS))
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{path} is damaged ({reason}); make it anew") from error
        yield batch


def read_pairs(config: IngestConfig, seed: int) -> Iterator[tuple[pa.Table, dict]]:
    """Reads raw pairs in batches.

    Args:
      config: where they are.
      seed: of the shuffle keys.

    Yields:
      A table of pairs (schema PAIRS) and {image_id: bytes} of their pictures.

    Raises:
      DataError: the file is missing, empty, not Parquet, or lacks a column.
    """
    file = open_table(config.pairs, RAW_COLUMNS, "config.ingest.pairs")
    for batch in _read_batches(file, config.pairs):
        pictures: dict[str, bytes] = {}
        rows = []
        for row in batch.to_pylist():
            image, alt_text = row["image"] or b"", row["alt_text"] or ""
            image_id = identify(image)
            text = normalise(alt_text, config.max_characters)
            pictures[image_id] = image
            key = shuffle_key(seed, image_id, text)
            rows.append(
                {
                    "image_id": image_id,
                    "alt_text": alt_text,
                    "text": text,
                    "language": row["language"],
                    "key": key,
                }
            )
        yield pa.Table.from_pylist(rows, PAIRS), pictures
