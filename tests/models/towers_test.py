import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from align_jax.config import read_config, stored_fields
from align_jax.devices.mesh import Placement
from align_jax.embed.model import load
from align_jax.errors import InputError
from align_jax.input.preprocess import PreprocessConfig
from align_jax.input.wordpiece import WordPiece
from align_jax.models.bert import BertConfig
from align_jax.models.dual_encoder import ModelConfig
from align_jax.models.efficientnet import EfficientNetConfig, expand_stages
from align_jax.models.parameters import (
    FIRST_INPUTS,
    TOWER_INPUTS,
    flatten,
    tower_shapes,
    variable_shapes,
)
from align_jax.models.towers import (
    DEFAULT_KINDS,
    IMAGE_TOWERS,
    TEXT_TOWERS,
    TOWERS,
    build_tower,
    execution_fields,
    undecayed_parameters,
)
from align_jax.models.transformer import TransformerConfig
from align_jax.models.vit import VitConfig
from align_jax.plan import plan as print_plan
from align_jax.train import train
from align_jax.training.flops import count_flops, count_model_flops
from align_jax.training.train_state import create_state
from align_jax.training.training_runs import read_run_config
from align_jax.weights.folder import Weights, digest, read_weights, write_weights
from align_jax.weights.initialize import read_initial
from tests import tiny

EVERY = [(name, kind) for name, towers in TOWERS.items() for kind in towers]


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    """A linear layer on the mean colour of a picture, or on the mean word of a text."""

    kind: str
    channels: int = 4
    again: bool = False
    vocabulary_size: int = 16
    max_tokens: int = 6
    pad_token: int = 0
    end_token: int | None = None

    execution_fields: ClassVar[tuple[str, ...]] = ("again",)
    form_fields: ClassVar[tuple[str, ...]] = ()
    module_options: ClassVar[tuple[str, ...]] = ()
    block_prefix: ClassVar[str] = ""
    undecayed: ClassVar[tuple[str, ...]] = ("layer/bias",)
    optional_modules: ClassVar[tuple[str, ...]] = ()
    memory_choices: ClassVar[Mapping[str, tuple]] = {"again": (False, True)}
    freezing_field: ClassVar[str] = ""
    kernels: ClassVar[str] = "plain"

    @property
    def output_width(self):
        return self.channels

    def computed_once(self):
        return dataclasses.replace(self, again=False)

    @classmethod
    def smallest(cls):
        return cls("toy")


class Toy(nn.Module):
    config: ToyConfig
    dtype: jnp.dtype
    placement: Placement | None

    @nn.compact
    def __call__(self, inputs, core_ids, train):
        if inputs.ndim == 4:
            features = inputs.mean((1, 2))  # (B, 3)
        else:
            words = nn.Embed(self.config.vocabulary_size, 3, name="words")(inputs)
            features = words.mean(1)
        return nn.Dense(self.config.channels, name="layer")(features)


@pytest.fixture
def toys(monkeypatch):
    """Adds the toy to both dicts, with one line per tower."""
    monkeypatch.setitem(IMAGE_TOWERS, "toy", (ToyConfig, Toy))
    monkeypatch.setitem(TEXT_TOWERS, "toy", (ToyConfig, Toy))


TOY_MODEL = {
    "image_tower": {"kind": "toy", "channels": 5},
    "text_tower": {"kind": "toy", "channels": 7},
}


def test_a_new_tower_s_weights_come_back(toys, tmp_path, mesh_of, mixed_types):
    fields = tiny.make_run(tmp_path, model=TOY_MODEL)
    config = read_run_config(fields)
    plan = config.make_plan(mesh_of(1))
    state = create_state(plan)
    flops = count_model_flops(plan, config.batch_shapes(plan.mesh))
    assert flops["image_tower"] == 2 * 2 * 3 * 5 * config.batch_size  # and its kernel's

    weights = Weights(
        "dual_encoder",
        config.model,
        jax.tree.map(np.asarray, flatten(state.variables)),
        PreprocessConfig(resize=18, image_size=16),
        tiny.make_tokenizer(config.model),
    )
    write_weights(weights, str(tmp_path / "model"))
    found = read_weights(str(tmp_path / "model"))
    assert found.config == config.model
    assert digest(found) == digest(weights)
    model = load(str(tmp_path / "model"))
    assert model.encode_texts(["red"]).shape == (1, model.width) == (1, 5)
    assert model.encode_images([tiny.draw("red left", 0)]).shape == (1, 5)

    again = {**fields, "initialize": {"image_tower": str(tmp_path / "model")}}
    arrays = read_initial(read_run_config(again), None)
    assert {path[1:] for path in arrays} == {
        ("image_tower", "layer", "kernel"),
        ("image_tower", "layer", "bias"),
    }


def test_the_plan_compares_a_new_tower_s_choices(toys, tmp_path, capsys, mixed_types):
    fields = tiny.make_run(tmp_path, model=TOY_MODEL)
    assert print_plan(fields, "here", alternatives=True)
    printed = capsys.readouterr().out
    assert "microbatches=1, fsdp=1, again=False\n" in printed
    assert "\nmodel.image_tower.again=True: " in printed


