"""Runs whose sizes of pictures, texts and batches change with the step."""

import dataclasses
import json
import re
import shutil
import threading

import jax
import numpy as np
import pytest

from align_jax import train as program
from align_jax.devices.mesh import make_mesh
from align_jax.errors import InputError
from align_jax.input.phases import Phase
from align_jax.input.preprocess import PreprocessConfig
from align_jax.input.training_data import open_training
from align_jax.report.found_runs import find_runs
from align_jax.runs.metric_lines import read_metrics
from align_jax.runs.pace import STARTED
from align_jax.train import train
from align_jax.training import phase_programs
from align_jax.training.checkpoint import Checkpoints
from align_jax.training.kept_programs import FIRST_STATE, KeptPrograms
from align_jax.training.phase_config import PhaseConfig
from align_jax.training.phase_programs import PhasePrograms
from align_jax.training.train_state import abstract_state
from align_jax.training.training_runs import read_run_config
from tests import tiny
from tests.run_tiny import rows

STEPS, BOUNDARY = 6, 3
PHASES = ((0, {"image_size": 24, "max_tokens": 4}), (BOUNDARY, {"virtual_cores": 16}))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def make_fields(root, phases=PHASES, **changes):
    """Makes a config whose BatchNorm groups are large enough to be well conditioned."""
    fields = tiny.make_run(root, pairs_per_core=4, batch_norm_cores=2)
    fields["input"]["preprocess"] = {"resize": 36, "image_size": 32, "flip": False}
    fields["input"]["streams"] = 1  # opens fast
    fields["model"]["image_tower"]["stages"] = ((1, 3, 2, 6, 64),)  # compiles fast
    fields["optimizer"]["learning_rate"] = 1e-3
    fields["checkpoint"] = {"every_steps": 1, "keep": STEPS}
    same = {"total_steps": STEPS, "evaluators": {}, "phases": phases}
    return fields | same | changes


