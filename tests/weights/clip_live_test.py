"""Comparison with transformers' CLIP and SigLIP, which `make test-convert` runs."""

import json
import pathlib

import numpy as np
import pytest

from align_jax.weights.clip_folder import write_clip
from align_jax.weights.source import open_weights
from tests.golden import clip_arrays
from tests.weights import outputs
from tests.weights.clip_folders import MODELS, assert_same, tensors_of, write_folder

pytestmark = pytest.mark.convert


def compute(model, name):
    """Returns image and text embeddings and logits as transformers computes them."""
    import torch

    from tests.golden import make_clip

    with torch.no_grad():
        out = model(**make_clip.model_inputs(name))
    return tuple(
        array.numpy()
        for array in (out.image_embeds, out.text_embeds, out.logits_per_image)
    )


@pytest.mark.parametrize("name", MODELS)
def test_both_compute_the_same_and_exchange_folders(name, tmp_path):
    import transformers

    from tests.golden import make_clip

    kind = MODELS[name]["config"]["model_type"]
    source = pathlib.Path(write_folder(tmp_path / name, name))
    theirs = make_clip.make_model(name)
    theirs.save_pretrained(source)
    expected = compute(theirs, name)
    for found, key in zip(expected, ("image", "text", "logits"), strict=True):
        np.testing.assert_allclose(found, MODELS[name][key], atol=1e-5)

    weights = open_weights(str(source))
    ids = make_clip.model_inputs(name)["input_ids"].numpy().astype(np.int32)
    pixels = clip_arrays.pixels(MODELS[name]["size"])
    outputs.assert_close(outputs.compute(weights, pixels, ids), expected)

    back = tmp_path / "back"
    write_clip(weights, str(back), kind=kind)
    assert_same(tensors_of(source), tensors_of(back))
    loader = getattr(transformers, type(theirs).__name__)
    again, report = loader.from_pretrained(back, output_loading_info=True)
    assert not any(report.values()), report
    for found, wanted in zip(compute(again.eval(), name), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("name", "suffix"), [("clip_small", "Pil"), ("siglip_small", "Pil")]
)
def test_pictures_are_processed_as_by_transformers(name, suffix, tmp_path):
    """The exported processor and ours give the same pixels, within a level."""
    import importlib

    from PIL import Image

    from align_jax.input.preprocess import evaluation_image

    weights = open_weights(write_folder(tmp_path / name, name))
    write_clip(weights, str(tmp_path / "back"))
    path = tmp_path / "back/preprocessor_config.json"
    described = json.loads(path.read_text())
    family = name.split("_")[0]
    module = importlib.import_module(
        f"transformers.models.{family}.image_processing_pil_{family}"
    )
    kind = described["image_processor_type"] + suffix
    processor = getattr(module, kind).from_pretrained(tmp_path / "back")
    draw = np.random.default_rng(0)
    for shape in ((60, 91), (41, 40), (200, 50)):
        small = draw.integers(0, 256, (7, 9, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize(shape, Image.Resampling.BICUBIC)
        found = processor(picture, return_tensors="np")["pixel_values"][0]
        mean, std = weights.config.pixel_mean, weights.config.pixel_std
        levels = (found.transpose(1, 2, 0) * std + mean) * 255
        ours = evaluation_image(np.asarray(picture), weights.preprocess)
        assert np.abs(levels - ours).max() < 1.01
        assert np.abs(levels - ours).mean() < 0.25  # Pillow may swap its passes


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision_in_parts_is_read(kind, tmp_path):
    import torch

    from tests.golden import make_clip

    folder = pathlib.Path(write_folder(tmp_path / "clip", "clip_small"))
    (folder / "model.safetensors").unlink()
    model = make_clip.make_model("clip_small").to(getattr(torch, kind))
    model.save_pretrained(folder, max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").exists()
    weights = open_weights(str(folder))
    for array in weights.variables.values():
        assert array.dtype == np.float32
    table = weights.variables["params", "text_tower", "word_embeddings", "embedding"]
    first = clip_arrays.weight("text_model.embeddings.token_embedding.weight", (40, 32))
    np.testing.assert_allclose(table, first, rtol=1e-2)
