import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from align_jax.embed.model import Model
from align_jax.errors import InputError
from align_jax.models.bert import BertConfig
from align_jax.models.convnext import ConvNeXtConfig
from align_jax.models.dual_encoder import ModelConfig
from align_jax.models.efficientnet import EfficientNetConfig
from align_jax.models.efficientnet_v2 import EfficientNetV2Config
from align_jax.models.transformer import TransformerConfig
from align_jax.models.vit import VitConfig
from align_jax.weights import encoders
from align_jax.weights.folder import read_weights
from tests import tiny

COUNT = 100
SENTENCES = [" ".join(f"{c} {s}" for s in tiny.SHAPES) for c in tiny.COLOURS]


OTHER = ModelConfig(
    EfficientNetConfig(
        width=0.25,
        stages=((2, 3, 2, 6, 64), (2, 5, 1, 1, 320)),
        padding="keras",
        top_conv=True,
        scan=True,
    ),
    dataclasses.replace(BertConfig.smallest(), layers=2, scan=True),
    embedding_size=40,
    temperature_form="log",
)
TRANSFORMERS = ModelConfig(
    VitConfig.smallest(),
    TransformerConfig.smallest(),
    projection_bias=False,
    pixel_std=(0.2, 0.3, 0.4),
)
OTHER_TRANSFORMERS = ModelConfig(
    dataclasses.replace(
        VitConfig.smallest(), pooling="cls", positions="rope", activation="gelu_tanh"
    ),
    dataclasses.replace(
        TransformerConfig.smallest(),
        causal=False,
        pooling="mean",
        activation="quick_gelu",
    ),
)
CLIP = ModelConfig(
    VitConfig(
        patch=8,
        width=32,
        layers=2,
        heads=2,
        mlp_width=48,
        position_grid=4,
        pre_norm=True,
        patch_bias=False,
        activation="quick_gelu",
        norm_epsilon=1e-5,
    ),
    dataclasses.replace(
        TransformerConfig.smallest(), layers=2, activation="quick_gelu"
    ),
    embedding_size=20,
    temperature_form="log",
    projection_bias=False,
    pixel_mean=(0.48, 0.46, 0.41),
    pixel_std=(0.27, 0.26, 0.28),
)
SIGLIP = ModelConfig(
    dataclasses.replace(
        CLIP.image_tower,
        pooling="attention",
        pre_norm=False,
        patch_bias=True,
        activation="gelu_tanh",
        norm_epsilon=1e-6,
    ),
    dataclasses.replace(
        TransformerConfig.smallest(),
        causal=False,
        pooling="last",
        mask_padding=False,
        activation="gelu_tanh",
        norm_epsilon=1e-6,
    ),
    temperature_form="log",
    logit_bias_init=-10.0,
)
CONVNEXT = ModelConfig(
    dataclasses.replace(ConvNeXtConfig.smallest(), layer_scale=0.5),
    TransformerConfig.smallest(),
    embedding_size=20,
)
V2 = ModelConfig(EfficientNetV2Config.smallest(), TransformerConfig.smallest())
FAMILIES = {"clip": CLIP, "siglip": SIGLIP, "convnext": CONVNEXT, "v2": V2}
OTHERS = {
    "tiny": None,
    "other": OTHER,
    "transformers": TRANSFORMERS,
    "other_transformers": OTHER_TRANSFORMERS,
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return read_weights(tiny.write_model(tmp_path_factory.mktemp("model") / "tiny"))


def with_random_numbers(weights):
    """Returns the weights with random biases, scales, positions and statistics."""
    random, arrays = np.random.default_rng(1), {}
    for path, array in weights.variables.items():
        noise = random.uniform(-0.3, 0.3, array.shape).astype(np.float32)
        arrays[path] = array if path[-1] in ("kernel", "embedding") else array + noise
    return dataclasses.replace(weights, variables=arrays)


def open_model(folder, name):
    """Writes and reads a model of `OTHERS` or `FAMILIES`, with pictures of its size."""
    config = (OTHERS | FAMILIES)[name]
    side = 16 if config is None else 32 if name in FAMILIES else 33
    source = tiny.write_model(folder / "model", config=config, image_size=side)
    weights = read_weights(source)
    return with_random_numbers(weights) if name in FAMILIES else weights


def make_inputs(weights):
    """Makes pictures and tokens, some of them padded."""
    random = np.random.default_rng(0)
    side, length = weights.preprocess.image_size, weights.config.text_tower.max_tokens
    images = random.integers(0, 256, (COUNT, side, side, 3), np.uint8)
    tokens = random.integers(4, weights.tokenizer.size, (COUNT, length), np.int32)
    tokens[np.arange(length) >= random.integers(1, length + 1, COUNT)[:, None]] = 0
    return {"images": images, "tokens": tokens}


def embed(weights, inputs):
    """Embeds pictures and tokens by the model itself."""
    embedder = Model(weights).embedder
    model, variables = weights.config.build(), embedder._variables
    return {
        name: jax.jit(
            lambda array, method=method: model.apply(variables, array, method=method)
        )(inputs[name])
        for name, method in (("images", "encode_images"), ("tokens", "encode_texts"))
    }


@pytest.mark.parametrize(
    "model",
    [
        "tiny",
        "transformers",
        *(pytest.param(name, marks=pytest.mark.onnx) for name in FAMILIES),
    ],
)
def test_stablehlo_gives_our_embeddings_for_any_batch(tmp_path, model):
    weights = open_model(tmp_path, model)
    folder = tmp_path / "stablehlo"
    encoders.write_stablehlo(weights, str(folder))
    described = json.loads((folder / "encoders.json").read_text())
    variables = safetensors.numpy.load_file(folder / "weights.safetensors")
    inputs = make_inputs(weights)
    expected = embed(weights, inputs)
    for name, like in described["inputs"].items():
        file = folder / f"{like['file']}.jax"
        program = jax.export.deserialize(bytearray(file.read_bytes()))
        assert set(program.platforms) == {"cpu", "cuda", "rocm", "tpu"}
        assert "stablehlo" in program.mlir_module()
        array = inputs[name]
        assert like["shape"] == ["B", *array.shape[1:]]
        assert like["type"] == array.dtype.name
        for count in (3, COUNT):
            found = program.call(variables, array[:count])
            np.testing.assert_allclose(found, expected[name][:count], atol=1e-5)


@pytest.mark.onnx
@pytest.mark.parametrize("model", OTHERS | FAMILIES)
def test_onnx_gives_our_embeddings_for_any_batch(tmp_path, model):
    import onnx
    import onnxruntime

    weights = open_model(tmp_path, model)
    folder = tmp_path / "onnx"
    encoders.write_onnx(weights, str(folder))
    described = json.loads((folder / "encoders.json").read_text())
    inputs = make_inputs(weights)
    expected = embed(weights, inputs)
    for name, like in described["inputs"].items():
        path = folder / f"{like['file']}.onnx"
        stored = onnx.load(path)
        assert [(o.domain, o.version) for o in stored.opset_import] == [("", 18)]
        (text,) = (p.value for p in stored.metadata_props if p.key == "align_jax")
        assert json.loads(text) == described
        session = onnxruntime.InferenceSession(path)
        (given,) = session.get_inputs()
        assert (given.name, given.shape) == (name, like["shape"])
        for count in (3, COUNT):
            (found,) = session.run(["embeddings"], {name: inputs[name][:count]})
            error = np.abs(found - expected[name][:count]).max()
            assert error < 1e-5
    assert np.std(expected["images"], 0).max() > 1e-3
    assert np.std(expected["tokens"], 0).max() > 1e-3


@pytest.mark.onnx
def test_a_large_encoder_has_its_weights_beside_it(weights, tmp_path, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(encoders, "LARGEST_FILE", 1000)
    folder = tmp_path / "onnx"
    encoders.write_onnx(weights, str(folder))
    assert {path.name for path in folder.iterdir()} == {
        "encoders.json",
        "image_encoder.onnx",
        "image_encoder.onnx.data",
        "text_encoder.onnx",
        "text_encoder.onnx.data",
        "tokenizer.json",
    }
    inputs = make_inputs(weights)
    session = onnxruntime.InferenceSession(folder / "image_encoder.onnx")
    (found,) = session.run(None, {"images": inputs["images"]})
    expected = embed(weights, inputs)["images"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.onnx
def test_an_operation_that_onnx_export_lacks_is_named():
    from align_jax.weights.onnx_translation import translate

    like = jax.ShapeDtypeStruct((3,), np.float32)
    lacking = {
        "sort": jnp.sort,
        "scan": lambda x: jax.lax.scan(lambda c, _: (c * 2, None), x, length=3)[0],
        "dim_as_value": lambda x: x * x.shape[0],
    }
    for name, function in lacking.items():
        with pytest.raises(InputError, match=f"the model has '{name}', an operation"):
            translate(function, like, name="x", output="y", metadata={})


# Operations that no tower here has, and a tower of a user may have, for x (B, 4).
FURTHER = {
    "abs": jnp.abs,
    "copy": jnp.copy,
    "eq": lambda x: jnp.where(jnp.maximum(x, 0.5) == x, x, -x),
    "ge": lambda x: jnp.where(x >= 0.5, x, -x),
    "gt": lambda x: jnp.where(x > 0.5, x, -x),
    "integer_pow": lambda x: x**3,
    "le": lambda x: jnp.where(x <= 0.5, x, -x),
    "log": jnp.log,
    "min": lambda x: jnp.minimum(x, 0.5),
    "neg": jnp.negative,
    "not": lambda x: jnp.where(~(x < 0.5), x, -x),
    "or": lambda x: jnp.where((x < 0.2) | (x > 0.6), x, -x),
    "pad": lambda x: jnp.pad(x, ((0, 0), (1, 2)), constant_values=3),
    "pow": lambda x: x**1.5,
    "reduce_min": lambda x: x.min(1),
    "slice": lambda x: jax.lax.slice_in_dim(x, 1, 4, 2, 1),
    "sqrt": jnp.sqrt,
    "squeeze": lambda x: jnp.squeeze(x[:, None], 1),
    "tanh": jnp.tanh,
}


@pytest.mark.onnx
@pytest.mark.parametrize("name", FURTHER)
def test_a_translated_operation_gives_what_jax_gives(name):
    import onnxruntime

    from align_jax.weights.onnx_translation import translate

    function = FURTHER[name]
    assert f" {name}" in str(jax.make_jaxpr(function)(np.ones((2, 4), np.float32)))
    like = jax.ShapeDtypeStruct((4,), np.float32)
    model = translate(function, like, name="x", output="y", metadata={})
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for count in (1, 3):
        array = np.random.default_rng(0).uniform(0.1, 1, (count, 4)).astype("f4")
        (found,) = session.run(["y"], {"x": array})
        np.testing.assert_allclose(found, function(array), rtol=1e-6)


@pytest.mark.onnx
def test_the_tokenizer_beside_an_encoder_gives_our_ids(weights, tmp_path):
    import tokenizers

    folder = tmp_path / "onnx"
    encoders.write_onnx(weights, str(folder))
    found = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    length = weights.config.text_tower.max_tokens
    found.enable_truncation(length)
    found.enable_padding(length=length, pad_id=0)
    ids = [encoding.ids for encoding in found.encode_batch(SENTENCES)]
    expected = Model(weights).embedder._tokenizer.encode(SENTENCES)
    np.testing.assert_array_equal(ids, expected)


@pytest.mark.parametrize(
    "write",
    [
        encoders.write_stablehlo,
        pytest.param(encoders.write_onnx, marks=pytest.mark.onnx),
    ],
)
def test_encoders_are_those_of_a_dual_encoder(weights, tmp_path, write):
    tower = type(weights)("text_tower", weights.config.text_tower, {})
    with pytest.raises(InputError, match="of a dual encoder, not a text_tower"):
        write(tower, str(tmp_path / "x"))
