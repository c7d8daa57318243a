"""The towers that a config can choose, and what each of them answers for itself.

A tower is a config class and a Flax module. The field `kind` of the tower's sub-dict is
a key of `IMAGE_TOWERS` or `TEXT_TOWERS`. A new tower is one file and one line in one of
these dicts: nothing outside of its file knows its fields, parameters or blocks.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, Self, TypeVar

import jax

from align_jax.config import Dataclass, choose, read_config
from align_jax.contracts import check_contract
from align_jax.devices.kernel_choice import Kernels
from align_jax.devices.mesh import Placement
from align_jax.errors import InputError
from align_jax.models.bert import Bert, BertConfig
from align_jax.models.efficientnet import EfficientNet, EfficientNetConfig

ConfigT = TypeVar("ConfigT", bound="TowerConfig")


class TowerConfig(Dataclass, Protocol):
    """Fields of a tower's sub-dict, and answers to what the rest of the code asks.

    It is a frozen dataclass. Each field is one of the sub-dict.

    Attributes:
      execution_fields: fields that change how the tower is computed and not its result.
      module_options: fields of the module beside those of `Tower`, each a parameter of
        `build_tower`: "batch_norm_group", "kernels".
      block_prefix: beginning of the names of the submodules that gather their own
        parameters, see `layers.gathered`; "" where there are none.
      undecayed: regular expressions of the parameters without weight decay and without
        LAMB's trust ratio; each fits the beginning of a path below the tower, such as
        "stem_norm/scale".
      optional_modules: submodules that other towers of this kind have. Where this one
        has none, weights for it may hold them, and they are left out.
    """

    execution_fields: ClassVar[tuple[str, ...]]
    module_options: ClassVar[tuple[str, ...]]
    block_prefix: ClassVar[str]
    undecayed: ClassVar[tuple[str, ...]]
    optional_modules: ClassVar[tuple[str, ...]]

    @property
    def kind(self) -> str:
        """Key of this class; a field whose default is that key."""

    @property
    def output_width(self) -> int:
        """Width W of what the tower returns."""

    @property
    def freezing_field(self) -> str:
        """Field to set where all parameters are frozen, since the rest would move.

        It is "" where it is set, or where a tower has parameters only.
        """

    def computed_once(self) -> Self:
        """The same tower with nothing computed twice, for counts of its arithmetic."""

    @classmethod
    def smallest(cls) -> Self:
        """The smallest tower in which all parts of larger ones occur, for tests."""


class ImageTowerConfig(TowerConfig, Protocol):
    """A tower of pictures.

    Attributes:
      memory_choices: fields that trade time for memory, with their values; `--plan`
        compares them.
    """

    memory_choices: ClassVar[Mapping[str, tuple]]

    @property
    def kernels(self) -> str:
        """What `choose_kernels` is asked for; "plain" if the module takes none."""


class TextTowerConfig(TowerConfig, Protocol):
    """A tower of texts."""

    @property
    def vocabulary_size(self) -> int:
        """Token ids are below it; id 0 is padding."""

    @property
    def max_tokens(self) -> int:
        """Length L of token sequences, [CLS] and [SEP] included."""


class Tower(Protocol):
    """A Flax module that encodes pictures or texts.

    Attributes:
      config: of the tower's class.
      dtype: compute type; parameters are float32.
      placement: gathers a block's parameters where they are used; None where they are
        whole.
    """

    config: Any
    dtype: Any
    placement: Placement | None

    def __call__(
        self, inputs: jax.Array, core_ids: jax.Array | None, train: bool, /
    ) -> jax.Array:
        """Encodes a batch.

        Args:
          inputs: images (B, H, W, 3), float32 in [-1, 1], or token ids (B, L), int32.
          core_ids: (V,) global index of the batch's virtual cores, by which random
            masks are drawn, see `models.layers`; None if not `train`.
          train: whether the result is trained on.

        Returns:
          (B, output_width) float32.
        """

    def init(self, rngs: jax.Array, *args: Any, **kwargs: Any) -> Any:
        """Flax's."""


