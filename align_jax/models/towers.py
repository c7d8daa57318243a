"""Towers that a config can choose, and the contract that each of them keeps.

A tower is a config class and a Flax module. The field `kind` of the tower's sub-dict is
a key of `IMAGE_TOWERS` or `TEXT_TOWERS`. A new tower is one file and one line in one of
these dicts: no other file but the converters in weights/ knows its fields, parameters
or blocks.
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
from align_jax.models.convnext import ConvNeXt, ConvNeXtConfig
from align_jax.models.efficientnet import EfficientNet, EfficientNetConfig
from align_jax.models.efficientnet_v2 import EfficientNetV2Config
from align_jax.models.transformer import Transformer, TransformerConfig
from align_jax.models.vit import Vit, VitConfig

ConfigT = TypeVar("ConfigT", bound="TowerConfig")


class TowerConfig(Dataclass, Protocol):
    """Contract of a tower's config class.

    The class is a frozen dataclass whose fields are those of the tower's sub-dict.

    Attributes:
      execution_fields: fields that change how the tower is computed but not its result.
      form_fields: fields, or properties, that change the tower's result but not the
        shapes of parameters. A tower starts only from weights with the same values.
      module_options: fields of the module beyond those of `Tower`, each a parameter of
        `build_tower`: "batch_norm_group", "kernels".
      block_prefix: prefix of the names of submodules that gather their parameters
        themselves, see `layers.gathered`; "" if there are none.
      undecayed: regular expressions of the parameters without weight decay and without
        LAMB's trust ratio; each matches the beginning of a path below the tower, such
        as "stem_norm/scale".
      optional_modules: submodules, and parameters outside of them, that only some
        towers of this class have. If a tower lacks one of them, it ignores its values
        in weights that it loads.
    """

    execution_fields: ClassVar[tuple[str, ...]]
    form_fields: ClassVar[tuple[str, ...]]
    module_options: ClassVar[tuple[str, ...]]
    block_prefix: ClassVar[str]
    undecayed: ClassVar[tuple[str, ...]]
    optional_modules: ClassVar[tuple[str, ...]]

    @property
    def kind(self) -> str:
        """Key of this class in its dict; a field whose default is that key."""

    @property
    def output_width(self) -> int:
        """Width W of the tower's output."""

    @property
    def freezing_field(self) -> str:
        """Name of the field to set if all parameters are frozen.

        Without it, running statistics would still change. The name is "" if the field
        is set, or if a tower has no variables but parameters.
        """

    def computed_once(self) -> Self:
        """Returns the same tower with nothing computed twice, to count operations."""

    @classmethod
    def smallest(cls) -> Self:
        """Returns the smallest tower with all the parts of larger ones, for tests."""


class ImageTowerConfig(TowerConfig, Protocol):
    """Contract of an image tower's config class.

    Attributes:
      memory_choices: fields that trade time for memory, with the values that `--plan`
        compares.
    """

    memory_choices: ClassVar[Mapping[str, tuple]]

    @property
    def kernels(self) -> str:
        """Choice for `choose_kernels`; "plain" if the module takes no kernels."""


