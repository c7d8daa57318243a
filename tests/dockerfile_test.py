"""The Dockerfile: in `make test` as far as it goes without Docker."""

import functools
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DEVICES = ("cpu", "gpu", "tpu")


@functools.cache
def instructions() -> list[tuple[str, str]]:
    """Reads the instructions of the Dockerfile, without their options."""
    text = (ROOT / "launch/Dockerfile").read_text()
    lines = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    pairs = (line.split(maxsplit=1) for line in lines.splitlines() if line)
    return [(name, re.sub(r"^(--\S+\s+)+", "", rest)) for name, rest in pairs]


def copied(before: str = "") -> list[str]:
    """Names the sources of COPY, up to the first instruction that has a word."""
    sources: list[str] = []
    for name, rest in instructions():
        if before and before in rest:
            break
        if name == "COPY":
            sources += rest.split()[:-1]
    return sources


def copy_files(sources: list[str], folder: pathlib.Path) -> None:
    for source in sources:
        target = folder / source
        if (ROOT / source).is_dir():
            caches = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / source, target, ignore=caches, dirs_exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, target)


def pip_of(device: str, folder: pathlib.Path) -> subprocess.CompletedProcess[str]:
    """Executes the instruction that installs, with a pip that prints its arguments."""
    (command,) = [rest for name, rest in instructions() if "pip install" in rest]
    pip = folder / "pip"
    pip.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    pip.chmod(0o755)
    return subprocess.run(
        ["/bin/sh", "-c", command],
        env={"PATH": f"{folder}:/usr/bin:/bin", "DEVICE": device},
        capture_output=True,
        text=True,
    )


def packages_of(extras: set[str]) -> set[str]:
    """Names the packages that the project and some of its extras require."""
    listed = [*PROJECT["dependencies"]]
    for extra in extras:
        listed += PROJECT["optional-dependencies"][extra]
    found = set()
    for requirement in map(Requirement, listed):
        if requirement.name == PROJECT["name"]:
            found |= packages_of(requirement.extras)
        else:
            found.add(canonicalize_name(requirement.name))
    return found


@pytest.mark.parametrize("device", DEVICES)
def test_pip_installs_extras_that_exist_in_exact_versions(device, tmp_path):
    done = pip_of(device, tmp_path)
    install, editable, target, flag, constraints = done.stdout.splitlines()
    assert (install, editable, flag) == ("install", "-e", "-c")
    extras = set(re.fullmatch(r"\.\[([\w,]+)\]", target)[1].split(","))
    assert extras == {"train", "gs"} | ({device} - {"cpu"})
    lines = (ROOT / constraints).read_text().splitlines()
    exact = {canonicalize_name(line.partition("==")[0]) for line in lines}
    assert packages_of(extras) <= exact
    assert constraints in copied(before="pip install")


@pytest.mark.parametrize("device", ["", "tpus", "cpu; touch x"])
def test_an_unknown_device_ends_the_build(device, tmp_path):
    done = pip_of(device, tmp_path)
    assert done.returncode == 1
    assert f"DEVICE is {device}; wanted cpu, gpu or tpu" in done.stderr
    assert not done.stdout


def test_its_python_is_the_one_of_the_constraints():
    (base,) = [rest for name, rest in instructions() if name == "FROM"]
    version = re.search(r"Python ([\d.]+)", (ROOT / "constraints.txt").read_text())[1]
    assert base.startswith(f"python:{version}-")


def test_docker_gets_every_file_that_is_copied_and_no_more():
    rules = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert rules[0] == "*"
    sent = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert sent == {source.partition("/")[0] for source in copied()}
    assert all((ROOT / source).exists() for source in copied())


def test_the_files_before_the_install_are_all_that_pip_reads(tmp_path):
    copy_files(copied(before="pip install"), tmp_path)
    build = "from setuptools.build_meta import *; prepare_metadata_for_build_wheel('.')"
    subprocess.run(
        [sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True
    )
    (metadata,) = tmp_path.glob("*.dist-info/METADATA")
    assert "Provides-Extra: tpu" in metadata.read_text()


def test_the_copied_files_read_every_training_config(tmp_path):
    copy_files(copied(), tmp_path)
    entry = json.loads(next(r for name, r in instructions() if name == "ENTRYPOINT"))
    assert entry == ["python", "main.py"]
    flags = [
        "--config=configs/quickstart.py",
        "--diff=configs/pretrain_align_b7_base.py",
    ]
    done = subprocess.run(
        [sys.executable, "-P", *entry[1:], *flags],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert "total_steps" in done.stdout


def test_runs_do_not_belong_to_root():
    names = [name for name, _ in instructions()]
    (user,) = [rest for name, rest in instructions() if name == "USER"]
    made, default = (rest for _, rest in instructions()[names.index("USER") - 2 :][:2])
    assert (user, default) == ("$RUN_AS", "RUN_AS=align")
    assert re.search(r"useradd .*--uid 1000 align\b", made)
    assert "chown align: runs" in made
    assert "RUN" not in names[names.index("USER") :]


@pytest.mark.docker
def test_the_image_is_built_and_trains_without_root():
    build = ["make", "docker", "DEVICE=cpu"]
    subprocess.run(build, cwd=ROOT, check=True)

    def run(*flags: str) -> str:
        command = ["docker", "run", "--rm", *flags]
        return subprocess.run(
            command, check=True, capture_output=True, text=True
        ).stdout

    assert "--workdir=DIR" in run("align-jax:cpu", "--help")
    assert run("--entrypoint", "id", "align-jax:cpu", "-u").strip() == "1000"
    loads = "import align_jax.train, jax; print(jax.devices()[0].platform)"
    assert run("--entrypoint", "python", "align-jax:cpu", "-c", loads) == "cpu\n"
    refused = subprocess.run([*build[:2], "DEVICE=tpus"], cwd=ROOT, capture_output=True)
    assert refused.returncode
    assert b"DEVICE is tpus; wanted cpu, gpu or tpu" in refused.stderr
