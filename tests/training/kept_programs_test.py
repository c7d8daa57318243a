import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from align_jax.devices import fingerprint
from align_jax.devices.mesh import batch_split, replicated
from align_jax.errors import InputError
from align_jax.training.kept_programs import FOLDER, KeptPrograms

COUNT = 16


@dataclasses.dataclass(frozen=True)
class Config:
    """A config of one number and a part of the model."""

    seed: int = 0
    model: dict = dataclasses.field(default_factory=lambda: {"stages": ((2, 3),)})


@pytest.fixture
def config():
    return Config()


@pytest.fixture(autouse=True, scope="module")
def no_cached_programs():
    """Programs from JAX's cache are not kept, so none of these gets into it."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = jax.config.values[name]
    jax.config.update(name, 3600.0)
    yield
    jax.config.update(name, before)


@pytest.fixture(autouse=True)
def fixed_sources(monkeypatch):
    """Reading all of JAX's sources for each program would take most of the time."""
    monkeypatch.setattr(fingerprint, "loaded_sources", lambda: "the sources")


class Compiler:
    """Compiles a small program with a collective, and counts how often it does."""

    def __init__(self, mesh, factor=3.0):
        self.mesh, self.factor, self.calls = mesh, factor, 0

    def __call__(self):
        self.calls += 1
        split, factor = batch_split(self.mesh), self.factor
        program = jax.jit(
            lambda state, x: ({"sum": state["sum"] * factor + x.sum(0)}, x.max()),
            in_shardings=(replicated(self.mesh), split),
            out_shardings=replicated(self.mesh),
            donate_argnums=0,
        )
        shapes = (
            {"sum": jax.ShapeDtypeStruct((4,), jnp.float32)},
            jax.ShapeDtypeStruct((COUNT, 4), jnp.float32, sharding=split),
        )
        return program.lower(*shapes).compile()


def call(program, mesh):
    """Returns the program's sum for fixed numbers."""
    x = np.arange(4 * COUNT, dtype=np.float32).reshape(COUNT, 4)
    state = {"sum": jax.device_put(jnp.ones(4), replicated(mesh))}
    state, largest = program(state, jax.device_put(x, batch_split(mesh)))
    assert largest == 4 * COUNT - 1
    return np.asarray(state["sum"])


def keep(workdir, config, mesh):
    """Keeps the small program; returns the size of its file as `write` tells it."""
    kept, compiler = KeptPrograms(workdir, config, mesh), Compiler(mesh)
    program = kept.get("small", compiler)
    assert compiler.calls == 1
    np.testing.assert_array_equal(call(program, mesh), expected())
    return kept.write()


def expected(factor=3.0):
    return factor + np.arange(4 * COUNT).reshape(COUNT, 4).sum(0)


def start_again(workdir, config, mesh):
    """Gets the program as a new start does; returns how often it was compiled."""
    kept, compiler = KeptPrograms(workdir, config, mesh), Compiler(mesh)
    program = kept.get("small", compiler)
    np.testing.assert_array_equal(call(program, mesh), expected())
    kept.write()
    return compiler.calls


@pytest.mark.parametrize("devices", [1, 4, 8])
def test_a_kept_program_is_loaded_instead_of_compiled(
    devices, config, tmp_path, mesh_of, capsys
):
    mesh = mesh_of(devices)
    ((path, size),) = keep(str(tmp_path), config, mesh).items()
    assert path == str(tmp_path / FOLDER / "small")
    assert 1000 < size < (tmp_path / FOLDER / "small").stat().st_size
    assert start_again(str(tmp_path), config, mesh) == 0
    assert capsys.readouterr().err == ""


def test_a_program_of_another_config_or_mesh_is_not_loaded(
    config, tmp_path, mesh_of, capsys
):
    keep(str(tmp_path), config, mesh_of(8))
    assert start_again(str(tmp_path), config, mesh_of(4)) == 1
    assert start_again(str(tmp_path), config, mesh_of(8)) == 1  # the other was written
    assert start_again(str(tmp_path), config, mesh_of(8)) == 0
    assert start_again(str(tmp_path), config, mesh_of(8, 2)) == 1
    other = dataclasses.replace(config, seed=1)
    assert start_again(str(tmp_path), other, mesh_of(8, 2)) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true"),
        lambda patch: patch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_x=1"),
        lambda patch: patch.setattr(fingerprint, "loaded_sources", lambda: "others"),
        lambda patch: patch.setattr(fingerprint, "COMPILERS", ("numpy",)),
        lambda patch: patch.setattr("os.cpu_count", lambda: 1000),
        lambda patch: patch.setattr("platform.python_version", lambda: "3.99"),
    ],
)
def test_a_program_of_another_compiler_or_code_is_not_loaded(
    change, config, tmp_path, mesh_of, monkeypatch
):
    keep(str(tmp_path), config, mesh_of(8))
    with monkeypatch.context() as patch:
        change(patch)
        assert start_again(str(tmp_path), config, mesh_of(8)) == 1
    assert start_again(str(tmp_path), config, mesh_of(8)) == 1


def test_another_option_of_jax_counts_unless_it_is_one_of_the_cache(
    config, tmp_path, mesh_of
):
    keep(str(tmp_path), config, mesh_of(8))
    before = jax.config.values["jax_default_matmul_precision"]
    jax.config.update("jax_default_matmul_precision", "float32")
    try:
        assert start_again(str(tmp_path), config, mesh_of(8)) == 1
    finally:
        jax.config.update("jax_default_matmul_precision", before)
    assert start_again(str(tmp_path), config, mesh_of(8)) == 1
    folder = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", "elsewhere")
    try:
        assert start_again(str(tmp_path), config, mesh_of(8)) == 0
    finally:
        jax.config.update("jax_compilation_cache_dir", folder)