class TextTowerConfig(TowerConfig, Protocol):
    """Contract of a text tower's config class."""

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids."""

    @property
    def max_tokens(self) -> int:
        """Largest length L of token sequences, special tokens included.

        A run's phases may train on shorter ones.
        """

    @property
    def pad_token(self) -> int:
        """Id that fills a sequence after its text."""

    @property
    def end_token(self) -> int | None:
        """Id at whose place the tower takes its output; None if it looks for none."""


class Tower(Protocol):
    """A Flax module that encodes pictures or texts.

    Attributes:
      config: instance of the tower's config class.
      dtype: number type of the computation; parameters are float32.
      placement: sharding by which each block gathers its parameters; None if parameters
        are not sharded.
    """

    config: Any
    dtype: Any
    placement: Placement | None

    def __call__(
        self, inputs: jax.Array, core_ids: jax.Array | None, train: bool, /
    ) -> jax.Array:
        """Encodes a batch.

        Args:
          inputs: images (B, H, W, 3), float32, scaled by the model's `pixel_mean` and
            `pixel_std`, or token ids (B, L), int32, padded with `pad_token`.
          core_ids: (V,) global indices of the batch's virtual cores, by which random
            masks are drawn, see `models.layers`; None if not `train`.
          train: whether the result is trained on.

        Returns:
          (B, output_width) float32.
        """

    def init(self, rngs: jax.Array, *args: Any, **kwargs: Any) -> Any:
        """Creates the variables; Flax defines it."""


IMAGE_TOWERS: dict[str, tuple[type[ImageTowerConfig], type[Tower]]] = {
    "efficientnet": (EfficientNetConfig, EfficientNet),
    "efficientnet_v2": (EfficientNetV2Config, EfficientNet),
    "convnext": (ConvNeXtConfig, ConvNeXt),
    "vit": (VitConfig, Vit),
}
TEXT_TOWERS: dict[str, tuple[type[TextTowerConfig], type[Tower]]] = {
    "bert": (BertConfig, Bert),
    "transformer": (TransformerConfig, Transformer),
}

TOWERS: dict[str, Mapping[str, tuple[type[TowerConfig], type[Tower]]]] = {
    "image_tower": IMAGE_TOWERS,
    "text_tower": TEXT_TOWERS,
}
# Defaults of the field `kind`, which a sub-dict may leave out.
DEFAULT_KINDS = {"image_tower": "efficientnet", "text_tower": "bert"}


def read_image_tower(fields: Any, where: str) -> ImageTowerConfig:
    """Reads a sub-dict as the config class that its `kind` names; see `read_config`.

    Args:
      fields: the image tower's sub-dict; without `kind`, `DEFAULT_KINDS` decides.
      where: dotted path of the sub-dict, for messages.

    Raises:
      InputError: `fields` is no mapping, the kind is unknown, or a field is wrong.
      TypeError: the class or its module breaks its contract.
    """
    return _read(IMAGE_TOWERS, "image_tower", ImageTowerConfig, fields, where)


def read_text_tower(fields: Any, where: str) -> TextTowerConfig:
    """Reads a text tower's sub-dict in the same way as `read_image_tower`."""
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
    entry = f"{name.upper()}S[{kind!r}]"
    check_contract(config, contract, entry)
    check_contract(module, Tower, entry)
    return read_config(config, fields, where)


def build_tower(
    name: str,
    config: TowerConfig,
    dtype: Any,
    placement: Placement | None = None,
    batch_norm_group: int = 1,
    kernels: Kernels | None = None,
) -> Tower:
    """Builds the module of a tower.

    Args:
      name: a key of `TOWERS`.
      config: the tower's config.
      dtype: number type of the computation.
      placement: sharding of the parameters, see `Tower`.
      batch_norm_group: number of images that share BatchNorm statistics in training.
      kernels: choice between Pallas kernels and XLA; None for XLA.

    Raises:
      InputError: the config's `kind` is not in `TOWERS[name]`, or its `module_options`
        name an unknown option.
    """
    options = {"batch_norm_group": batch_norm_group, "kernels": kernels or Kernels()}
    _, module = choose(TOWERS[name], config.kind, f"model.{name}.kind")
    own = {
        option: choose(options, option, f"{type(config).__name__}.module_options")
        for option in config.module_options
    }
    make: Callable[..., Tower] = module  # a Protocol does not type the constructor
    return make(config=config, dtype=dtype, placement=placement, **own)


def undecayed_parameters(towers: Mapping[str, TowerConfig]) -> tuple[str, ...]:
    """Returns patterns of the parameters of a model that have no weight decay.

    They are regular expressions that match the beginning of a parameter's name, such as
    "^image_tower/.*_norm/".

    Args:
      towers: config of each tower by its name.
    """
    return tuple(
        f"^{name}/{pattern}"
        for name, config in towers.items()
        for pattern in config.undecayed
    )


def execution_fields(model: Mapping[str, Any]) -> list[str]:
    """Returns the dotted paths of config fields that do not change a model's result.

    `model` is the model's literal config; the paths start below it, as in
    "image_tower.scan". Towers that are absent or of an unknown kind have no paths.
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
