"""Embeddings saved on disk, so that each picture or text is embedded once for a model.

FOLDER/DIGEST/KIND/*.parquet have the columns `id` and `embedding` (float32). DIGEST
is the hash of the model, see `digest` of `align_jax.weights.folder`; KIND is one of
`KINDS`. The id of a picture is `content_id` of its file; the id of a text is the text.
A file appears only when it is complete, and it never changes.
"""

import hashlib
import io
import itertools
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jax.sharding import Mesh

from align_jax import places
from align_jax.devices.exchange import gather, wait_for_all
from align_jax.embed.encoder import Encoder, UnreadableError
from align_jax.errors import InputError, one_line
from align_jax.runs import workdir

KINDS = ("images", "image_features", "texts", "projected_texts", "text_features")
ROWS = 8192  # rows of a full file
ITEMS = 1024  # pictures or texts that are looked up at a time
FILES_IN_MEMORY = 4


def content_id(content: bytes) -> str:
    """Returns the BLAKE2b hash of a file's bytes, 32 hex digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


class SavedEmbedder:
    """An encoder that reads from a folder the embeddings that were computed before.

    All processes must see the same folder; the first process writes.
    """

    def __init__(self, embedder: Encoder, folder: str, model: str) -> None:
        """Lists the saved embeddings.

        Args:
          embedder: encoder of pictures and texts without a saved embedding.
          folder: path or URL of the folder, which is made if it does not exist.
          model: hash of the embedder's weights, see `digest` of
            `align_jax.weights.folder`.

        Raises:
          InputError: a file is damaged, the processes see different files, or nothing
            is saved yet and the folder cannot be written.
        """
        self._embedder = embedder
        self._folder = os.path.join(places.resolve(folder), model)
        self._saved = {kind: _Rows(os.path.join(self._folder, kind)) for kind in KINDS}
        files = "\n".join(file for rows in self._saved.values() for file in rows.files)
        seen = gather(np.uint32(zlib.crc32(files.encode())))
        if len(np.unique(seen)) > 1:
            raise InputError(
                f"processes see different files in {self._folder}; it must be one"
                " folder, in which nothing is written while they start"
            )
        if not files and workdir.leads():
            # Found out now, not when the first embeddings are computed.
            places.make_folder(self._folder)
            trial = os.path.join(self._folder, f"trial{places.TEMPORARY}")
            places.write_bytes(trial, b"")
            places.remove(trial)

    @property
    def mesh(self) -> Mesh:
        """The devices."""
        return self._embedder.mesh

    def encode_images(self, pictures: Iterable[bytes]) -> np.ndarray:
        """Works as `Encoder.encode_images`."""
        encode = self._embedder.encode_images
        return self._all("images", pictures, content_id, encode)

    def stream_images(self, pictures: Iterable[bytes]) -> Iterator[np.ndarray]:
        """Works as `Encoder.stream_images`."""
        encode = self._embedder.encode_images
        return self._look_up("images", pictures, content_id, encode)

    def image_features(self, pictures: Iterable[bytes]) -> np.ndarray:
        """Works as `Encoder.image_features`."""
        encode = self._embedder.image_features
        return self._all("image_features", pictures, content_id, encode)

    def classify_images(self, pictures: Iterable[bytes]) -> np.ndarray:
        """Works as `Encoder.classify_images`; the logits are not saved."""
        return self._embedder.classify_images(pictures)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Works as `Encoder.encode_texts`."""
        return self._all("texts", texts, str, self._embedder.encode_texts)

    def project_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Works as `Encoder.project_texts`."""
        encode = self._embedder.project_texts
        return self._all("projected_texts", texts, str, encode)

    def text_features(self, texts: Sequence[str]) -> np.ndarray:
        """Works as `Encoder.text_features`."""
        return self._all("text_features", texts, str, self._embedder.text_features)

    def _all(
        self, kind: str, items: Iterable, name: Callable, encode: Callable
    ) -> np.ndarray:
        """Returns the embeddings of items, (N, D); the arguments are `_look_up`'s."""
        parts = list(self._look_up(kind, items, name, encode))
        return np.concatenate(parts) if parts else encode([])

    def _look_up(
        self, kind: str, items: Iterable, name: Callable, encode: Callable
    ) -> Iterator[np.ndarray]:
        """Yields the embeddings of items, (n, D) for at most `ITEMS` items at a time.

        Items without a saved embedding are encoded. New embeddings are kept in memory.
        They are written whenever `ROWS` of them are new and after the last item.

        Args:
          kind: kind of embedding, one of `KINDS`.
          items: files of pictures, or texts.
          name: function from an item to its id in the saved files.
          encode: function from a list of n items to their embeddings (n, D).

        Raises:
          UnreadableError: an item is a picture that cannot be read; its index is among
            all items.
        """
        saved, waiting, start = self._saved[kind], iter(items), 0
        while batch := list(itertools.islice(waiting, ITEMS)):
            ids = [name(item) for item in batch]
            found = dict(zip(ids, batch, strict=True))
            new = {i: item for i, item in found.items() if i not in saved}
            if new:
                try:
                    embeddings = encode([*new.values()])
                except UnreadableError as error:
                    index = start + ids.index([*new][error.index])
                    raise UnreadableError(index, error.reason) from error
                saved.add([*new], embeddings)
            yield saved[ids]
            start += len(batch)
        saved.write()


