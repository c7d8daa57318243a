"""Opens training datasets: the records that a run uses, in any known format."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from align_jax import dataset_folder
from align_jax.config import READER, check_choices, read_value
from align_jax.errors import InputError
from align_jax.input.formats.array_record import open_array_record
from align_jax.input.formats.dataset import Dataset
from align_jax.input.formats.parquet import open_parquet
from align_jax.input.formats.tfds import open_tfds
from align_jax.input.formats.webdataset import open_webdataset
from align_jax.input.phases import check_starts
from align_jax.input.shards import open_builder
from align_jax.ranges import INT64, Natural, NonNegative, Range, Share

SPLIT, TEXT_FEATURE = "train", "text"  # defaults

# Weights by name from a step on, ((step, {name: weight, ...}), ...).
WeightsByStep = tuple[tuple[Natural, dict[str, NonNegative]], ...]

FORMATS: dict[str, Callable[["DatasetConfig"], Dataset]] = {
    "tfds": open_tfds,
    "webdataset": open_webdataset,
    "array_record": open_array_record,
    "parquet": open_parquet,
}


def read_captions(value: Any, where: str) -> WeightsByStep:
    """Reads `DatasetConfig.captions`; one dict of weights holds from step 0 on."""
    weights = ((0, value),) if isinstance(value, Mapping) and value else value
    return read_value(WeightsByStep, weights or (), where)


def check_weights(field: str, weights: WeightsByStep) -> None:
    """Checks the weights of a config's field.

    Raises:
      ValueError: all weights from a step on are 0, or the steps do not ascend from 0.
    """
    for step, by_name in weights:
        if not any(by_name.values()):
            raise ValueError(
                f"{field} from step {step} are {by_name}; wanted one or more above 0"
            )
    check_starts(field, [step for step, _ in weights])


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
    """One dataset of training.

    Attributes:
      directory: path or URL of a folder. In TFDS's layout, it is the folder of a
        dataset, or that of its versions, of which the newest one is used. The other
        formats read all files of a folder, or those of a pattern, as "DIR/train-*".
      format: file format, a key of `FORMATS`; see the modules of
        `align_jax.input.formats` for the names of features in each.
      split: name of the split of a dataset in TFDS's layout.
      image_feature: name of the encoded picture in a record.
      text_feature: name of the text, or of a list of texts; each visit of a record uses
        a random one. "captions/text" is the field `text` of a list `captions`.
      captions: weights of several features of texts that take the place of
        `text_feature`, as {feature: weight, ...}, or by step as ((step, {feature:
        weight, ...}), ...) of which the first step is 0. Each visit of a record draws
        one of the features that the record has.
      first_sentence: share of the visits that use only the first sentence of the text.
      label_feature: name of a class number that replaces the text; "" for none.
      index: path or URL of the folder to which `data.index` wrote the index of tars; ""
        for the folder of the tars.
      teacher: path or URL of the folder of a teacher's embeddings of the records, see
        `align_jax.input.teacher_files`; "" for none.
      fraction: fraction of the records that is used, the first ones of the files. If
        the records are in random order, as `data.build` writes them, these are a random
        sample, and a smaller sample is part of a larger one.
      max_pairs: largest number of records that is used, the first ones; 0 for all.
    """

    directory: str
    format: str = "tfds"
    split: str = SPLIT
    image_feature: str = "image"
    text_feature: str = TEXT_FEATURE
    captions: WeightsByStep = dataclasses.field(
        default=(), metadata={READER: read_captions}
    )
    first_sentence: Share = 0.0
    label_feature: str = ""
    index: str = ""
    teacher: str = ""
    fraction: Annotated[float, Range(above=0, most=1)] = 1.0
    max_pairs: Annotated[int, Range(least=0, most=INT64)] = 0

    def __post_init__(self) -> None:
        check_choices(self, {"format": FORMATS})
        check_weights("captions", self.captions)
        if self.captions and self.text_feature != TEXT_FEATURE:
            raise ValueError(
                f"captions names {', '.join(self.targets)} and text_feature is"
                f" {self.text_feature!r}; wanted one of the two"
            )
        if self.label_feature and (self.captions or self.first_sentence):
            raise ValueError(
                f"label_feature is {self.label_feature!r}, so no texts are used; wanted"
                " no captions and no first_sentence"
            )
        if self.label_feature and self.teacher:
            raise ValueError(
                f"label_feature is {self.label_feature!r} and teacher {self.teacher!r};"
                " a teacher's embeddings are for pairs with texts"
            )
        if self.index and self.format != "webdataset":
            raise ValueError(
                f"index is {self.index!r}; the format {self.format!r} needs none"
            )
        if self.split != SPLIT and self.format not in ("tfds", "array_record"):
            raise ValueError(
                f"split is {self.split!r}; the format {self.format!r} has no splits,"
                " name their files by a pattern in directory"
            )

    @property
    def targets(self) -> list[str]:
        """The features of texts that a record may give, or that of its label."""
        names = dict.fromkeys(name for _, weights in self.captions for name in weights)
        return [*names] or [self.label_feature or self.text_feature]


def open_dataset(config: DatasetConfig) -> Dataset:
    """Opens the records of a dataset that a run uses.

    Raises:
      InputError: an error of the format's function, or no records to use.
    """
    dataset = FORMATS[config.format](config)
    total = sum(shard.records for shard in dataset.shards)
    wanted = round(total * config.fraction)
    if config.max_pairs:
        wanted = min(wanted, config.max_pairs)
    if not wanted:
        raise InputError(
            f"{config.fraction} of the {total} records of {config.directory}"
            f" {config.split} are none"
        )
    used = []
    for shard in dataset.shards:
        used.append(dataclasses.replace(shard, records=min(shard.records, wanted)))
        wanted -= used[-1].records
        if not wanted:
            break
    return dataclasses.replace(dataset, shards=used)


def count_labels(config: DatasetConfig) -> int | None:
    """Returns the number of classes that a dataset's metadata state, or None.

    `config.label_feature` must be a feature of the dataset.
    """
    if config.format != "tfds":
        return None
    directory = dataset_folder.newest_version(config.directory)
    feature = open_builder(directory, config.split).info.features
    for name in config.label_feature.split("/"):
        feature = feature[name]
    return getattr(feature, "num_classes", None)