def test_what_a_tower_answers_is_asked_of_it(toys):
    model = ModelConfig(ToyConfig("toy"), EfficientNetConfig())
    names = ("^image_tower/layer/bias", "^text_tower/.*_norm/")
    assert undecayed_parameters(model.towers) == names
    assert execution_fields(TOY_MODEL) == ["image_tower.again", "text_tower.again"]
    assert execution_fields({"text_tower": {}}) == [
        "text_tower.scan",
        "text_tower.rematerialise",
    ]
    assert execution_fields({"text_tower": {"kind": "of another version"}}) == []


@pytest.mark.parametrize(
    ("config", "module", "message"),
    [
        (
            dataclasses.make_dataclass("Bare", [("kind", str)]),
            Toy,
            r"class Bare of IMAGE_TOWERS\['toy'\] lacks the attribute execution_fie",
        ),
        (
            ToyConfig,
            type("Deaf", (nn.Module,), {"__annotations__": Toy.__annotations__}),
            r"class Deaf of IMAGE_TOWERS\['toy'\] lacks the method __call__",
        ),
        (
            ToyConfig,
            type("Whole", (nn.Module,), {"__call__": Toy.__call__}),
            r"class Whole .* lacks the attribute config; .* attribute placement",
        ),
    ],
)
def test_a_tower_that_breaks_the_contract_fails_when_it_is_chosen(
    config, module, message, monkeypatch, tmp_path
):
    monkeypatch.setitem(IMAGE_TOWERS, "toy", (config, module))
    fields = tiny.make_run(tmp_path)
    fields["model"]["image_tower"] = {"kind": "toy"}
    with pytest.raises(TypeError, match=message):
        read_run_config(fields)


def test_an_unknown_kind_is_refused_with_the_known_ones(tmp_path):
    fields = tiny.make_run(tmp_path)
    fields["model"]["text_tower"]["kind"] = "brt"
    message = (
        r"config.model.text_tower.kind is 'brt'; did you mean 'bert'\? known: bert"
    )
    with pytest.raises(InputError, match=message):
        read_run_config(fields)
    fields["model"]["text_tower"] = "bert"
    with pytest.raises(InputError, match="text_tower is 'bert'; wanted a sub-dict of"):
        read_run_config(fields)


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_every_tower_s_answers_are_true_of_it(name, kind):
    config_class, _ = TOWERS[name][kind]
    config = config_class.smallest()
    fields = {field.name for field in dataclasses.fields(config)}
    assert config.kind == kind
    assert fields >= {"kind", *config.execution_fields}
    assert all(hasattr(config, name) for name in config.form_fields)
    assert stored_fields(config).get("kind", DEFAULT_KINDS[name]) == kind
    tower = build_tower(name, config, jnp.float32)
    inputs = FIRST_INPUTS[TOWER_INPUTS[name]]
    out = jax.eval_shape(
        lambda key: tower.init_with_output(key, inputs, None, False)[0],
        jax.random.key(0),
    )
    assert (out.shape, out.dtype) == ((1, config.output_width), jnp.float32)
    shapes = tower_shapes(name, config)
    assert shapes == tower_shapes(name, config.computed_once())
    assert all(path[1] == name for path in shapes)
    below = ["/".join(path[2:]) for path in shapes if path[0] == "params"]
    assert any(path.startswith(config.block_prefix) for path in below)
    for pattern in config.undecayed:
        assert any(re.match(pattern, path) for path in below), pattern


INPUTS = {
    "image_tower": [(4, 64, 64, 3), (4, 72, 80, 3)],
    "text_tower": [(4, 6), (4, 3)],
}


def build_smallest(name, kind, dtype=jnp.float32):
    """Returns the smallest tower of a kind and the shapes of its variables."""
    config_class, _ = TOWERS[name][kind]
    tower = build_tower(name, config_class.smallest(), dtype, batch_norm_group=2)
    inputs = FIRST_INPUTS[TOWER_INPUTS[name]]
    shapes = jax.eval_shape(partial(tower.init, train=False), KEY, inputs, None)
    return tower, shapes


KEY = jax.eval_shape(lambda: jax.random.key(0))


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_every_tower_takes_the_sizes_of_a_runs_phases(name, kind, mixed_types):
    tower, variables = build_smallest(name, kind, jnp.bfloat16)
    for shape in INPUTS[name]:
        inputs = jnp.zeros(shape, jnp.float32 if len(shape) == 4 else jnp.int32)

        def train(variables, inputs):
            keys = {"dropout": jax.random.key(0)}
            return tower.apply(
                variables, inputs, jnp.arange(2), True, rngs=keys, mutable=True
            )

        out, changed = jax.eval_shape(train, variables, inputs)
        assert out.shape == (4, tower.config.output_width)
        leaves = jax.tree.leaves((out, changed))
        assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


