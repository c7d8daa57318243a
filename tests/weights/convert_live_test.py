"""Comparison with Hugging Face's code, which `make test-convert` installs and runs."""

import pathlib

import numpy as np
import pytest

from align_jax.embed.model import Model
from align_jax.errors import InputError
from align_jax.weights.huggingface_folder import write_align
from align_jax.weights.huggingface_vocabulary import read_uncased
from align_jax.weights.source import open_weights
from align_jax.weights.tensor_files import read_tensors
from tests.golden import align_arrays
from tests.weights import outputs
from tests.weights.convert_test import IMAGE_PROCESSOR, tensors_of

pytestmark = pytest.mark.convert

SMALL_TEXT = {
    "vocab_size": 12,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "intermediate_size": 256,
}
MODELS = {
    "published": (289, 640, {}, {}),
    "odd": (97, 80, SMALL_TEXT, {"width_coefficient": 0.25, "depth_coefficient": 0.5}),
    "even": (
        64,
        112,
        SMALL_TEXT,
        {"width_coefficient": 0.35, "depth_coefficient": 1.0},
    ),
    "wide": (75, 320, SMALL_TEXT, {"width_coefficient": 1.0, "depth_coefficient": 0.3}),
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcde", "##a", "##b"]


def make_model(size: int, width: int, text: dict, vision: dict):
    """Makes a new `AlignModel` with random instead of initial statistics."""
    import torch
    from transformers import AlignConfig, AlignModel

    torch.manual_seed(size)
    vision = vision | {"image_size": size}
    config = AlignConfig(text_config=text, vision_config=vision, projection_dim=width)
    model = AlignModel(config).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0.0, 0.2)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return model


def make_processor(folder: pathlib.Path, size: int):
    """Makes the published model's processor for another picture size."""
    from transformers import AlignProcessor, BertTokenizer
    from transformers.models.efficientnet import (
        image_processing_pil_efficientnet as pil,
    )

    (folder / "words.txt").write_text("".join(f"{word}\n" for word in WORDS))
    images = pil.EfficientNetImageProcessorPil(
        **IMAGE_PROCESSOR,
        resample=2,
        size={"height": size + 20, "width": size + 20},
        crop_size={"height": size, "width": size},
    )
    tokenizer = BertTokenizer(vocab=str(folder / "words.txt"), model_max_length=64)
    return AlignProcessor(images, tokenizer)


