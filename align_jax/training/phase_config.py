"""The config field `phases`: sizes of pictures, texts and batches by step."""

import dataclasses
from typing import Annotated, Any

from align_jax.config import read_config, read_value
from align_jax.input.phases import Phase, check_starts
from align_jax.input.preprocess import PreprocessConfig
from align_jax.ranges import Count, Natural, Range, Share, Side

PhaseFields = tuple[tuple[int, dict[str, Any]], ...]  # (first step, changed fields)


@dataclasses.dataclass(frozen=True)
class PhaseConfig:
    """The fields that a phase of a run may change; None keeps the run's value.

    Attributes:
      image_size: side of the training pictures, see `PreprocessConfig`.
      resize: side of the squashed picture before the crop; None scales
        `input.preprocess.resize` with `image_size`.
      crop: crop of the picture; for this field and the next four, see
        `PreprocessConfig`.
      crop_area: smallest fraction of the picture's area that an inception crop shows.
      flip: whether to mirror half of the pictures.
      random_background: whether to lay transparent pictures over a random colour.
      colour_jitter: largest relative change of brightness, contrast and saturation.
      max_tokens: length of the token sequences, at most that of the text tower.
      virtual_cores: number of virtual cores. The global batch has virtual_cores *
        pairs_per_core pairs.
    """

    image_size: Side | None = None
    resize: Side | None = None
    crop: str | None = None
    crop_area: Annotated[float, Range(above=0, most=1)] | None = None
    flip: bool | None = None
    random_background: bool | None = None
    colour_jitter: Share | None = None
    max_tokens: Annotated[int, Range(least=3)] | None = None
    virtual_cores: Count | None = None

    def make_preprocess(self, run: PreprocessConfig) -> PreprocessConfig:
        """Returns the run's `preprocess` with this phase's changes.

        Raises:
          ValueError: the sizes or the crop are wrong, see `PreprocessConfig`.
        """
        names = {field.name for field in dataclasses.fields(run)}
        fields = dataclasses.asdict(self)
        changes = {n: fields[n] for n in fields if n in names and fields[n] is not None}
        if self.image_size is not None and self.resize is None:
            scale = self.image_size / run.image_size
            changes["resize"] = max(round(run.resize * scale), self.image_size)
        return dataclasses.replace(run, **changes)


def read_phases(value: Any, where: str) -> PhaseFields:
    """Reads the field `phases`, and keeps the fields of each phase as a plain dict.

    So a phase in a run's folder has only the fields that it changes.

    Raises:
      InputError: the value is not a tuple of (step, fields), or a field is unknown or
        wrong.
    """
    hint = tuple[tuple[Natural, dict[str, Any]], ...]
    phases = read_value(hint, value, where)
    for number, (_, fields) in enumerate(phases):
        read_config(PhaseConfig, fields, f"{where}[{number}][1]")
    return phases


def make_phases(
    fields: PhaseFields,
    run: Phase,
    pairs_per_core: int,
    batch_norm_cores: int,
    total_steps: int,
) -> tuple[Phase, ...]:
    """Returns the phases of a run.

    Args:
      fields: value of the field `phases`; () for one phase.
      run: phase that a run without `phases` has.
      pairs_per_core: pairs on each virtual core.
      batch_norm_cores: number of virtual cores that share BatchNorm statistics.
      total_steps: number of optimizer steps.

    Raises:
      ValueError: the steps do not ascend from 0 to below `total_steps`, or pictures,
        texts or batch of a phase do not fit the run.
    """
    check_starts("phases", [start for start, _ in fields])
    phases = []
    for number, (start, changes) in enumerate(fields):
        config, name = read_config(PhaseConfig, changes), f"phases[{number}][1]"
        if start >= total_steps:
            raise ValueError(
                f"phases[{number}] begins at step {start}; wanted a step below"
                f" total_steps, {total_steps}"
            )
        try:
            preprocess = config.make_preprocess(run.preprocess)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        length, cores = config.max_tokens or run.max_tokens, config.virtual_cores
        if length and run.max_tokens is None:
            raise ValueError(
                f"{name}.max_tokens is {length}, but the run has no texts; wanted None"
            )
        if length and run.max_tokens and length > run.max_tokens:
            raise ValueError(
                f"{name}.max_tokens is {length}, above model.text_tower.max_tokens,"
                f" {run.max_tokens}"
            )
        if cores and cores % batch_norm_cores:
            raise ValueError(
                f"{name}.virtual_cores is {cores}, not a multiple of batch_norm_cores,"
                f" {batch_norm_cores}"
            )
        pairs = cores * pairs_per_core if cores else run.pairs
        phases.append(Phase(start, pairs, preprocess, length))
    return tuple(phases) or (run,)
