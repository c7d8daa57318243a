"""Our scores beside those of CLIP_benchmark's own code, with and without ties."""

import json
import pathlib
import subprocess

import numpy as np
import pytest

from align_jax.devices.mesh import make_mesh
from align_jax.evaluation.benchmark_scores import average_precisions, selection_hits
from align_jax.evaluation.class_ranks import class_ranks
from align_jax.evaluation.ranking import pair_ranks
from align_jax.evaluation.scores import CUTS, mean_per_class, recall_at

pytestmark = pytest.mark.formats
PYTHON = pathlib.Path(__file__).parents[2] / ".venv-clip-benchmark" / "bin" / "python"
TOLERANCE = 1e-6
# Pictures are their embeddings, and a text is the number of its embedding.
THEIRS = """
import json, sys, types
import numpy as np
import torch
from clip_benchmark.metrics import (
    image_caption_selection, zeroshot_classification, zeroshot_retrieval
)
data = {name: torch.from_numpy(a) for name, a in np.load(sys.argv[1]).items()}
images, texts = data["images"], data["texts"]
model = types.SimpleNamespace(
    encode_image=lambda x: x.flatten(1), encode_text=lambda rows: texts[rows]
)
tokenize = lambda names: torch.tensor([int(name) for name in names])
count = len(texts)

class Batches(list):
    dataset = types.SimpleNamespace(classes=[str(i) for i in range(count)])

found = {}
for target in ("labels", "several"):
    found |= zeroshot_classification.evaluate(
        model, Batches([(images, data[target])]), tokenize, Batches.dataset.classes,
        ["{c}"], "cpu", amp=False
    )
names = [[str(i) for i in rows] for rows in data["captions"].tolist()]
pairs = [(images[: len(names)], names)]
found |= zeroshot_retrieval.evaluate(
    model, pairs, tokenize, "cpu", amp=False, recall_k_list=[1, 5, 10]
)
for prefix, size in (("one_", 1), ("two_", 2)):
    instances = len(images) // size
    pictures = images[: instances * size].reshape(instances, size, -1, 1, 1)
    choices = [[str((2 * i + j) % count) for j in range(2)] for i in range(instances)]
    scores = image_caption_selection.evaluate(
        model, [(pictures, choices)], tokenize, "cpu", amp=False
    )
    found |= {prefix + name: value for name, value in scores.items()}
json.dump(found, sys.stdout)
"""


def draw(ties):
    """Draws pictures, texts, labels and captions.

    The texts are the axes, so that the scores of a picture are the components of its
    unit vector. With ties, these are few different numbers.
    """
    random = np.random.default_rng(0)
    count, width = 60, 24
    images = 1 + random.permutation(count * width).reshape(count, width)
    if ties:
        few = np.tile(1 + np.arange(width) % 3, (count, 1))
        images = random.permuted(few, axis=1)  # all of one length
    several = random.random((count, width)) < 0.3
    return {
        "images": images.astype(np.float32),
        "texts": np.eye(width, dtype=np.float32),
        "labels": random.integers(0, width, count),
        "several": several.astype(np.float32),
        "captions": random.permutation(width).reshape(-1, 2),
    }


def ours(data, in_order):
    """Returns our scores, or those in CLIP_benchmark's order, by its names."""
    images, texts, labels = data["images"], data["texts"], data["labels"]
    images = images / np.linalg.norm(images, axis=1, keepdims=True)
    mesh, scores = make_mesh(), images @ texts.T
    ranks = class_ranks(images, texts, labels, mesh)
    precisions = average_precisions(scores, data["several"] > 0, in_order)
    found = {"mean_average_precision": precisions.mean()}
    if not in_order:
        found |= {f"acc{k}": recall_at(ranks, k) for k in (1, 5)}
        found["mean_per_class_recall"] = mean_per_class(ranks == 0, labels)
        captions = data["captions"].ravel()
        rows = np.repeat(np.arange(len(data["captions"])), data["captions"].shape[1])
        pairs = np.stack([rows, np.arange(len(captions))], 1)
        sides = pair_ranks(images[: rows[-1] + 1], texts[captions], pairs, mesh)
        for side, name in zip(sides, ("text", "image"), strict=True):
            for k in CUTS:
                found[f"{name}_retrieval_recall@{k}"] = recall_at(side, k)
    for prefix, size in (("one_", 1), ("two_", 2)):
        instances = len(images) // size
        pictures = images.reshape(instances, size, -1)
        rows = (2 * np.arange(instances)[:, None] + np.arange(2)) % len(texts)
        hits = selection_hits(pictures @ texts[rows].transpose(0, 2, 1), in_order)
        found[f"{prefix}text_acc"], found[f"{prefix}image_acc"] = np.mean(hits, axis=1)
        found[f"{prefix}acc"] = np.mean(hits[0] & hits[1])
    return {name: float(value) for name, value in found.items()}


def theirs(data, path):
    np.savez(path, **data)
    command = [PYTHON, "-c", THEIRS, path]
    told = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(told.stdout)


def test_scores_without_ties_are_equal(tmp_path):
    data = draw(ties=False)
    found, expected = ours(data, False), theirs(data, tmp_path / "data.npz")
    assert {*found} == {*expected}
    for name, value in found.items():
        assert value == pytest.approx(expected[name], abs=TOLERANCE), name
    assert 0 < found["acc1"] < found["acc5"] < 1


def test_ties_are_never_in_the_model_s_favour(tmp_path):
    """CLIP_benchmark gives some of them to the model: the first candidates' argmax."""
    data = draw(ties=True)
    found, expected = ours(data, False), theirs(data, tmp_path / "data.npz")
    for name, value in found.items():
        assert value <= expected[name] + TOLERANCE, name
    for name in ("mean_average_precision", "one_text_acc", "two_acc"):
        assert found[name] < expected[name] - TOLERANCE, name
    in_order = ours(data, True)
    del in_order["mean_average_precision"]  # torch's sort is not stable
    for name, value in in_order.items():
        assert value == pytest.approx(expected[name], abs=TOLERANCE), name


def test_a_constant_model_is_perfect_by_argmax_alone(tmp_path):
    data = draw(ties=True)
    data["images"][:] = 1
    expected = theirs(data, tmp_path / "data.npz")
    assert expected["one_text_acc"] == 1
    assert ours(data, True)["one_text_acc"] == 1
    found = ours(data, False)
    assert found["one_text_acc"] == found["two_acc"] == 0
    for side in ("image", "text"):
        assert found[f"{side}_retrieval_recall@1"] == 0
