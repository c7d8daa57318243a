"""Classification runs use the same training loop as pretraining."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest

from align_jax.config import read_config
from align_jax.devices.mesh import global_batch
from align_jax.errors import InputError
from align_jax.evaluate import evaluate
from align_jax.input.pipeline import TrainBatches
from align_jax.input.training_data import open_training
from align_jax.models.parameters import flatten
from align_jax.train import train
from align_jax.training.classify_config import ClassifyConfig
from align_jax.training.compiled_step import make_train_step
from align_jax.training.train_state import create_state
from align_jax.weights.initialize import read_initial
from align_jax.weights.source import open_weights
from tests import tiny


def make_fields(root, **changes):
    """Makes the literal config of a short run on the colours of the tiny pictures."""
    if not (root / "test").exists():
        tiny.write_evaluation(root / "test")
    data = {"directory": str(root / "test"), "split": "test"}
    fields = {
        "run": "classify",
        "seed": 0,
        "total_steps": 4,
        "virtual_cores": 8,
        "pairs_per_core": 3,
        "batch_norm_cores": 4,
        "input": {
            "datasets": {"colours": {**data, "label_feature": "label"}},
            "streams": 1,
            "preprocess": {"resize": 18, "image_size": 16, "flip": False},
        },
        "model": {
            "image_tower": {**tiny.IMAGE_TOWER},
            "classes": len(tiny.COLOURS),
        },
        "evaluation": {"resize": 24, "image_size": 20},
        "optimizer": {
            "kind": "sgd",
            "learning_rate": 0.1,
            "warmup_steps": 0,
            "decay": "cosine",
        },
        "loss": {"kind": "cross_entropy", "label_smoothing": 0.0},
        "checkpoint": {"every_steps": 2},
        "log_every_steps": 1,
        "evaluate_every_steps": 4,
        "evaluators": {"colour": {"kind": "classification", **data}},
    }
    return fields | changes


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("classify")


@pytest.fixture(scope="module")
def finished(root):
    """Trains a run; returns its workdir."""
    train(make_fields(root), str(root / "run"))
    return root / "run"


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def test_a_run_on_labels_scores_and_reports(finished):
    results = results_of(finished)
    assert results["untrained/eval/colour/top1"] == 0.0  # all logits are equal
    assert 0 <= results["eval/colour/top1"] <= results["eval/colour/top5"] == 1.0
    assert results["eval/colour/candidates"] == 3
    assert results["eval/colour/queries"] == 12
    assert 0 <= results["train/accuracy"] <= 1
    page = (finished / "report.html").read_text()
    assert "Pictures and their best classes" in page


def test_a_finished_run_is_weights_that_score_the_same_alone(root, finished):
    weights = open_weights(str(finished))
    assert (weights.kind, weights.step) == ("classifier", 4)
    assert weights.preprocess.image_size == 20
    colour = make_fields(root)["evaluators"]["colour"]
    fields = {
        "run": "evaluate",
        "checkpoint": str(finished),
        "evaluators": {"colour": colour},
    }
    evaluate(fields, str(root / "again"))
    again, before = results_of(root / "again"), results_of(finished)
    for name in ("top1", "top5", "mean_per_class"):
        assert again[f"eval/colour/{name}"] == before[f"eval/colour/{name}"]
    prompts = colour | {"kind": "zero_shot", "prompts": f"{root}/test/prompts.json"}
    with pytest.raises(InputError, match="a classifier has no text tower"):
        evaluate(fields | {"evaluators": {"colour": prompts}}, str(root / "none"))


def test_a_frozen_tower_keeps_every_bit_and_the_head_learns(root, finished):
    start = {"model": str(finished)}
    fields = make_fields(root, initialize=start, total_steps=2, evaluators={})
    fields["model"]["image_tower"]["frozen_statistics"] = True
    fields["optimizer"]["frozen"] = ("^image_tower/",)
    train(fields, str(root / "probe"))
    before, after = (
        open_weights(str(folder)).variables for folder in (finished, root / "probe")
    )
    for path, array in after.items():
        assert np.array_equal(array, before[path]) == (path[1] == "image_tower"), path


def test_frozen_statistics_keep_every_bit_while_the_tower_learns(root, finished):
    start = {"model": str(finished)}
    fields = make_fields(root, initialize=start, total_steps=2, evaluators={})
    fields["model"]["image_tower"]["frozen_statistics"] = True
    train(fields, str(root / "tuned"))
    before, after = (
        open_weights(str(folder)).variables for folder in (finished, root / "tuned")
    )
    for path, array in after.items():
        if path[0] == "batch_stats":
            np.testing.assert_array_equal(array, before[path])
    assert any(not np.array_equal(a, before[p]) for p, a in after.items())


def test_a_tower_of_a_dual_encoder_is_where_a_classifier_starts(root, tmp_path):
    model = tiny.write_model(tmp_path / "model")
    fields = make_fields(root, initialize={"image_tower": model})
    arrays = read_initial(read_config(ClassifyConfig, fields), None)
    source = open_weights(model).variables
    assert arrays
    assert {path[1] for path in arrays} == {"image_tower"}
    for path, array in arrays.items():
        np.testing.assert_array_equal(array, source[path])
    fields["initialize"] = {"text_tower": model}
    with pytest.raises(InputError, match="text_tower is set; a classifier has none"):
        read_initial(read_config(ClassifyConfig, fields), None)
    fields["initialize"] = {"model": model}
    with pytest.raises(InputError, match="is one dual_encoder; wanted a classifier"):
        read_initial(read_config(ClassifyConfig, fields), None)


@pytest.mark.pods
def test_parts_and_devices_agree(root, mesh_of):
    fields = make_fields(root, pairs_per_core=6, batch_norm_cores=1)
    fields["input"]["preprocess"] |= {"resize": 36, "image_size": 32}
    fields["optimizer"]["learning_rate"] = 1e-2
    fields["model"]["dropout"] = 0.3
    whole = read_config(ClassifyConfig, fields)
    parts = dataclasses.replace(whole, microbatches=4)
    found = []
    for config, mesh in ((whole, mesh_of(8)), (parts, mesh_of(1))):
        plan = config.make_plan(mesh)
        data = open_training(config.input, config.batch_phases, 1)
        state, step = create_state(plan), make_train_step(plan)
        batches, losses = TrainBatches(data, None, config.seed), []
        for batch in itertools.islice(batches, 3):
            state, metrics = step(state, global_batch(batch, mesh))
            losses.append(float(metrics["loss"]))
        batches.close()
        found.append((losses, flatten(jax.device_get(state.own_variables))))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for path, array in found[0][1].items():
        np.testing.assert_allclose(array, found[1][1][path], rtol=1e-4, atol=1e-5)


def test_what_is_no_classification_is_refused(root, tmp_path):
    def refused(message, fields):
        with pytest.raises(InputError, match=message):
            train(fields, str(tmp_path / "new"))

    fields = make_fields(root)
    refused("wants labels and 'cross_entropy'", fields | {"loss": {}})
    fields["model"]["classes"] = 4
    refused("labels of 3 classes; config.model.classes is 4", fields)
    fields["model"]["classes"] = 1
    refused("model.classes is 1; wanted 2 or more", fields)
    fields = tiny.make_run(tmp_path / "pairs", loss={"kind": "cross_entropy"})
    refused("pretraining wants texts and compares pairs", fields)
    assert not (tmp_path / "new").exists()
