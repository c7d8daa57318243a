"""The config of a pretraining run."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from jax.sharding import Mesh

from align_jax.config import read_part
from align_jax.input.phases import Phase
from align_jax.input.tokenizer import Tokenizer, open_tokenizer
from align_jax.models.dual_encoder import ModelConfig
from align_jax.models.tokens import check_tokenizer
from align_jax.training.hard_pairs import HardPairs
from align_jax.training.run_config import ModelFields, RunConfig
from align_jax.training.step_plan import StepPlan


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunConfig):
    """A run on pairs of pictures and texts: pretraining, or fine-tuning for retrieval.

    Attributes:
      run: the string "pretrain".
      vocabulary: file of the tokenizer, see `input.tokenizer.open_tokenizer`: a
        WordPiece vocabulary (vocab.txt), a tokenizer.json, a .model of SentencePiece,
        or CLIP's vocab.json.
      model: the towers, the embedding size and the form of the logits.
      hard_pairs: choice of each batch from a larger one; None to train on all pairs.
    """

    kind: ClassVar[str] = "dual_encoder"

    vocabulary: str
    model: ModelConfig
    hard_pairs: HardPairs | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        labelled = [n for n, d in self.input.datasets.items() if d.label_feature]
        if labelled or not self.loss.contrasts:
            raise ValueError(
                f"input.datasets {labelled} have a label_feature and loss.kind is"
                f" {self.loss.kind!r}; pretraining wants texts and compares pairs"
            )
        if self.loss.wants_bias != (self.model.logit_bias_init is not None):
            raise ValueError(
                f"loss.kind is {self.loss.kind!r} and model.logit_bias_init is"
                f" {self.model.logit_bias_init}; the sigmoid loss wants a bias, the"
                " softmax none"
            )
        if self.loss.distils and not self.input.teacher_width:
            raise ValueError(
                f"loss.distillation is {self.loss.distillation} and"
                " input.teacher_width 0; wanted the embeddings of a teacher"
            )
        if self.loss.widths and self.loss.widths[0] != self.model.width:
            raise ValueError(
                f"loss.widths is {self.loss.widths}, but embeddings have"
                f" {self.model.width} numbers; wanted these first"
            )
        for name, fields in self.evaluators.items():
            width = fields.get("width")
            if isinstance(width, int) and width > self.model.width:
                raise ValueError(
                    f"evaluators.{name}.width is {width}, but embeddings have"
                    f" {self.model.width} numbers; wanted at most these"
                )
        if self.model.temperature_init < self.loss.temperature_floor:
            raise ValueError(
                f"model.temperature_init is {self.model.temperature_init}, below"
                f" loss.temperature_floor, {self.loss.temperature_floor}"
            )
        if choice := self._choice:
            choice.check_reference(self.input.teacher_width, self.loss.wants_bias)
            if self.loss.negatives != 1.0:
                raise ValueError(
                    f"loss.negatives is {self.loss.negatives} and hard_pairs chooses"
                    " pairs as negatives of each other; wanted 1.0"
                )

    @property
    def _choice(self) -> HardPairs | None:
        """The choice of hard pairs; None if all pairs are trained on."""
        choice = self.hard_pairs
        return choice if choice and choice.batches > 1 else None

    @property
    def batch_phases(self) -> tuple[Phase, ...]:
        """The phases in order, with the super-batches that hard pairs are of."""
        batches = self._choice.batches if self._choice else 1
        phases = super().batch_phases
        return tuple(dataclasses.replace(phase, batches=batches) for phase in phases)

    def _plan(self, mesh: Mesh, phase: Phase) -> StepPlan:
        plan = super()._plan(mesh, phase)
        return dataclasses.replace(plan, hard_pairs=self._choice)

    @classmethod
    def read_model(cls, fields: Mapping[str, Any], where: str) -> ModelFields:
        """Reads the part of a run's literal config that its weights need."""
        found = super().read_model(fields, where)
        return dataclasses.replace(
            found, vocabulary=read_part(str, fields, "vocabulary", where)
        )

    @property
    def text_length(self) -> int:
        """Length of the longest token sequences."""
        return self.model.text_tower.max_tokens

    def make_tokenizer(self) -> Tokenizer:
        """Reads the vocabulary.

        Raises:
          InputError: the file is missing or wrong, see `open_tokenizer`, or its ids
            are not those of `model.text_tower`, see `check_tokenizer`.
        """
        tokenizer = open_tokenizer(self.vocabulary, self.text_length)
        tower, where = self.model.text_tower, "config.model.text_tower"
        check_tokenizer(tokenizer, tower, self.vocabulary, where)
        return tokenizer