def compute(model, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns a model's embeddings of images and texts, and its logits."""
    import torch

    tokens = torch.tensor(align_arrays.TOKENS)
    images = align_arrays.pixels(size).transpose(0, 3, 1, 2).copy()
    with torch.no_grad():
        out = model(
            input_ids=tokens,
            attention_mask=(tokens != 0).long(),
            pixel_values=torch.tensor(images),
        )
    return tuple(
        x.numpy() for x in (out.image_embeds, out.text_embeds, out.logits_per_image)
    )


@pytest.mark.parametrize("name", MODELS)
def test_both_compute_the_same_and_exchange_folders(name, tmp_path):
    from transformers import AlignModel, AlignProcessor

    size, *fields = MODELS[name]
    theirs, folder = make_model(size, *fields), tmp_path / "theirs"
    theirs.save_pretrained(folder)
    make_processor(tmp_path, size).save_pretrained(folder)
    weights = open_weights(str(folder))
    expected = compute(theirs, size)
    pixels = align_arrays.pixels(size)
    found = outputs.compute(weights, pixels, align_arrays.TOKENS)
    outputs.assert_close(found, expected)

    back = tmp_path / "back"
    write_align(weights, str(back))
    again, report = AlignModel.from_pretrained(back, output_loading_info=True)
    assert not any(report.values()), report
    for found, wanted in zip(compute(again.eval(), size), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert tensors_of(back).keys() == tensors_of(folder).keys()
    texts = ["A b, ab!", "", "e" * 200]
    ours, before = (AlignProcessor.from_pretrained(d) for d in (back, folder))
    for found, wanted in zip(
        *(
            p.tokenizer(texts, padding="max_length", max_length=64)["input_ids"]
            for p in (ours, before)
        ),
        strict=True,
    ):
        assert found == wanted


def test_pictures_and_texts_end_to_end(tmp_path):
    import torch
    from PIL import Image

    size, *fields = MODELS["odd"]
    theirs = make_model(size, *fields)
    theirs.save_pretrained(tmp_path / "theirs")
    processor = make_processor(tmp_path, size)
    processor.save_pretrained(tmp_path / "theirs")
    draw = np.random.default_rng(0)
    noise = draw.integers(0, 256, (9, 7, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((200, 150), Image.Resampling.BICUBIC)
    texts = ["a b", "c, ab"]
    inputs = processor(images=picture, text=texts, return_tensors="pt")
    with torch.no_grad():
        out = theirs(**inputs)
    model = Model(open_weights(str(tmp_path / "theirs")))
    # Some pixels differ by one of 255 levels, so the embeddings are not equal.
    images = model.encode_images([picture])
    assert (images * out.image_embeds.numpy()).sum() > 0.9999
    np.testing.assert_allclose(
        model.encode_texts(texts), out.text_embeds.numpy(), atol=1e-5
    )


def test_pickled_weights_are_read(tmp_path):
    import torch

    size, *fields = MODELS["odd"]
    theirs, folder = make_model(size, *fields), tmp_path / "theirs"
    theirs.save_pretrained(folder)
    make_processor(tmp_path, size).save_pretrained(folder)
    expected = open_weights(str(folder))
    (folder / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
    found = open_weights(str(folder))
    assert found.variables.keys() == expected.variables.keys()
    for path, array in expected.variables.items():
        np.testing.assert_array_equal(found.variables[path], array)


def test_an_exported_processor_tokenizes_as_we_do(tmp_path):
    from transformers import AlignProcessor

    from align_jax.input.characters import replacements
    from align_jax.input.preprocess import PreprocessConfig
    from align_jax.input.wordpiece import WordPiece
    from align_jax.models.bert import BertConfig
    from align_jax.models.dual_encoder import ModelConfig
    from align_jax.models.efficientnet import EfficientNetConfig
    from align_jax.models.parameters import variable_shapes
    from align_jax.texts import NFKC_CASEFOLD
    from align_jax.weights.folder import Weights
    from tests.input.normalisation_test import CAPTIONS, make_vocabulary

    vocabulary = tuple(make_vocabulary())
    text_tower = BertConfig(len(vocabulary), max_tokens=96, layers=1, hidden=64)
    config = ModelConfig(EfficientNetConfig(width=0.1, depth=0.1), text_tower)
    shapes = variable_shapes(config)
    weights = Weights(
        "dual_encoder",
        config,
        {path: np.full(shape, 0.5, np.float32) for path, shape in shapes.items()},
        PreprocessConfig(resize=20, image_size=16),
        WordPiece(vocabulary, 96),
    )
    write_align(weights, str(tmp_path / "exported"))
    assert (
        open_weights(str(tmp_path / "exported")).tokenizer.normalisation
        == NFKC_CASEFOLD
    )
    replaced = replacements(NFKC_CASEFOLD)
    points = [*range(0xD800), *range(0xE000, 0x110000)]
    changed = [chr(p) for p in points if replaced[p].strip() != chr(p)]
    random = np.random.default_rng(0)
    mixed = ["a".join(random.choice(changed, 20)) for _ in range(500)]
    texts = [*CAPTIONS, *mixed]
    processor = AlignProcessor.from_pretrained(tmp_path / "exported")
    found = processor.tokenizer(
        texts, padding="max_length", max_length=96, truncation=True
    )["input_ids"]
    np.testing.assert_array_equal(found, WordPiece(vocabulary, 96)(texts).numpy())


class Touch:
    """An object whose unpickling makes a file."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pytorch_file_that_is_no_state_dict_is_refused(tmp_path, zipped):
    import torch

    zeros, path = torch.zeros(2), tmp_path / "pytorch_model.bin"
    contents = {
        r"no state dict of PyTorch \(UnpicklingError\)": {"a": Touch(tmp_path / "bad")},
        "no state dict of PyTorch": torch.nn.Linear(2, 2),
        "holds a list; wanted a state dict": [zeros],
        "holds 'model', a dict": {"model": {"a": zeros}},
        r"a is no plain tensor \(float32, torch.sparse_coo\)": {"a": zeros.to_sparse()},
    }
    if zipped:  # the older format cannot hold them
        narrow = zeros.to(torch.float8_e4m3fn)
        contents["a has the number type F8_E4M3FN"] = {"a": narrow}
    for message, content in contents.items():
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(InputError, match=message):
            read_tensors(tmp_path)
    assert not (tmp_path / "bad").exists()
    halves = {"a": torch.nn.Parameter(zeros + 0.5), "b": zeros.bfloat16() + 0.5}
    torch.save(halves, path, _use_new_zipfile_serialization=zipped)
    for array in read_tensors(tmp_path)[0].values():
        np.testing.assert_array_equal(array, np.full(2, 0.5, np.float32), strict=True)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="no state dict of PyTorch"):
        read_tensors(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("do_lower_case", False),
        ("strip_accents", False),
        ("tokenize_chinese_chars", False),
        ("strip_accents", True),
    ],
)
def test_a_tokenizer_that_transformers_saved_is_read_or_refused(tmp_path, name, value):
    from transformers import BertTokenizer

    vocabulary = {word: index for index, word in enumerate(WORDS)}
    BertTokenizer(vocab=vocabulary, **{name: value}).save_pretrained(tmp_path)
    if value:
        assert read_uncased(tmp_path, len(WORDS), 6).tokens == tuple(WORDS)
    else:
        with pytest.raises(InputError, match=f"{name} is False"):
            read_uncased(tmp_path, len(WORDS), 6)