class _Rows:
    """Embeddings (D,) of one of `KINDS` by id: in files, and the newest in memory.

    Attributes:
      files: paths of the files.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self.files: list[str] = []
        self._rows: dict[str, tuple[int, int]] = {}  # id -> file and row in it
        self._new: list[np.ndarray] = []  # (n, D) each, for the next file
        self._new_ids: list[str] = []
        there = places.list_names(folder) if places.is_folder(folder) else []
        for path in (os.path.join(folder, n) for n in there if n.endswith(".parquet")):
            self._place(_read_column(path, "id").to_pylist())
            self.files.append(path)

    def __contains__(self, name: str) -> bool:
        return name in self._rows

    def __getitem__(self, ids: list[str]) -> np.ndarray:
        located = np.array([self._rows[name] for name in ids])  # (n, 2)
        order, parts = [], []
        for file in np.unique(located[:, 0]):
            rows = np.flatnonzero(located[:, 0] == file)
            written = file < len(self.files)
            source = _read(self.files[file]) if written else np.concatenate(self._new)
            order.append(rows)
            parts.append(source[located[rows, 1]])
        return np.concatenate(parts)[np.argsort(np.concatenate(order))]

    def add(self, ids: list[str], embeddings: np.ndarray) -> None:
        """Adds embeddings (n, D) of ids that have none; writes if `ROWS` are new."""
        self._place(ids, len(self._new_ids))
        self._new_ids += ids
        self._new.append(embeddings)
        if len(self._new_ids) >= ROWS:
            self.write()

    def write(self) -> None:
        """Writes the embeddings that are only in memory, if any, to a new file.

        All processes must call it; the first one writes.
        """
        if not self._new:
            return
        embeddings = np.concatenate(self._new)  # (n, D)
        vectors = pa.FixedSizeListArray.from_arrays(
            pa.array(embeddings.ravel()), embeddings.shape[1]
        )
        # The name is a hash of the ids, so that two evaluations at once write different
        # files, or the same file with the same content.
        name = content_id("\n".join(self._new_ids).encode())
        path = os.path.join(self._folder, f"{name}.parquet")
        if workdir.leads():
            table = pa.table({"id": pa.array(self._new_ids), "embedding": vectors})
            file = io.BytesIO()
            pq.write_table(table, file, compression="none")
            places.make_folder(self._folder)
            places.write_bytes(path, file.getvalue())
        wait_for_all()
        self.files.append(path)
        self._new, self._new_ids = [], []

    def _place(self, ids: list[str], first: int = 0) -> None:
        """Records that ids are rows of the next file, from row `first` on."""
        file = len(self.files)
        self._rows |= {name: (file, first + row) for row, name in enumerate(ids)}


@lru_cache(FILES_IN_MEMORY)
def _read(path: str) -> np.ndarray:
    """Returns a file's embeddings (n, D)."""
    column = _read_column(path, "embedding").combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)


def _read_column(path: str, name: str) -> pa.ChunkedArray:
    content = places.read_bytes(path)
    try:
        return pq.read_table(io.BytesIO(content), columns=[name]).column(name)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise InputError(
            f"{path} is damaged: {one_line(error)}; remove it, and it is made again"
        ) from error
