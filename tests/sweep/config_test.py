import pytest

from align_jax.errors import InputError
from align_jax.sweep.config import open_sweep


def test_ids_are_of_what_is_computed(place):
    ids = [run.id for run in place.runs()]
    assert len({*ids}) == 3
    assert ids == [run.id for run in place.runs()]
    assert ids == [run.id for run in place.runs("--config.microbatches=2")]
    changed = place.runs("--config.loss.label_smoothing=0.2")
    assert not {*ids} & {run.id for run in changed}
    assert changed[1].fields["loss"]["label_smoothing"] == 0.2


def test_the_options_of_recipes_are_swept(place):
    constant = {"optimizer.decay": "constant"}
    changes = {
        "first": constant | {"optimizer.cooldown_steps": 20},
        "second": constant
        | {"optimizer.kind": "schedule_free_adamw", "optimizer.cooldown_steps": 0},
        "third": {
            "optimizer.kind": "muon",
            "loss.widths": (240, 60, 15),
            "evaluators.unseen_15": {
                "kind": "retrieval",
                "directory": "data",
                "split": "test",
                "width": 15,
            },
        },
    }
    changes["second"]["optimizer.average_decay"] = None
    changes["second"] |= {
        "input.datasets.emoji.teacher": "runs/teacher",
        "input.teacher_width": 240,
        "loss.distillation": ((0, 0.7), (50, 0.0)),
        "loss.teacher_temperature": 0.05,
    }
    changes["first"]["hard_pairs.scoring"] = "hard"
    text = place.file.read_text().replace('{"seed": i}', f"{changes!r}[name]")
    place.file.write_text(text)
    first, second, third = place.runs()
    assert first.fields["optimizer"]["cooldown_steps"] == 20
    assert first.fields["hard_pairs"] == {"scoring": "hard"}
    assert second.fields["optimizer"]["kind"] == "schedule_free_adamw"
    assert second.fields["loss"]["distillation"] == ((0, 0.7), (50, 0.0))
    assert third.fields["evaluators"]["unseen_15"]["width"] == 15
    place.file.write_text(text.replace("(240, 60, 15)", "(60, 15)"))
    with pytest.raises(InputError, match=r"loss.widths is \(60, 15\), but embeddings"):
        place.runs()
    place.file.write_text(text.replace("(50, 0.0)", "(50, 1.5)"))
    with pytest.raises(InputError, match=r"loss.distillation\[1\]\[1\] is 1.5; wanted"):
        place.runs()


def test_phases_are_swept_as_any_field(place):
    usual = place.runs()
    sizes = "((0, {'image_size': 32}), (50, {}))"
    text = place.file.read_text()
    place.file.write_text(
        text.replace('{"seed": i}', f'{{"seed": i, "phases": {sizes}}}')
    )
    phased = place.runs()
    assert not {run.id for run in usual} & {run.id for run in phased}
    assert phased[0].fields["phases"] == ((0, {"image_size": 32}), (50, {}))
    place.file.write_text(
        text.replace('{"seed": i}', '{"phases": ((0, {"size": 1}),)}')
    )
    with pytest.raises(InputError, match=r"phases\[0\]\[1\] has no field 'size'"):
        place.runs()


def test_evaluations_of_two_checkpoints_are_two_runs(place):
    place.file.write_text(
        place.file.read_text()
        .replace("quickstart.get_config()", "zero_shot.get_config('simlex')")
        .replace("base.total_steps = 100", "")
        .replace("import quickstart", "import zero_shot")
        .replace('{"seed": i}', '{"embeddings": name}')
    )
    one = place.runs("--config.checkpoint=runs/one")
    other = place.runs("--config.checkpoint=runs/other")
    assert not {run.id for run in one} & {run.id for run in other}


def test_bad_sweeps_are_refused(place):
    def refused(message, argument, *flags):
        with pytest.raises(InputError, match=message):
            open_sweep(str(argument), "out", flags)

    refused("'none.py', which is no file", "none.py")
    refused("'frist'; did you mean 'first'", f"{place.file}:frist")
    refused("no field 'sed'; did you mean 'seed'", place.file, "--config.sed=1")
    refused("label_smoothing is 2.0", place.file, "--config.loss.label_smoothing=2.0")
    refused("no get_sweep.* of run = 'pretrain'", "configs/quickstart.py")
    (place.folder / "none.py").write_text("def get_sweep():\n    return {}")
    refused("has no runs", place.folder / "none.py")
