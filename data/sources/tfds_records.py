"""Pairs in a prepared TFDS dataset; pictures stay encoded."""

import collections
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from align_jax import dataset_folder, places
from align_jax.errors import InputError
from data.sources.config import SourceConfig
from data.sources.files import RawPair, SourceShard, decode_pair

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


class TfdsSource:
    """A split of a TFDS dataset; a shard is one of the split's files.

    TensorFlow is imported only when it is used, because most sources do not need it.
    """

    def __init__(self, config: SourceConfig) -> None:
        """Stores the config; reads nothing yet."""
        self.config = config

    def list_shards(self) -> list[SourceShard]:
        """Lists the files of the split; `first` is the index of the file, from 0.

        Raises:
          InputError: the dataset, the split or a feature is missing.
        """
        path, split = self.config.path, self.config.split
        info = self._open().info
        if split not in info.splits:
            raise InputError(f"{path} has no split {split!r}; it has {[*info.splits]}")
        found = info.features
        wanted = (self.config.image_column, self.config.text_column)
        missing = [name for name in wanted if name.partition("/")[0] not in found]
        if missing:
            raise InputError(f"{path} lacks the features {missing}; it has {[*found]}")
        numbers = range(info.splits[split].num_shards)
        return [SourceShard(f"{split}[{n}]", path, n, n + 1) for n in numbers]

    def read(
        self, shard: SourceShard, drops: collections.Counter[str]
    ) -> Iterator[RawPair | None]:
        """Yields the pairs of a shard; several texts of a record give one pair each."""
        import tensorflow as tf
        import tensorflow_datasets as tfds

        builder, columns = self._open(), self.config.columns
        default = self.config.language.encode()
        decoders = {}
        if isinstance(builder.info.features[columns.image], tfds.features.Image):
            decoders[columns.image] = tfds.decode.SkipDecoding()
        split = f"{self.config.split}[{shard.first}shard]"
        records = iter(builder.as_dataset(split=split, decoders=decoders))
        whole = builder.info.splits[self.config.split]
        path, count = [*dataset_folder.records_by_shard(whole).items()][shard.first]
        while True:
            try:
                with dataset_folder.reading_records(lambda: {path: count}):
                    record = next(records, None)
            except dataset_folder.DamagedFileError:
                drops["truncated tfrecord"] += 1
                yield None
                return
            if record is None:
                return
            texts = record
            for name in columns.text.split("/"):
                texts = texts[name]
            texts = tf.reshape(getattr(texts, "values", texts), [-1]).numpy().tolist()
            url, language = (
                record[name].numpy() if name in record else b""
                for name in (columns.url, columns.language)
            )
            image = record[columns.image].numpy()
            if not texts:
                drops["no text"] += 1
                yield None
            for text in texts:
                yield decode_pair(image, url, text, language or default, drops)

    def _open(self) -> "tfds.core.DatasetBuilder":
        """Opens the dataset; InputError if it is missing, damaged or not prepared."""
        import tensorflow_datasets as tfds

        path, data_dir = self.config.path, self.config.data_dir
        folder = places.resolve(path)
        if places.is_folder(folder):
            if not places.exists(os.path.join(folder, "dataset_info.json")):
                raise InputError(
                    f"{path} holds no dataset_info.json; wanted the folder of a"
                    " prepared TFDS dataset's version, as in NAME/1.0.0"
                )
            return dataset_folder.open_folder(folder)
        try:
            builder = tfds.builder(path, data_dir=data_dir or None)
        except (tfds.core.DatasetNotFoundError, ValueError) as error:
            raise InputError(f"no TFDS dataset or folder {path!r}") from error
        if not builder.is_prepared():
            raise InputError(
                f"TFDS dataset {path!r} is not prepared in {builder.data_dir}: run"
                f" `tfds build {path} --data_dir=...`"
            )
        return builder
