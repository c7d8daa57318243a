"""The package as users install it: the wheel's files, requirements and use."""

import ast
import email
import importlib.metadata
import itertools
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import numpy as np
import pytest

import align_jax
from align_jax.errors import missing_package, run_command
from tests import tiny
from tests.imports_test import imports_of

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Builds the wheel and the sdist in a copy of the sources; returns its folder."""
    folder = tmp_path_factory.mktemp("built")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "align_jax", folder / "align_jax", ignore=caches)
    build = "from setuptools.build_meta import *; build_wheel('.'); build_sdist('.')"
    subprocess.run(
        [sys.executable, "-c", build], cwd=folder, check=True, capture_output=True
    )
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    (path,) = built.glob("align_jax-*.whl")
    return path


def requirements_in(wheel: pathlib.Path) -> list[str]:
    with zipfile.ZipFile(wheel) as file:
        (name,) = [name for name in file.namelist() if name.endswith("/METADATA")]
        metadata = email.message_from_bytes(file.read(name))
    return metadata.get_all("Requires-Dist", [])


def test_the_wheel_holds_every_file_of_the_package_and_no_other(built, wheel):
    files = {
        path.relative_to(built).as_posix()
        for path in (built / "align_jax").rglob("*")
        if path.is_file()
    }
    assert {"align_jax/py.typed", "align_jax/input/bert_characters.txt"} <= files
    with zipfile.ZipFile(wheel) as file:
        names = {n for n in file.namelist() if ".dist-info/" not in n}
    assert names == files
    (archive,) = built.glob("align_jax-*.tar.gz")
    with tarfile.open(archive) as file:
        assert files <= {name.partition("/")[2] for name in file.getnames()}


def test_each_package_has_its_range_in_one_place():
    """Without that, the extras and requirements.txt can ask for different versions."""
    extras = PROJECT["optional-dependencies"]
    everything = [*PROJECT["dependencies"], *itertools.chain(*extras.values())]
    ranged = [re.match(r"[\w-]+", line)[0] for line in everything if ">=" in line]
    assert len(ranged) == len({name.lower().replace("_", "-") for name in ranged})
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    (line,) = [line for line in lines if not line.startswith("#")]
    installed = re.fullmatch(r"-e \.\[([\w,]+)\]", line)[1].split(",")
    for name in installed:  # grows by the extras that these extras hold
        for held in re.findall(r"align-jax\[([\w,]+)\]", " ".join(extras[name])):
            installed += held.split(",")
    suites = (
        "benchmarks browser convert docs gpu gs languages nsfw onnx spark tpu".split()
    )
    assert extras.keys() == {*installed, *suites, "trackio", "wandb"}


def test_a_missing_package_names_the_extra_that_brings_it(wheel, monkeypatch, capsys):
    lines = requirements_in(wheel)
    monkeypatch.setattr(importlib.metadata, "requires", {"align-jax": lines}.get)
    for path in (ROOT / "align_jax").rglob("*.py"):
        for name in {name.partition(".")[0] for name in imports_of(path)}:
            if name not in {"align_jax", *sys.stdlib_module_names}:
                assert "install align-jax" in missing_package(name), (path, name)
    for name, extra in {
        "fastapi": "[search]",
        "starlette.types": "[search]",
        "matplotlib": "[report]",
        "tensorflow_text": "[train]",
        "yaml": "[train]",
        "pyarrow": "[embed]",
        "array_record": "[train]",
        "ibis": "[corpus]",
        "torch": "[convert]",
        "huggingface_hub": "[hub]",
        "onnx": "[onnx]",
        "wandb": "[wandb]",
        "PIL": "",
    }.items():
        wanted = f"install align-jax{extra}, in a checkout by `pip install -e '.{extra}"
        assert wanted in missing_package(name)
    assert missing_package("unheard_of").endswith("requirements.txt`")

    def command():
        raise ModuleNotFoundError("no", name="lancedb")

    assert run_command("x", command) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("x: package 'lancedb' is missing: install align-jax[sear")
    assert printed.count("\n") == 1


def test_an_import_error_that_names_no_package_is_one_line(monkeypatch, capsys):
    def command():
        raise ImportError("libcuda.so:\n  cannot open")

    assert run_command("x", command) == 2
    assert capsys.readouterr().err.startswith("x: libcuda.so: cannot open: run `make")


def install(wheel: pathlib.Path, extra: str, folder: pathlib.Path) -> str:
    """Installs the wheel into a new environment; returns the path of its Python."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt"]
    subprocess.run([*pip, f"{wheel}[{extra}]"], check=True)
    return python


