"""The config of a run on labelled pictures: fine-tuning, or a linear probe by SGD."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from align_jax.config import read_part
from align_jax.errors import InputError
from align_jax.input.datasets import count_labels
from align_jax.input.preprocess import PreprocessConfig
from align_jax.models.classifier import ClassifierConfig
from align_jax.training.run_config import ModelFields, RunConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifyConfig(RunConfig):
    """A run of an image tower with a linear head (arXiv 2102.05918, section 5.3).

    A linear probe keeps the tower's values fixed with `optimizer.frozen` and the
    tower's `frozen_statistics`.

    Attributes:
      run: the string "classify".
      model: the image tower and its head.
      evaluation: picture sizes in evaluation, often larger than in training (FixRes,
        arXiv 1906.06423); None for the sizes of `input.preprocess`.
    """

    kind: ClassVar[str] = "classifier"

    model: ClassifierConfig
    evaluation: PreprocessConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        texts = [n for n, d in self.input.datasets.items() if not d.label_feature]
        if texts or self.loss.contrasts:
            raise ValueError(
                f"input.datasets {texts} have no label_feature and loss.kind is"
                f" {self.loss.kind!r}; classification wants labels and 'cross_entropy'"
            )

    @classmethod
    def read_model(cls, fields: Mapping[str, Any], where: str) -> ModelFields:
        """Reads the part of a run's literal config that its weights need."""
        found = super().read_model(fields, where)
        if fields.get("evaluation") is None:
            return found
        sizes = read_part(PreprocessConfig, fields, "evaluation", where)
        return dataclasses.replace(found, preprocess=sizes)

    @property
    def evaluation_preprocess(self) -> PreprocessConfig:
        """Picture sizes in evaluation; those of training if `evaluation` is None."""
        return self.evaluation or self.input.preprocess

    def check_data(self) -> None:
        """Raises InputError if a dataset's number of classes is not the model's.

        Datasets that do not state their number of classes pass.
        """
        for name, dataset in self.input.datasets.items():
            found = count_labels(dataset)
            if found not in (None, self.model.classes):
                raise InputError(
                    f"config.input.datasets.{name} has labels of {found} classes;"
                    f" config.model.classes is {self.model.classes}"
                )
