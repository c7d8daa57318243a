"""Opens the mixture of training datasets and checks it before a run starts."""

import bisect
import collections
import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence

from align_jax.errors import InputError
from align_jax.input import record_order
from align_jax.input.datasets import DatasetConfig, check_weights, open_dataset
from align_jax.input.formats.dataset import Dataset, naming_damage
from align_jax.input.phases import Phase, count_pairs, find_phase
from align_jax.input.preprocess import PreprocessConfig
from align_jax.input.teacher import add_teacher, check_folders
from align_jax.ranges import Count, Natural, NonNegative, Share

# Largest share of a batch's pairs that may be copies of its other pairs. A contrastive
# loss takes the copies of a pair for its negatives.
MOST_REPEATED = 0.5
# Shards that a stream has opened last and may still be reading, when one is damaged.
READ_AHEAD = 4


@dataclasses.dataclass(frozen=True)
class InputConfig:
    """The training datasets, their mixture and the way they are read.

    Attributes:
      datasets: datasets by name; the name is part of the seed of a dataset's order.
      preprocess: image sizes and augmentations.
      weights: phases ((step, {dataset: weight, ...}), ...). From its step on, a phase
        gives each dataset a share of the pairs, rounded to thousandths; a dataset that
        it does not name has none. The first step is 0. An empty tuple mixes in
        proportion to the datasets' pairs.
      streams: number of independent readers of records. It must be a multiple of every
        number of hosts used, and divide the global batch size.
      shuffle_window: number of a shard's records that are permuted together, which each
        stream holds in memory. A shard that is not larger is permuted as a whole.
      workers: number of threads that prepare pictures on a host; 0 for one a core.
      max_replaced: largest share of a host's pairs so far that may be replaced because
        they cannot be used; above it the run stops. Fewer pairs count as 1000.
      teacher_width: width of the embeddings in the `teacher` folders of all datasets,
        which a batch then holds; 0 if no dataset has a `teacher`.
    """

    datasets: dict[str, DatasetConfig]
    preprocess: PreprocessConfig
    weights: tuple[tuple[Natural, dict[str, NonNegative]], ...] = ()
    streams: Count = 8
    shuffle_window: Count = 1024
    workers: Natural = 0
    max_replaced: Share = 0.01
    teacher_width: Natural = 0

    def __post_init__(self) -> None:
        if not self.datasets:
            raise ValueError("datasets is empty; wanted one or more")
        _check_weights(self.weights, [*self.datasets])
        labels = [name for name, part in self.datasets.items() if part.label_feature]
        if labels and len(labels) < len(self.datasets):
            raise ValueError(
                f"datasets {labels} have a label_feature, and the others texts; wanted"
                " one kind in all"
            )
        lacking = [name for name, part in self.datasets.items() if not part.teacher]
        if self.teacher_width and lacking:
            raise ValueError(
                f"teacher_width is {self.teacher_width}, but datasets {lacking} have no"
                " teacher; wanted one in all"
            )
        taught = [name for name, part in self.datasets.items() if part.teacher]
        if taught and not self.teacher_width:
            raise ValueError(
                "teacher_width is 0; wanted the width of the embeddings in the teacher"
                f" folders of datasets {taught}"
            )


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """The training datasets, opened and checked.

    Attributes:
      config: config of the input.
      datasets: opened datasets in the config's order.
      phases: form of the global batches by step, one phase or more.
      mixture: assignment of a dataset to each pair that a stream gives.
      reading: paths of the newest shards that were opened, by index of the dataset and
        stream; written while batches are read ahead.
    """

    config: InputConfig
    datasets: list[Dataset]
    phases: tuple[Phase, ...]
    mixture: record_order.Mixture
    reading: dict[tuple[int, int], collections.deque[str]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(
            lambda: collections.deque(maxlen=READ_AHEAD)
        )
    )

    def draws_at(self, step: int) -> int:
        """Returns the number of pairs that a stream gives to batch `step`, from 0."""
        pairs = self.phases[find_phase(self.phases, step)].pairs_read
        return pairs // self.config.streams

    def draws_before(self, step: int) -> int:
        """Returns the number of pairs that a stream gives to batches 0 to `step` - 1.

        Every batch takes as many pairs from each stream, so this number, the streams
        and the seed define batch `step`, whatever the sizes of the batches before.
        """
        return count_pairs(self.phases, step) // self.config.streams

    def list_reading(self) -> list[str]:
        """Lists the shards that were opened last, of all datasets and streams."""
        # Copies, because the threads that read ahead may still add shards.
        return [path for paths in [*self.reading.values()] for path in [*paths]]

    @contextlib.contextmanager
    def naming_damage(self) -> Iterator[None]:
        """Turns errors of reading inside the `with` statement into InputErrors.

        Raises:
          InputError: a shard is damaged, missing or unreadable; see `naming_damage`.
        """
        with naming_damage(self.datasets, self.list_reading):
            yield

    @property
    def pairs(self) -> int:
        """Number of records that are used, over all datasets."""
        return sum(_sizes(self.datasets))

    @property
    def labelled(self) -> bool:
        """Whether the pairs have labels instead of texts."""
        return any(d.label_feature for d in self.config.datasets.values())