def end_state(fields, workdir):
    config = read_run_config(fields)
    identity = config.identity(config.make_tokenizer())
    checkpoints = Checkpoints(str(workdir), config.checkpoint, identity)
    plan = config.make_plan(make_mesh(1))
    state = checkpoints.restore(config.total_steps, abstract_state(plan))
    checkpoints.close()
    return jax.device_get(state)


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    """The workdir of an uninterrupted run with two phases, with its programs."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeptPrograms, "remove", lambda _: None)
        train(make_fields(root), str(workdir))
    return workdir


@pytest.mark.pods
@pytest.mark.parametrize("saved", [BOUNDARY - 1, BOUNDARY, BOUNDARY + 1])
def test_a_run_that_is_killed_around_a_boundary_ends_in_the_same_bits(
    root, whole, tmp_path, saved
):
    run = tmp_path / "run"  # as if killed when `saved` was the newest checkpoint
    shutil.copytree(whole, run)
    for step in range(saved + 1, STEPS + 1):
        shutil.rmtree(run / "checkpoints" / str(step))
    for name in ("results.json", "report.html"):
        (run / name).unlink()
    train(make_fields(root), str(run))
    assert rows(run) == rows(whole)
    starts = [row["step"] for row in read_metrics(str(run)) if STARTED in row]
    assert starts == [0, saved]
    assert not (run / "compiled").exists()  # it is finished
    assert_equal(*(end_state(make_fields(root), path) for path in (run, whole)))


@pytest.mark.pods
def test_the_program_of_each_phase_is_kept(whole):
    names = {path.name for path in (whole / "compiled").iterdir()}
    later = f"step_with_norms_from_{BOUNDARY}"
    # The state's program is not kept if an earlier test has put it in JAX's cache.
    assert names - {FIRST_STATE} == {"step_with_norms", later}


@pytest.mark.pods
def test_one_device_and_eight_agree_in_every_phase(
    root, whole, tmp_path, monkeypatch, mesh_of
):
    fields = make_fields(root)
    monkeypatch.setattr(program, "make_mesh", lambda fsdp: mesh_of(1))
    train(fields, str(tmp_path / "run"))
    pairs = zip(rows(tmp_path / "run"), rows(whole), strict=True)
    for mine, theirs in ((a, b) for a, b in pairs if "train/loss" in a):
        assert mine["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-5)
    found, expected = (end_state(fields, run) for run in (tmp_path / "run", whole))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        found.own_variables,
        expected.own_variables,
    )


@pytest.mark.pods
def test_phases_of_the_runs_own_sizes_change_no_bit(root, whole, tmp_path):
    usual = make_fields(root, phases=(), virtual_cores=16)  # as `whole` has compiled
    same = {"image_size": 32, "resize": 36, "max_tokens": 6, "virtual_cores": 16}
    phased = usual | {"phases": ((0, {}), (2, same), (5, {"image_size": 32}))}
    train(usual, str(tmp_path / "usual"))
    train(phased, str(tmp_path / "phased"))
    assert rows(tmp_path / "phased") == rows(tmp_path / "usual")
    states = (end_state(usual, tmp_path / name) for name in ("phased", "usual"))
    assert_equal(*states)


@pytest.mark.pods
def test_metrics_and_measures_count_the_work_of_each_phase(root, whole, mesh_of):
    config = read_run_config(make_fields(root))
    programs = PhasePrograms(config, mesh_of(8))
    small, large = (sum(programs.count_flops(s).values()) for s in (0, BOUNDARY))
    assert small < large / 2  # twice the pairs, larger pictures and longer texts
    steps = [row for row in read_metrics(str(whole)) if "train/model_tflops" in row]
    totals = [row["train/model_tflops"] * 1e12 for row in steps]
    wanted = np.cumsum([small] * BOUNDARY + [large] * (STEPS - BOUNDARY))
    np.testing.assert_allclose(totals, wanted, rtol=1e-9)
    (run,) = find_runs([str(whole)])
    assert run.measures["pairs_seen"] == BOUNDARY * 32 + (STEPS - BOUNDARY) * 64
    assert run.measures["flops"] == pytest.approx(wanted[-1])
    speeds = [row["train/pairs_per_second"] for row in steps]
    work = [row["train/tflops_per_second_per_device"] * 8e12 for row in steps]
    per_pair = [small / 32] * BOUNDARY + [large / 64] * (STEPS - BOUNDARY)
    np.testing.assert_allclose(np.divide(work, speeds), per_pair, rtol=1e-9)
    kept = json.loads((whole / "config.json").read_text())["phases"]
    assert kept == [[step, fields] for step, fields in PHASES]
    page = (whole / "report.html").read_text()
    assert f"phases begin at steps {BOUNDARY}" in page


@pytest.mark.pods
def test_the_rate_is_that_of_a_run_without_phases(root, whole):
    schedule = read_run_config(make_fields(root, phases=())).make_plan(make_mesh(1))
    rates = [row["train/learning_rate"] for row in rows(whole)]
    wanted = [float(schedule.schedule(step)) for step in range(STEPS)]
    assert rates == pytest.approx(wanted)


def compiling(monkeypatch, compile_one):
    """Replaces the compiler and the counting of operations by functions of a plan."""
    monkeypatch.setattr(
        phase_programs, "compile_steps", lambda plan, shapes, *_: compile_one(shapes)
    )
    monkeypatch.setattr(phase_programs, "count_model_flops", lambda *_: {"all": 1.0})


THREE = ((0, {"image_size": 8}), (2, {"image_size": 12}), (4, {}))


def test_a_start_waits_for_its_own_phase_only(root, monkeypatch, mesh_of):
    allowed, compiled = threading.Event(), []

    def compile_one(shapes):
        if compiled:
            allowed.wait(60)
        compiled.append(shapes["images"].shape[1])
        return {True: compiled[-1]}

    compiling(monkeypatch, compile_one)
    config = read_run_config(make_fields(root, phases=THREE))
    programs = PhasePrograms(config, mesh_of(8))
    assert programs.begin(0) == {True: 8}
    assert [programs.begins(step) for step in range(6)] == [
        *(False, False, True, False, True, False)
    ]
    programs.check()
    assert compiled == [8]
    allowed.set()
    assert [programs.take(step).steps[True] for step in (2, 4)] == [12, 32]
    compiled.clear()
    again = PhasePrograms(config, mesh_of(8))
    assert again.begin(3) == {True: 12}  # a restart inside the second phase
    assert again.take(4).steps == {True: 32}
    assert compiled == [12, 32]
    assert not any(again.begins(step) for step in (0, 2, 3))


def test_a_later_phase_that_does_not_compile_ends_the_run_early(
    root, monkeypatch, mesh_of
):
    def compile_one(shapes):
        if shapes["images"].shape[1] == 12:
            raise RuntimeError("RESOURCE_EXHAUSTED")
        return {}

    compiling(monkeypatch, compile_one)
    programs = PhasePrograms(
        read_run_config(make_fields(root, phases=THREE)), mesh_of(8)
    )
    programs.begin(0)
    programs.take(4)  # the phase after it, which is compiled later
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        programs.check()


def test_phases_have_the_sizes_that_they_name(root):
    config = read_run_config(
        make_fields(
            root,
            phases=(
                (0, {"image_size": 16, "colour_jitter": 0.5}),
                (1, {"image_size": 16, "resize": 16, "max_tokens": 3}),
                (2, {"virtual_cores": 4, "crop": "inception", "crop_area": 0.5}),
            ),
        )
    )
    usual = config.input.preprocess
    assert config.batch_phases == (
        Phase(
            0,
            32,
            dataclasses.replace(usual, resize=18, image_size=16, colour_jitter=0.5),
            6,
        ),
        Phase(1, 32, dataclasses.replace(usual, resize=16, image_size=16), 3),
        Phase(2, 16, dataclasses.replace(usual, crop="inception", crop_area=0.5), 6),
    )
    assert config.evaluation_preprocess == usual
    paper = PhaseConfig(image_size=160).make_preprocess(PreprocessConfig())
    assert paper == PreprocessConfig(resize=192, image_size=160)  # 346 * 160 / 289


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        (((5, {}),), "phases begins phases at steps [5]; wanted 0 first"),
        (((0, {}), (3, {}), (3, {})), "phases at steps [0, 3, 3]; wanted 0 first"),
        (((0, {}), (4, {}), (2, {})), "phases at steps [0, 4, 2]; wanted 0 first"),
        (((-1, {}),), "config.phases[0][0] is -1; wanted 0 or more"),
        (((0.5, {}),), "config.phases[0][0] is 0.5 (float); wanted int"),
        (((0, {}, {}),), "config.phases[0] is (0, {}, {}); wanted 2 values, not 3"),
        (((0, 160),), "config.phases[0][1] is 160 (int); wanted dict"),
        ((7,), "config.phases[0] is 7 (int); wanted tuple"),
        ({"image_size": 8}, "config.phases is {'image_size': 8} (dict); wanted tuple"),
        (
            ((0, {"imagesize": 8}),),
            "config.phases[0][1] has no field 'imagesize'; did you mean 'image_size'?",
        ),
        (
            ((0, {}), (2, {"image_size": "8"})),
            "config.phases[1][1].image_size is '8' (str); wanted int",
        ),
        (((0, {"image_size": 0}),), "phases[0][1].image_size is 0; wanted 1 to 65535"),
        (((0, {"flip": 1}),), "config.phases[0][1].flip is 1 (int); wanted bool"),
        (((0, {"max_tokens": 2}),), "phases[0][1].max_tokens is 2; wanted 3 or more"),
        (
            ((0, {"max_tokens": 7}),),
            "phases[0][1].max_tokens is 7, above model.text_tower.max_tokens, 6",
        ),
        (
            ((0, {"image_size": 16, "resize": 15}),),
            "phases[0][1]: preprocess.resize is 15, below preprocess.image_size, 16",
        ),
        (((0, {"crop": "round"}),), "phases[0][1]: preprocess.crop is 'round'"),
        (((0, {"virtual_cores": 0}),), "[1].virtual_cores is 0; wanted 1 or more"),
        (
            ((0, {"virtual_cores": 5}),),
            "phases[0][1].virtual_cores is 5, not a multiple of batch_norm_cores, 2",
        ),
        (
            ((0, {}), (6, {})),
            "phases[1] begins at step 6; wanted a step below total_steps, 6",
        ),
    ],
)
def test_bad_phases_are_refused_by_field(root, phases, message):
    with pytest.raises(InputError, match=re.escape(message)) as error:
        read_run_config(make_fields(root, phases=phases))
    assert "\n" not in str(error.value)


def test_a_batch_that_does_not_fit_the_devices_is_refused_before_a_start(
    root, tmp_path
):
    fields = make_fields(root, phases=((0, {}), (3, {"virtual_cores": 12})))
    message = r"config.phases\[1\], config.virtual_cores is 12, which does not divide"
    with pytest.raises(InputError, match=message):
        train(fields, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    fields = make_fields(root, phases=((0, {}), (3, {"virtual_cores": 2})))
    fields["input"] = fields["input"] | {"streams": 16}
    config = read_run_config(fields)
    message = "batch of 8 pairs from step 3 on does not divide over input.streams = 16"
    with pytest.raises(InputError, match=message):
        open_training(config.input, config.batch_phases, 1)
