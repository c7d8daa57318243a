"""Checks that a documented command could work, without doing its work."""

import argparse
import ast
import dataclasses
import functools
import importlib
import importlib.util
import os
import pathlib
import re
import runpy
import subprocess
import sys
import tomllib
import types
import typing
import warnings
from collections.abc import Collection, Sequence
from typing import Any

import pytest

import main
from align_jax.command_line import read_command_line
from align_jax.errors import InputError
from align_jax.evaluation.runner import EvaluateConfig
from align_jax.input.preprocess import PreprocessConfig
from align_jax.models import towers
from align_jax.models.bert import BertConfig
from align_jax.models.dual_encoder import ModelConfig
from align_jax.models.efficientnet import EfficientNetConfig
from align_jax.report.run_kinds import kind_of
from align_jax.sweep.__main__ import read_flags as read_sweep_flags
from align_jax.sweep.config import open_sweep
from align_jax.training.classify_config import ClassifyConfig
from align_jax.training.pretrain_config import PretrainConfig
from align_jax.training.random_search_config import SearchConfig
from align_jax.weights import starts
from align_jax.weights.folder import Weights
from benchmarks.recipes import read_flags as read_recipes_flags
from data.corpus.config import CorpusConfig
from data.curation.config import CurationConfig

ROOT = pathlib.Path(__file__).parents[1]
OURS = ("align_jax", "benchmarks", "configs", "data", "docs", "launch", "tests")
FILE = re.compile(rf"(?:^|=)((?:{'|'.join(OURS)})/[^:]*)")
PYTHON = ("python", ".venv/bin/python")
PIP = re.compile(r"(\.venv[\w-]*/bin/)?pip")  # also of an environment beside ours
# Programs of others. Only the names of our files in their arguments are checked.
OTHERS = """
    apt-get docker export gcloud hf img2dataset kubectl sbatch sky source tensorboard
    tfds xpk
""".split()

CONFIGS = (
    *(PretrainConfig, ClassifyConfig, EvaluateConfig, SearchConfig),
    *(CorpusConfig, CurationConfig),
)
TOWERS = {
    name: typing.Union[*(config for config, _ in kinds.values())]
    for name, kinds in towers.TOWERS.items()
}


# The weights that `describe_start` reads for the FOLDER of a documented command.
STARTED = Weights(
    "dual_encoder",
    ModelConfig(EfficientNetConfig(), BertConfig.smallest()),
    {},
    PreprocessConfig(),
)


class Captured(BaseException):
    """Ends a program at the point where its work would begin."""


def capture(*arguments: Any) -> None:
    raise Captured(*arguments)


def start(module: str, arguments: Sequence[str] = ()) -> Any:
    """Runs `python -m module` up to its flags' parser or the build; returns that."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        for method in ("parse_args", "parse_known_args"):
            patch.setattr(argparse.ArgumentParser, method, capture)
        builder = types.SimpleNamespace(build=capture)
        patch.setitem(sys.modules, "data.corpus.builder", builder)
        curator = types.SimpleNamespace(curate=capture)
        patch.setitem(sys.modules, "data.curation.curator", curator)
        patch.setattr(sys, "argv", [module, *arguments])
        warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except Captured as captured:
            return captured.args[0]
    raise InputError(f"{module} reads no flags")


@functools.cache
def parser_of(module: str) -> argparse.ArgumentParser:
    return start(module)


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    flags = {*parser._option_string_actions}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            flags |= {f for p in action.choices.values() for f in flags_of(p)}
    return flags


def check_main(arguments: Sequence[str]) -> None:
    """Compares two configs, or reads a run's config with its changes."""
    if any(argument.startswith("--diff") for argument in arguments):
        assert main.run(["main.py", *arguments]) == 0
        return
    with pytest.MonkeyPatch.context() as patch:  # the FOLDER of a model is a small one
        patch.setattr(starts, "open_weights", lambda source: STARTED)
        patch.setattr(starts, "_find_tokenizer", "FOLDER/tokenizer.json".format)
        fields = read_command_line(["main.py", *arguments]).fields
    kind_of(fields).check(fields, "config")