TRANSFORMERS = {
    "image_tower": dataclasses.asdict(VitConfig.smallest()),
    "text_tower": dataclasses.asdict(TransformerConfig.smallest()),
    "projection_bias": False,
    "pixel_mean": (0.4, 0.5, 0.6),
}


PHASES = ((0, {}), (1, {"image_size": 24, "max_tokens": 4}))


@pytest.mark.pods
@pytest.mark.parametrize(("kind", "phases"), [("lamb", ()), ("muon", PHASES)])
def test_a_run_trains_transformers(tmp_path, mixed_types, kind, phases):
    fields = tiny.make_run(
        tmp_path, model=TRANSFORMERS, total_steps=2, phases=phases, evaluators={}
    )
    fields["optimizer"]["kind"] = kind
    run = str(tmp_path / "run")
    train(fields, run)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    for name in TOWERS:
        assert results[f"train/{name}/update_norm"] > 0
    model = load(run)
    assert model.encode_images([tiny.draw("red left", 0)]).shape == (1, 16)
    assert model.encode_texts(["red left", "blue"]).shape == (2, 16)


def test_what_is_undecayed_are_gains_biases_tokens_and_positions():
    model = read_config(ModelConfig, TRANSFORMERS)
    clip = dataclasses.replace(model.image_tower, pooling="cls")
    patterns = undecayed_parameters(model.towers)
    names = {
        "/".join(path[1:])
        for tower in (model.image_tower, clip)
        for path in variable_shapes(dataclasses.replace(model, image_tower=tower))
    }
    decayed = {n for n in names if not any(re.search(p, n) for p in patterns)}
    others = {"temperature", "text_tower/word_embeddings/embedding"}
    assert decayed - others == {n for n in names if n.endswith("/kernel")}
    assert others < decayed


def test_the_page_s_model_is_read_and_its_operations_are_counted():
    page = (pathlib.Path(__file__).parents[2] / "docs" / "towers.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    config = ConfigDict({"model": {}})
    exec(block, {"config": config})
    model = read_config(ModelConfig, config.model.to_dict())
    assert model.width == 512
    counts = []
    for share in (0.0, 0.5):
        vit = dataclasses.replace(model.image_tower, patch_dropout=share, scan=True)
        tower = build_tower("image_tower", vit, jnp.float32)
        images = jnp.zeros((1, 224, 224, 3))
        variables = jax.eval_shape(partial(tower.init, train=False), KEY, images, None)

        def train(variables, images, tower=tower):
            keys = {"dropout": jax.random.key(0)}
            return tower.apply(variables, images, jnp.arange(1), True, rngs=keys)

        counts.append(count_flops(train, variables, images))
    assert counts[1] / counts[0] == pytest.approx(0.5, abs=0.05)


def test_the_smallest_efficientnet_has_all_that_larger_ones_have():
    config = EfficientNetConfig.smallest()
    first, *rest = expand_stages(config)
    second, repeated = rest[0]
    assert len(first) == len(rest) == 1
    assert config.drop_rate > 0
    assert (first[0].expansion, first[0].stride) == (1, 2)
    assert (second.expansion, second.stride, second.kernel) == (6, 2, 5)
    assert repeated.residual
    assert repeated.stride == 1
    names = {path[2:] for path in tower_shapes("image_tower", EfficientNetConfig())}
    small = {path[2:] for path in tower_shapes("image_tower", config)}
    assert small < names
    assert {path[1:] for path in small} == {path[1:] for path in names}
    with pytest.raises(InputError, match=r"stages\[0\]\[2\] is 0; wanted 1 or more"):
        read_config(EfficientNetConfig, {"stages": ((1, 3, 0, 1, 8),)})
    with pytest.raises(InputError, match=r"is \(1, 3, 1\); wanted 5 values, not 3"):
        read_config(EfficientNetConfig, {"stages": ((1, 3, 1),)})


def test_files_of_earlier_versions_fit():
    """Earlier files describe a model as today's do, apart from added fields."""
    model = ModelConfig(EfficientNetConfig(0.25, 0.3), BertConfig(16, 6, 6, 1, 64))
    assert stored_fields(model)["text_tower"] == {
        "vocabulary_size": 16,
        "max_tokens": 6,
        "positions": 6,
        "layers": 1,
        "hidden": 64,
        "dropout": 0.1,
        "init_std": 0.02,
        "rematerialise": False,
        "scan": False,
    }
    assert {*stored_fields(model)["image_tower"]}.isdisjoint({"kind", "stages"})
    weights = Weights(
        "dual_encoder",
        model,
        {("params", "temperature"): np.ones((), np.float32)},
        PreprocessConfig(resize=18, image_size=16),
        WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]"], 6),
    )
    assert digest(weights) == "2c5c12d90c5589af61d7530e53734fdb"
    smallest = dataclasses.replace(model, image_tower=EfficientNetConfig.smallest())
    assert "stages" in stored_fields(smallest)["image_tower"]
    assert digest(dataclasses.replace(weights, config=smallest)) != digest(weights)
