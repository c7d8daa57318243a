"""Sets that CLIP_benchmark's own exporter writes are read and evaluated."""

import io
import json
import pathlib
import subprocess

import numpy as np
import pytest
from PIL import Image

from align_jax.embed.model import make_embedder
from align_jax.evaluate import evaluate
from align_jax.evaluation.runner import make_evaluators, run_evaluators
from align_jax.input import benchmark_folder
from align_jax.pictures import read_picture
from align_jax.weights.source import open_weights
from configs import zero_shot
from tests import tiny

pytestmark = pytest.mark.formats
ROOT = pathlib.Path(__file__).parents[2]
EXPORT = ROOT / ".venv-clip-benchmark" / "bin" / "clip_benchmark_export_wds"
COUNT = 12
# The exporter's command ends with "'Flickr' object has no attribute 'classes'".
EXPORT_CAPTIONS = """
import sys
from clip_benchmark.datasets.builder import build_dataset
from clip_benchmark.webdataset_builder import PIL_to_bytes, convert_retrieval_dataset
root, out = sys.argv[1:]
transform = PIL_to_bytes("webp")
data = build_dataset("flickr30k", root, transform, task="zeroshot_retrieval")
convert_retrieval_dataset(data, "test", out, max_count=5)
"""


def draw(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)


def save(path: pathlib.Path, pixels: np.ndarray) -> np.ndarray:
    """Writes a picture file; returns the pixels that it has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return read_picture(path.read_bytes())


def export(root: pathlib.Path, name: str, out: pathlib.Path, *flags: str) -> str:
    """Runs CLIP_benchmark's exporter, with five pictures a tar."""
    command = [EXPORT, "--dataset", name, "--dataset-root", root, "--output", out]
    subprocess.run(
        [*command, "--max-count", "5", *flags], check=True, capture_output=True
    )
    return str(out)


def pixels_of(pictures: list[bytes]) -> list[list]:
    return sorted(read_picture(picture).tolist() for picture in pictures)


@pytest.mark.parametrize("ending", ["webp", "png"])
def test_an_exported_set_of_classes_is_evaluated(tmp_path, ending):
    """Rendered SST2 is one of DataComp's 38."""
    labels = {}
    for number in range(COUNT):
        name = ("negative", "positive")[number % 3 == 0]
        path = tmp_path / "raw" / "rendered-sst2" / "test" / name / f"{number}.png"
        labels[save(path, draw(number)).tobytes()] = int(number % 3 == 0)
    out = tmp_path / "sets" / "wds_renderedsst2_test"
    export(tmp_path / "raw", "renderedsst2", out, "--image-format", ending)
    data = benchmark_folder.BenchmarkPictures(str(out), "test", COUNT)
    assert data.names == ["negative", "positive"]
    assert len(labels) == COUNT
    assert {read_picture(p).tobytes(): label for p, label in data} == labels
    fields = zero_shot.get_config("datacomp").to_dict()
    fields["checkpoint"] = tiny.write_model(tmp_path / "model")
    fields["datacomp"] |= {"directory": str(out.parent), "check_sizes": False}
    evaluate(fields, str(tmp_path / "run"))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["eval/wds_renderedsst2/queries"] == COUNT
    assert results["eval/wds_renderedsst2/majority"] == pytest.approx(8 / 12)
    assert results["eval/datacomp/queries"] == 1


def test_an_exported_set_of_several_labels_is_evaluated(tmp_path):
    """Pascal VOC 2007, whose labels are float32 arrays in npy."""
    root = tmp_path / "raw" / "VOCdevkit" / "VOC2007"
    names = [f"{number:06}" for number in range(1, 1 + COUNT)]
    lists = root / "ImageSets" / "Main" / "aeroplane_test.txt"
    lists.parent.mkdir(parents=True)
    lists.write_text("".join(f"{name}  1\n" for name in names))
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    objects = [("dog",), ("cat", "dog", "dog"), ("tvmonitor", "aeroplane")]
    pictures = []
    (root / "Annotations").mkdir()
    for number, name in enumerate(names):
        pictures.append(save(root / "JPEGImages" / f"{name}.jpg", draw(number)))
        texts = (f"<object><name>{n}</name>{box}</object>" for n in objects[number % 3])
        xml = f"<annotation>{''.join(texts)}</annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(xml)
    out = tmp_path / "wds_voc2007_multilabel"
    export(tmp_path / "raw", "voc2007_multilabel", out, "--multilabel")
    assert benchmark_folder.read_type(str(out)) == benchmark_folder.MULTILABEL
    classes = benchmark_folder.read_lines(str(out), benchmark_folder.CLASSES_FILE)
    assert len(classes) == 20
    folder = benchmark_folder.BenchmarkFolder(str(out), "test", COUNT)
    found, labels = zip(*folder.arrays("npy"), strict=True)
    assert labels[0][0].dtype == np.float32
    for number, (label,) in enumerate(labels):
        assert {classes[i] for i in np.flatnonzero(label)} == {*objects[number % 3]}
    assert pixels_of(found) == sorted(p.tolist() for p in pictures)
    described = {"voc": {"kind": "wds", "directory": str(out)}}
    embedder = make_embedder(open_weights(tiny.write_model(tmp_path / "model")))
    results = dict(run_evaluators(make_evaluators(described), embedder))
    assert results["eval/voc/queries"] == COUNT
    # 4 of 12 pictures show a dog alone, 4 a cat and a dog, 4 two others.
    assert results["eval/voc/mean_average_chance"] == pytest.approx(5 / 3 / 20)
    assert 0 < results["eval/voc/mean_average_precision"] <= 4 / 20


def test_an_exported_set_of_captions_is_evaluated(tmp_path):
    """Flickr, whose captions have commas and quotes."""
    lines, captions = ["image,caption"], {}
    for number in range(COUNT):
        pixels = save(tmp_path / "raw" / f"{number}.jpg", draw(number))
        texts = [f'a "{word}", number {number}' for word in ("dog", "cät", "it's")]
        captions[pixels.tobytes()] = texts
        lines += [f"{number}.jpg,{text}" for text in texts]
    table = tmp_path / "raw" / "flickr30k_test_karpathy.txt"
    table.write_text("\n".join(lines) + "\n")
    out = tmp_path / "sets" / "wds_flickr30k"
    command = [EXPORT.with_name("python"), "-c", EXPORT_CAPTIONS, tmp_path / "raw", out]
    subprocess.run(command, check=True, capture_output=True)
    pairs = benchmark_folder.read_captions(str(out), "test", COUNT)
    assert {read_picture(p).tobytes(): texts for p, texts in pairs} == captions
    with Image.open(io.BytesIO(pairs[0][0])) as picture:
        assert picture.format == "WEBP"
    fields = zero_shot.get_config("datacomp").to_dict()
    fields["checkpoint"] = tiny.write_model(tmp_path / "model")
    fields["datacomp"] |= {"directory": str(out.parent), "check_sizes": False}
    evaluate(fields, str(tmp_path / "run"))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    prefix = "eval/wds_retrieval-flickr_1k_test_image_text_retrieval"
    assert results[f"{prefix}/i2t_candidates"] == 3 * COUNT
    assert 0 <= results[f"{prefix}/mean_recall@1"] <= 1