def check_module(module: str, arguments: Sequence[str], whole: bool) -> None:
    """Parses a command's flags by its parser, or looks up the names of its flags."""
    if importlib.util.find_spec(module) is None:
        raise InputError(f"no module {module}")
    given = {a.partition("=")[0] for a in arguments if a.startswith("--")}
    if module.partition(".")[0] not in OURS:
        return
    if module in ("data.build", "data.curate"):  # their flags are absl's
        if whole:
            start(module, arguments)
    elif module == "benchmarks.ahead":  # gives the flags of others to the step
        if unknown := given - flags_of(parser_of(module)):
            check_module("benchmarks.step", sorted(unknown), whole=False)
    elif module == "align_jax.sweep" and whole:
        flags = read_sweep_flags(arguments)
        for sweep in flags.sweep:
            open_sweep(sweep, flags.workdir, flags.further)
    elif module == "benchmarks.recipes" and whole:
        read_recipes_flags(arguments)
    elif whole:
        parser_of(module).parse_args(arguments)
    elif unknown := given - flags_of(parser_of(module)):
        raise InputError(f"{module} has no flag {', '.join(unknown)}")


@functools.cache
def check_target(*targets: str) -> None:
    """Lets make print what it would run."""
    command = ["make", "-n", "PYTHON=python3", "NEWEST=python3", *targets]
    subprocess.run(command, check=True, capture_output=True)


def check_file(word: str, made: Collection[str] = ()) -> None:
    """Raises InputError for a file of ours that neither is here nor is made."""
    found = FILE.search(word)
    if found and found[1] not in made and not (ROOT / found[1]).exists():
        raise InputError(f"no file {found[1]}")


def has_field(config: Any, names: Sequence[str]) -> bool:
    """Whether a config of some class can have the field of a dotted path."""
    if not names or config is dict:
        return True
    if not dataclasses.is_dataclass(config):
        return False
    kind = typing.get_type_hints(config).get(names[0])
    kind = TOWERS.get(names[0], kind)
    if kind is None:
        return False
    if typing.get_origin(kind) is dict:  # of named sub-configs
        return has_field(typing.get_args(kind)[1], names[2:])
    return any(has_field(part, names[1:]) for part in typing.get_args(kind) or [kind])


def check_field(path: str) -> None:
    """Raises InputError for a dotted path that is no field of any config."""
    if not any(has_field(config, path.split(".")) for config in CONFIGS):
        raise InputError(f"no config has the field {path}")


def check_command(
    words: Sequence[str], made: Collection[str] = (), whole: bool = True
) -> None:
    """Raises an error for a command that cannot work on any machine.

    Args:
      words: the command.
      made: files that the reader makes before.
      whole: whether it can be typed as it is; else required flags may be missing.
    """
    for word in words:
        check_file(word, made)
    while re.match(r"\w+=", words[0]):
        words = words[1:]
    program, *arguments = words
    if program == "make":
        check_target(*arguments)
    elif program in PYTHON and arguments[0] == "-m":
        check_module(arguments[1], arguments[2:], whole)
    elif program in PYTHON and arguments[0] == "-c":
        ast.parse(arguments[1])
    elif program in PYTHON and arguments[0] == "main.py":
        check_main(arguments[1:])
    elif PIP.fullmatch(program):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for extra in re.findall(r"\.\[(\w+)\]", " ".join(arguments)):
            if extra not in project["optional-dependencies"]:
                raise InputError(f"no extra {extra}")
    elif program not in OTHERS and not os.access(ROOT / program, os.X_OK):
        raise InputError(f"no program {program}")


def check_python(source: str, made: Collection[str] = ()) -> None:
    """Compiles a block, and looks up the names that it imports."""
    modules = {name.removesuffix(".py").replace("/", ".") for name in made}
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ImportFrom) or node.module in {None, *modules}:
            continue
        module = importlib.import_module(str(node.module))
        for alias in node.names:
            name = f"{node.module}.{alias.name}"
            if name in modules or hasattr(module, alias.name):
                continue
            if not hasattr(module, "__path__") or not importlib.util.find_spec(name):
                raise InputError(f"there is no {name}")