USE = """
import importlib.util
import pathlib

import numpy as np

import align_jax

assert "venv" in align_jax.__file__, align_jax.__file__
for name in ("tensorflow", "tensorflow_text", "clu", "matplotlib", "torch"):
    assert importlib.util.find_spec(name) is None, name
model = align_jax.load("runs/quickstart", batch_size=4)
pictures = sorted(pathlib.Path("pictures").iterdir())
np.save("images.npy", model.encode_images(pictures))
np.save("texts.npy", model.encode_texts(["Red left", "blüe, top 猫"]))
"""

TYPED = """
import align_jax

model = align_jax.load("runs/quickstart", batch_size=4)
reveal_type(model.encode_texts(["a"]))
align_jax.load(3)
"""


@pytest.mark.wheel
def test_an_empty_environment_loads_embeds_and_searches(wheel, tmp_path, monkeypatch):
    python = install(wheel, "search", tmp_path / "venv")
    folder = tmp_path / "empty"
    (folder / "pictures").mkdir(parents=True)
    for name in tiny.NAMES:
        (folder / "pictures" / f"{name}.png").write_bytes(tiny.draw(name, 0))
    shutil.copy(folder / "pictures/red left.png", folder / "shamrock.png")
    tiny.write_model(folder / "model")
    clean = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")
    }
    clean |= {"HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}

    def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [python, *arguments], cwd=folder, env=clean, capture_output=True, text=True
        )
        assert done.returncode == code, done.stderr
        return done

    run("-m", "align_jax.convert", "--from=model", "--to=runs/quickstart")
    run("-c", USE)
    monkeypatch.chdir(folder)
    model = align_jax.load("model", batch_size=4)
    pictures = sorted((folder / "pictures").iterdir())
    for name, wanted in {
        "images": model.encode_images(pictures),
        "texts": model.encode_texts(["Red left", "blüe, top 猫"]),
    }.items():
        found = np.load(folder / f"{name}.npy")
        np.testing.assert_allclose(found, wanted, atol=1e-6, err_msg=name)

    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    names = re.search(r'\["shamrock".*?\]', example)[0]
    wanted = model.classify(["shamrock.png"], ast.literal_eval(names), ["{}"])
    printed = np.fromstring(run("-c", example).stdout.strip("[]\n"), sep=" ")
    np.testing.assert_allclose(printed, wanted[0], atol=1e-6)

    search = ("-m", "align_jax.search")
    flags = ("--checkpoint=runs/quickstart", "--images=pictures", "--out=index")
    assert f"{len(pictures)} added" in run(*search, "build", *flags).stdout
    hits = run(*search, "query", "index", "--image=shamrock.png", "--limit=1").stdout
    assert hits.split()[:3] == ["1.0000", "red", "left.png"]
    refused = run("-m", "align_jax.report", "runs", code=2).stderr
    assert "package 'matplotlib' is missing: install align-jax[report]" in refused
    assert refused.count("\n") == 1

    (folder / "typed.py").write_text(TYPED)
    mypy = [sys.executable, "-m", "mypy", "--python-executable", python, "typed.py"]
    told = subprocess.run(mypy, cwd=folder, env=clean, capture_output=True, text=True)
    assert "Revealed type is" in told.stdout
    assert "ndarray" in told.stdout
    assert 'Argument 1 to "load" has incompatible type "int"' in told.stdout
    assert "Found 1 error" in told.stdout
