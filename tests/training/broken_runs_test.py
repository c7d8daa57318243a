"""Runs whose numbers are not finite, or whose newest checkpoint is damaged."""

import hashlib
import json

import numpy as np
import pytest

from align_jax.config import read_config
from align_jax.errors import NonFiniteError
from align_jax.input.pipeline import TrainBatches
from align_jax.input.training_data import open_training
from align_jax.train import train
from align_jax.training.checkpoint import list_steps
from align_jax.training.pretrain_config import PretrainConfig
from tests import tiny
from tests.run_tiny import rows


def test_a_loss_that_is_no_number_ends_the_run_and_names_its_pairs(tmp_path):
    fields = tiny.make_run(tmp_path, total_steps=6, evaluators={})
    fields["optimizer"] |= {"kind": "sgd", "learning_rate": 1e38, "decay": "constant"}
    with pytest.raises(FloatingPointError, match=r"of step .* is nan") as error:
        train(fields, str(tmp_path / "run"))
    step = error.value.step
    (path,) = (tmp_path / "run").glob("nonfinite_*")
    assert path.name == f"nonfinite_step_{step}_process_0.jsonl"
    pairs = [json.loads(line) for line in path.read_text().splitlines()]
    saved = list_steps(str(tmp_path / "run"))
    assert all(step > each for each in saved)
    newest = f"of step {max(saved)}, is whole" if saved else "no checkpoint is written"
    assert newest in str(error.value)
    config = read_config(PretrainConfig, fields)
    data = open_training(config.input, config.batch_phases, 1)
    batches = TrainBatches(data, config.make_tokenizer(), config.seed, step - 1)
    np.testing.assert_array_equal(
        [pair["tokens"] for pair in pairs], next(batches)["tokens"]
    )
    batches.close()
    names = [tiny.NAMES[i % len(tiny.NAMES)] for i in range(96)]
    pictures = {
        hashlib.sha256(tiny.draw(n, i)).hexdigest() for i, n in enumerate(names)
    }
    assert {pair["picture_sha256"] for pair in pairs} <= pictures
    assert {pair["dataset"] for pair in pairs} == {"tiny"}


def test_a_moment_that_overflows_ends_the_run_in_its_step(tmp_path):
    """The loss stays finite, as it does on a batch of black pictures."""
    fields = tiny.make_run(tmp_path, total_steps=4, evaluators={}, log_every_steps=4)
    # The rate of step 1 is 0, but its moments hold the decay of every parameter.
    fields["optimizer"] |= {"kind": "sgd", "weight_decay": 3e38}
    fields["checkpoint"] = {"every_steps": 1, "keep": 1}
    message = (
        "statistic after step 1 is not finite; no checkpoint is written yet:"
        " .*clip_norm, .* in a new workdir"
    )
    run = tmp_path / "run"
    with pytest.raises(NonFiniteError, match=message) as error:
        train(fields, str(run))
    assert error.value.step == 1
    assert not list_steps(str(run))
    assert (run / "nonfinite_step_1_process_0.jsonl").exists()
    assert np.isfinite(rows(run)[0]["train/loss"])
    assert "train/finite" not in rows(run)[0]


@pytest.mark.faults
def test_a_run_goes_back_behind_a_damaged_checkpoint(tmp_path, capfd):
    fields = tiny.make_run(tmp_path, evaluators={}, total_steps=4)
    run = tmp_path / "run"
    train(fields, str(run))
    expected = rows(run)
    (run / "results.json").unlink()
    folder = run / "checkpoints"
    files = [path for path in (folder / "4").rglob("d/*") if path.is_file()]
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    capfd.readouterr()
    train(fields, str(run))
    said = capfd.readouterr()
    (line,) = [x for x in said.err.splitlines() if x.startswith("warning: ")]
    assert f"{folder}/4 is damaged: " in line
    assert line.endswith(f"{folder}/2 is taken instead")
    assert f"Continuing {run} after step 2." in said.out
    assert rows(run) == expected
    assert sorted(list_steps(str(run))) == [2, 4]
    assert (folder / "4.damaged").is_dir()
