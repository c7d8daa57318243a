"""Evaluates a set in CLIP_benchmark's folder layout by the task that fits the set.

A new task is one class that fulfils `Task`, and one line in `TASKS`.
"""

from collections.abc import Iterator, Mapping
from typing import Protocol

from align_jax.config import choose
from align_jax.contracts import check_contract
from align_jax.embed.encoder import Encoder
from align_jax.evaluation.evaluators.wds_faces import Faces
from align_jax.evaluation.evaluators.wds_tasks import (
    Associations,
    Captions,
    Classes,
    MultipleClasses,
    WdsConfig,
)
from align_jax.evaluation.examples import Example
from align_jax.input.benchmark_folder import (
    CLASSIFICATION,
    MULTILABEL,
    RETRIEVAL,
    read_type,
)


class Task(Protocol):
    """Scores a model on a set; the methods are those of `Evaluator`."""

    def __init__(self, config: WdsConfig) -> None:
        """Opens the set; raises InputError if it is not the expected one."""

    def run(self, embedder: Encoder) -> Iterator[tuple[str, float]]:
        """Yields (name, value) of every score and of the values beside them."""

    def examples(self, embedder: Encoder) -> Mapping[str, Iterator[Example]]:
        """Returns {title: some queries with the model's answers} for the report."""


TASKS: dict[str, type[Task]] = {
    CLASSIFICATION: Classes,
    MULTILABEL: MultipleClasses,
    RETRIEVAL: Captions,
    "associations": Associations,
    "faces": Faces,
}


class Wds:
    """A set of `wds_*` on the hub, evaluated as CLIP_benchmark and DataComp do."""

    Config = WdsConfig

    def __init__(self, config: WdsConfig) -> None:
        """Opens the set.

        Raises:
          InputError: a file of the set is missing or damaged, the set has other counts
            than the config or the files say, or its type is unknown.
        """
        name = config.task or read_type(config.directory)
        kind = choose(TASKS, name, f"the type of {config.directory}")
        check_contract(kind, Task, f"TASKS[{name!r}]")
        self.task = kind(config)

    def run(self, embedder: Encoder) -> Iterator[tuple[str, float]]:
        """Yields the task's scores and counts."""
        return self.task.run(embedder)

    def examples(self, embedder: Encoder) -> Mapping[str, Iterator[Example]]:
        """Returns the task's examples."""
        return self.task.examples(embedder)
