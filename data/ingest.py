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
RAW_COLUMNS = ("image", "alt_text", "language")


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
    path = pathlib.Path(config.pairs)
    if not path.exists():
        raise DataError(
            f"no raw pairs at {path} (config.ingest.pairs); the quickstart's are made"
            " by `python -m data.quickstart --out=DIR`"
        )
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is not a Parquet file: {error}") from error
    missing = [name for name in RAW_COLUMNS if name not in file.schema_arrow.names]
    if missing:
        raise DataError(
            f"{path} lacks the columns {missing}; it has {file.schema_arrow.names}"
        )
    if not file.metadata.num_rows:
        raise DataError(f"{path} holds no pairs")
    for batch in file.iter_batches(columns=list(RAW_COLUMNS)):
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