IMAGE_TOWERS: dict[str, tuple[type[ImageTowerConfig], type[Tower]]] = {
    "efficientnet": (EfficientNetConfig, EfficientNet),
}
TEXT_TOWERS: dict[str, tuple[type[TextTowerConfig], type[Tower]]] = {
    "bert": (BertConfig, Bert),
}

TOWERS: dict[str, Mapping[str, tuple[type[TowerConfig], type[Tower]]]] = {
    "image_tower": IMAGE_TOWERS,
    "text_tower": TEXT_TOWERS,
}
# Kinds of sub-dicts that name none, as those of earlier versions.
DEFAULT_KINDS = {"image_tower": "efficientnet", "text_tower": "bert"}


def read_image_tower(fields: Any, where: str) -> ImageTowerConfig:
    """Reads a sub-dict of the class that its `kind` names; see `read_config`.

    Raises:
      InputError: an unknown kind, or fields that do not fit it.
      TypeError: the class or its module breaks its contract.
    """
    return _read(IMAGE_TOWERS, "image_tower", ImageTowerConfig, fields, where)


def read_text_tower(fields: Any, where: str) -> TextTowerConfig:
    """Reads a sub-dict as `read_image_tower` does."""
    return _read(TEXT_TOWERS, "text_tower", TextTowerConfig, fields, where)


def _read(
    towers: Mapping[str, tuple[type[ConfigT], type[Tower]]],
    name: str,
    contract: type,
    fields: Any,
    where: str,
) -> ConfigT:
    """Chooses a tower, checks its classes and reads its config."""
    if not isinstance(fields, Mapping):
        raise InputError(f"{where} is {fields!r}; wanted a sub-dict of fields")
    kind = fields.get("kind", DEFAULT_KINDS[name])
    config, module = choose(towers, kind, f"{where}.kind")
    place = f"{name.upper()}S[{kind!r}]"
    check_contract(config, contract, place)
    check_contract(module, Tower, place)
    return read_config(config, fields, where)


def build_tower(
    name: str,
    config: TowerConfig,
    dtype: Any,
    placement: Placement | None = None,
    batch_norm_group: int = 1,
    kernels: Kernels | None = None,
) -> Tower:
    """Makes the module of a tower.

    Args:
      name: a key of `TOWERS`.
      config: of the tower.
      dtype: compute type.
      placement: see `Tower`.
      batch_norm_group: images that share BatchNorm statistics in training.
      kernels: what computes the operations that have kernels of our own; None for
        plain XLA.
    """
    options = {"batch_norm_group": batch_norm_group, "kernels": kernels or Kernels()}
    _, module = choose(TOWERS[name], config.kind, f"model.{name}.kind")
    own = {
        option: choose(options, option, f"{type(config).__name__}.module_options")
        for option in config.module_options
    }
    make: Callable[..., Tower] = module  # a Protocol says nothing of the constructor
    return make(config=config, dtype=dtype, placement=placement, **own)


def undecayed_parameters(towers: Mapping[str, TowerConfig]) -> tuple[str, ...]:
    """Patterns of a model's parameters without decay, by what its towers say."""
    return tuple(
        f"^{name}/{pattern}"
        for name, config in towers.items()
        for pattern in config.undecayed
    )


def execution_fields(model: Mapping[str, Any]) -> list[str]:
    """Dotted paths of fields of a model's literal config that keep its result.

    Unknown kinds and models without a tower have none.
    """
    paths = []
    for name, towers in TOWERS.items():
        fields = model.get(name)
        if isinstance(fields, Mapping):
            kind = fields.get("kind", DEFAULT_KINDS[name])
            config, _ = towers.get(kind, (None, None))
            own = config.execution_fields if config else ()
            paths += [f"{name}.{field}" for field in own]
    return paths