def flip(content):
    return content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]


DAMAGES = {
    "a flipped bit": flip,
    "a cut file": lambda content: content[: len(content) // 2],
    "an empty file": lambda content: b"",
    "another file": lambda content: b"\x80\x04 no program\n" + content,
    "a list": lambda content: b"[1]\n" + content,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_one_warning_and_is_replaced(
    damage, config, tmp_path, mesh_of, capsys
):
    keep(str(tmp_path), config, mesh_of(8))
    path = tmp_path / FOLDER / "small"
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    assert start_again(str(tmp_path), config, mesh_of(8)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {path} is not used: ")
    assert line.endswith("; the program is compiled")
    assert start_again(str(tmp_path), config, mesh_of(8)) == 0
    assert capsys.readouterr().err == ""


def test_nothing_is_unpickled_before_the_checksum_is_right(
    config, tmp_path, mesh_of, monkeypatch, capsys
):
    keep(str(tmp_path), config, mesh_of(8))
    path = tmp_path / FOLDER / "small"
    path.write_bytes(flip(path.read_bytes()))
    monkeypatch.setattr("pickle.loads", pytest.fail)
    assert start_again(str(tmp_path), config, mesh_of(8)) == 1
    assert "its checksum differs" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_one_warning(
    config, tmp_path, mesh_of, capsys
):
    (tmp_path / FOLDER).write_text("a file")
    assert keep(str(tmp_path), config, mesh_of(8)) == {}
    printed = capsys.readouterr().err
    assert printed.count("warning: ") == printed.count("\n")
    assert "is not written" in printed


@pytest.mark.parametrize("index", range(3))
def test_the_last_process_writes(index, config, tmp_path, mesh_of, monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 3)
    monkeypatch.setattr("jax.process_index", lambda: index)
    assert len(keep(str(tmp_path), config, mesh_of(8))) == (index == 2)
    assert (tmp_path / FOLDER).exists() == (index == 2)


@pytest.fixture
def empty_cache(tmp_path):
    """JAX's cache in a new folder, which takes programs that compile in no time."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    jax.config.update(names[0], str(tmp_path / "cache"))
    jax.config.update(names[1], 0.0)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_a_program_from_the_cache_is_not_written(
    config, tmp_path, mesh_of, empty_cache
):
    compiler = Compiler(mesh_of(8), factor=5.0)
    compiler()
    jax.clear_caches()
    kept = KeptPrograms(str(tmp_path), config, mesh_of(8))
    program = kept.get("small", compiler)
    np.testing.assert_array_equal(call(program, mesh_of(8)), expected(5.0))
    assert kept.write() == {}
    # Another one is compiled, and therefore written.
    kept.get("small", Compiler(mesh_of(8), factor=6.0))
    assert len(kept.write()) == 1


def test_a_file_tells_what_it_is_before_it_is_read_whole(config, tmp_path, mesh_of):
    keep(str(tmp_path), config, mesh_of(8))
    first, _ = (tmp_path / FOLDER / "small").read_bytes().split(b"\n", 1)
    assert {*json.loads(first)} == {"identity", "sha256"}


def test_a_file_under_the_name_of_another_program_is_not_loaded(
    config, tmp_path, mesh_of, capsys
):
    keep(str(tmp_path), config, mesh_of(8))
    (tmp_path / FOLDER / "small").rename(tmp_path / FOLDER / "other")
    compiler = Compiler(mesh_of(8), factor=7.0)
    kept = KeptPrograms(str(tmp_path), config, mesh_of(8))
    program = kept.get("other", compiler)
    assert compiler.calls == 1
    np.testing.assert_array_equal(call(program, mesh_of(8)), expected(7.0))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_or_a_folder_in_a_program_s_place_is_one_warning(
    make, config, tmp_path, mesh_of, capsys
):
    (tmp_path / FOLDER).mkdir()
    make(path := tmp_path / FOLDER / "small")
    kept = KeptPrograms(str(tmp_path), config, mesh_of(8))
    assert kept.get("small", lambda: "compiled") == "compiled"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {path} is not used: InputError: it is no file")


def test_a_required_file_that_cannot_be_written_is_an_error(config, tmp_path, mesh_of):
    (tmp_path / FOLDER / "small").mkdir(parents=True)
    kept = KeptPrograms(str(tmp_path), config, mesh_of(8))
    for name in ("small", "other"):
        kept.get(name, Compiler(mesh_of(8)))
    with pytest.raises(InputError, match="compiled lacks small, which cannot be"):
        kept.write(required=True)
    assert {path.name for path in (tmp_path / FOLDER).iterdir()} == {"small", "other"}
    kept.get("other", pytest.fail)  # it was written


def test_a_finished_run_removes_its_programs(config, tmp_path, mesh_of, capsys):
    kept = KeptPrograms(str(tmp_path), config, mesh_of(8))
    kept.get("small", Compiler(mesh_of(8)))
    kept.write()
    assert (tmp_path / FOLDER / "small").exists()
    for _ in range(2):  # also if there are none
        kept.remove()
        assert not (tmp_path / FOLDER).exists()
    assert capsys.readouterr().err == ""
