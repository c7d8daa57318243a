"""Files of a teacher's embeddings, one for each shard of a dataset.

The file of the shard SHARD is FOLDER/SHARD.npz. `align_jax.teach` writes it, and
`numpy.savez` can make it of other embeddings. It has the arrays

    images       (R, D) embeddings of the pictures, in the order of the shard's records
    texts        (T, D) embeddings of the texts: those of the first record, of the
                 second, and so on
    counts       (R,) number of texts of each record; may be absent if each has one
    shard_bytes  () size of the shard's file in bytes; may be absent
    features     (F,) names of the features of texts, of which a record has first those
                 of the first feature; may be absent
    model        () name or hash of the teacher; may be absent

Embeddings are float16 or float32, and are scaled to unit length when they are read. A
row that is zero or not finite stands for no embedding; its pair is replaced.
"""

import dataclasses
import io
import os
import struct
import zipfile
from typing import IO, Any, NamedTuple

import numpy as np

from align_jax import places, shard_files
from align_jax.errors import DAMAGED_NPZ, InputError, one_line

HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# NumPy's kinds of the types, the number of axes, and the meaning of the arrays that may
# be absent.
OTHERS = {
    "counts": ("iu", 1, "whole numbers, one for each record"),
    "shard_bytes": ("iu", 0, "one whole number"),
    "features": ("U", 1, "names in a list"),
    "model": ("U", 0, "one name"),
}


class StoredArray(NamedTuple):
    """Embeddings in an opened file.

    Attributes:
      begin: offset of the first number in the file.
      rows: number of embeddings.
      width: width D of the embeddings.
      dtype: type of the numbers.
    """

    begin: int
    rows: int
    width: int
    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class ShardEmbeddings:
    """An opened file of a shard's embeddings.

    Attributes:
      file: the opened file.
      images: embeddings of the pictures.
      texts: embeddings of the texts.
      counts: (R,) number of texts of each record.
      shard_bytes: size of the shard's file in bytes; None if the file lacks it.
      features: list of the names of texts' features; None if the file lacks it.
      model: name or hash of the teacher; "" if the file lacks it.
    """

    file: IO[bytes]
    images: StoredArray
    texts: StoredArray
    counts: np.ndarray
    shard_bytes: int | None
    features: list[str] | None
    model: str

    def read(self, array: StoredArray, first: int, last: int) -> np.ndarray:
        """Reads the rows [first, last) of `images` or `texts` as float32."""
        row = array.width * array.dtype.itemsize
        self.file.seek(array.begin + first * row)
        content = self.file.read((last - first) * row)
        found = np.frombuffer(content, array.dtype).reshape(-1, array.width)
        return found.astype(np.float32)


def file_of(folder: str, shard: str) -> str:
    """Returns the place of the embeddings of a shard, given as a path or URL."""
    return os.path.join(places.resolve(folder), os.path.basename(shard) + ".npz")


def write_embeddings(
    folder: str,
    shard: str,
    images: np.ndarray,
    texts: np.ndarray,
    counts: np.ndarray,
    features: list[str],
    model: str,
) -> None:
    """Writes the embeddings of a shard; see this module for the arrays."""
    content = io.BytesIO()
    np.savez(
        content,
        images=images,
        texts=texts,
        counts=counts,
        features=np.array(features),
        model=np.array(model),
        shard_bytes=np.array(places.size(shard)),
    )
    places.make_folder(places.resolve(folder))
    places.write_bytes(file_of(folder, shard), content.getvalue())


def open_embeddings(place: str, file: IO[bytes]) -> ShardEmbeddings:
    """Opens a file of embeddings.

    Args:
      place: path or URL of the file, for messages.
      file: the file, opened by `places.opening`.

    Raises:
      InputError: the file is damaged or not of the form that this module describes.
    """
    source: Any = shard_files.Seekable(file)
    try:
        with zipfile.ZipFile(source) as archive:
            images, texts = (_locate(archive, source, n) for n in ("images", "texts"))
            others = {
                name: _load(archive, name)
                for name in OTHERS
                if f"{name}.npy" in archive.namelist()
            }
        # Sums of unsigned numbers and 0 would be float64.
        counts = others.get("counts", np.ones(images.rows)).astype(np.int64)
        if (counts < 0).any():
            raise ValueError(f"counts has {counts.min()}; wanted numbers from 0 on")
        if counts.shape != (images.rows,) or counts.sum() != texts.rows:
            raise ValueError(
                f"it has embeddings of {images.rows} pictures and {texts.rows} texts,"
                f" and counts is {counts.shape} with the sum {counts.sum()}"
            )
        if images.width != texts.width:
            raise ValueError(
                f"embeddings of pictures have {images.width} numbers, those of texts"
                f" {texts.width}"
            )
    except DAMAGED_NPZ as error:
        raise InputError(
            f"{place} is not a file of teacher embeddings: {one_line(error)}"
        ) from error
    known = {name: array.tolist() for name, array in others.items()}
    return ShardEmbeddings(
        file=source,
        images=images,
        texts=texts,
        counts=counts,
        shard_bytes=known.get("shard_bytes"),
        features=known.get("features"),
        model=known.get("model", ""),
    )


def _find(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """Finds an array in a file; KeyError or ValueError if it is not as stored."""
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed; wanted a file of numpy.savez")
    return info


def _load(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Reads one of the arrays `OTHERS` of a file; ValueError if it is wrong."""
    content = io.BytesIO(archive.read(_find(archive, name)))
    array = np.lib.format.read_array(content)
    kinds, axes, wanted = OTHERS[name]
    if array.dtype.kind not in kinds or array.ndim != axes:
        raise ValueError(f"{name} is {array.dtype} {array.shape}; wanted {wanted}")
    return array


def _locate(archive: zipfile.ZipFile, file: IO[bytes], name: str) -> StoredArray:
    """Finds an array in a file that `numpy.savez` wrote; ValueError if it is wrong."""
    info = _find(archive, name)
    with archive.open(info) as member:
        read_header = HEADERS[np.lib.format.read_magic(member)]
        shape, columns_first, dtype = read_header(member)
        header = member.tell()
    kind = f"{name} is {dtype} {shape}"
    if len(shape) != 2 or dtype not in (np.float16, np.float32) or columns_first:
        order = " in Fortran's order" if columns_first else ""
        raise ValueError(f"{kind}{order}; wanted rows of float16 or float32")
    if header + shape[0] * shape[1] * dtype.itemsize != info.file_size:
        raise ValueError(f"{kind}, and has {info.file_size} bytes")
    # The lengths of a name and of an extra field stand at byte 26 of a header of 30.
    file.seek(info.header_offset + 26)
    lengths = struct.unpack("<HH", file.read(4))
    begin = info.header_offset + 30 + sum(lengths) + header
    return StoredArray(begin, *shape, dtype)


def unit_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales float32 embeddings to unit length.

    Args:
      rows: (N, D) embeddings.

    Returns:
      (N, D) float32, with zeros for rows that are zero or not finite, and (N,) bool,
      false for these.
    """
    with np.errstate(all="ignore"):
        length = np.linalg.norm(rows, axis=1, keepdims=True)
        usable = np.isfinite(length) & (length > 0)
        return np.where(usable, rows / length, np.float32(0)), usable[:, 0]