def open_training(
    config: InputConfig, phases: tuple[Phase, ...], process_count: int
) -> TrainingData:
    """Opens the training data.

    Args:
      config: config of the input.
      phases: form of the global batches by step, as `RunConfig.batch_phases`.
      process_count: number of hosts.

    Raises:
      InputError: the batch does not divide by the streams or the streams by the hosts,
        a dataset is missing, damaged or empty, or lacks a feature or the embeddings of
        a teacher, or more than `MOST_REPEATED` of a batch with texts are repeated
        pairs. Fewer are a warning.
    """
    for phase in phases:
        if phase.pairs_read % config.streams:
            since = f" from step {phase.start} on" if len(phases) > 1 else ""
            raise InputError(
                f"the global {phase.batch_read} of {phase.pairs_read} pairs{since} does"
                f" not divide over input.streams = {config.streams}"
            )
    if config.streams % process_count:
        raise InputError(
            f"input.streams is {config.streams}, not a multiple of the"
            f" {process_count} hosts"
        )
    datasets = [open_dataset(dataset) for dataset in config.datasets.values()]
    if config.teacher_width:
        datasets = _add_teachers(datasets, config)
    weights = [
        (step, [float(by_name.get(name, 0)) for name in config.datasets])
        for step, by_name in config.weights
    ] or [(0, [float(size) for size in _sizes(datasets)])]
    mixture = record_order.Mixture.of_weights(
        (count_pairs(phases, step) // config.streams, by_dataset)
        for step, by_dataset in weights
    )
    data = TrainingData(config, datasets, phases, mixture)
    if not data.labelled:
        _check_repeats(data, [step for step, _ in weights])
    return data


def _add_teachers(datasets: list[Dataset], config: InputConfig) -> list[Dataset]:
    """Adds a teacher's embeddings; InputError for several teachers or a shared file."""
    width, parts = config.teacher_width, [*config.datasets.values()]
    check_folders(datasets, parts)
    added = [
        add_teacher(dataset, part, width)
        for dataset, part in zip(datasets, parts, strict=True)
    ]
    models = sorted({model for _, found in added for model in found})
    if len(models) > 1:
        raise InputError(
            f"the embeddings are of {len(models)} teachers ({', '.join(models)});"
            " wanted one in all shards of all datasets"
        )
    return [dataset for dataset, _ in added]


def _check_repeats(data: TrainingData, mixed: Sequence[int]) -> None:
    """Warns of pairs that a batch holds more than once, or raises InputError.

    Args:
      data: the training data.
      mixed: first step of each phase of the mixture.
    """
    names, sizes = [*data.config.datasets], _sizes(data.datasets)
    for start in sorted({*mixed, *(phase.start for phase in data.phases)}):
        batch = data.phases[find_phase(data.phases, start)].batch_read
        batch_size = data.draws_at(start) * data.config.streams
        _, shares = data.mixture.phases[bisect.bisect_right(mixed, start) - 1]
        rows = [batch_size * share / record_order.CYCLE for share in shares]
        parts = list(zip(names, sizes, rows, strict=True))
        repeated = sum(max(0.0, count - size) for _, size, count in parts) / batch_size
        if not repeated:
            continue
        times = "; ".join(
            f"each of the {size} pairs of {name} is there {count / size:.3g} times, and"
            f" {count / size - 1:.3g} times its own negative"
            for name, size, count in parts
            if count > size
        )
        message = (
            f"from step {start} on, {repeated:.0%} of a {batch} of"
            f" {batch_size} pairs are in the {batch} more than once: {times}; take a"
            f" smaller {batch} or more pairs"
        )
        if repeated > MOST_REPEATED:
            raise InputError(f"{message} (at most {MOST_REPEATED:.0%} may be)")
        logging.warning(message)


def _sizes(datasets: list[Dataset]) -> list[int]:
    """Returns the number of used records of each dataset."""
    return [sum(shard.records for shard in dataset.shards) for dataset in datasets]


def _check_weights(weights: tuple, names: list[str]) -> None:
    """Raises ValueError for unknown datasets, no weight above 0 or unordered steps."""
    for _, by_name in weights:
        unknown = sorted({*by_name} - {*names})
        if unknown:
            raise ValueError(
                f"weights names {unknown}, but datasets has {', '.join(names)}"
            )
    check_weights("weights", weights)
