"""Flags of commands: local paths, config files, and all flags of `main.py`."""

import argparse
import dataclasses
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from align_jax import places
from align_jax.errors import InputError, one_line

if TYPE_CHECKING:  # imported late, so that run_command reports a missing package
    from absl import flags


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """The values of `main.py`'s flags.

    Attributes:
      fields: the literal config (see `align_jax.config`), changed as the flags say.
      diff: the literal config to compare `fields` with, or None.
      workdir: absolute path or URL of the run's folder, or None.
      plan: TPU slice, or "here", to plan the run for; or None.
      teacher: source of the model to embed the training pairs with, or None.
      alternatives: whether the plan also prints the needs of other settings.
      compile: whether to compile the run's programs instead of running it.
      distributed: whether to join the other processes of the run.
    """

    fields: dict[str, Any]
    diff: dict[str, Any] | None
    workdir: str | None
    plan: str | None
    teacher: str | None
    alternatives: bool
    compile: bool
    distributed: bool


def local_path(typed: str) -> pathlib.Path:
    """Reads a flag's value as `places.local_path`; for the `type` of argparse."""
    return _read_flag(places.local_path, typed)


def path_or_url(typed: str) -> pathlib.Path:
    """Reads a flag's value as `places.as_path`; for the `type` of argparse."""
    return _read_flag(places.as_path, typed)


def _read_flag(read: Callable[[str], pathlib.Path], typed: str) -> pathlib.Path:
    """Returns `read(typed)`; turns InputError into the error that argparse prints."""
    try:
        return read(typed)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def read_command_line(argv: list[str]) -> CommandLine:
    """Reads `main.py`'s flags; argv[0] is the program's name.

    Raises:
      InputError: an unknown flag, no --config, not exactly one of --workdir, --plan,
        --teacher and --diff, an empty one of these, --compile without --workdir, an
        unknown config or field, or a value of the wrong type.
    """
    from absl import flags
    from ml_collections import config_flags

    known = flags.FlagValues()
    argv = expand_home(argv)
    configs = [
        config_flags.DEFINE_config_file(name, flag_values=known, sys_argv=argv)
        for name in ("config", "diff")
    ]
    flags.DEFINE_string("workdir", None, "", flag_values=known)
    flags.DEFINE_string("plan", None, "", flag_values=known)
    flags.DEFINE_string("teacher", None, "", flag_values=known)
    flags.DEFINE_bool("alternatives", False, "", flag_values=known)
    flags.DEFINE_bool("compile", False, "", flag_values=known)
    flags.DEFINE_bool("distributed", False, "", flag_values=known)
    flags.mark_flags_as_required(["config"], known)
    ways = ["workdir", "plan", "teacher", "diff"]
    flags.mark_flags_as_mutual_exclusive(ways, True, known)
    fields, diff = parse_flags(known, configs, argv)
    for name in ("workdir", "plan", "teacher"):
        if known[name].value == "":
            raise InputError(f"--{name} is empty; give it a value, see --help")
    if known.compile and known.workdir is None:
        raise InputError(
            "--compile keeps the programs in a run's folder; add --workdir"
        )
    assert fields is not None  # the flag is required
    return CommandLine(
        fields=fields,
        diff=diff,
        workdir=None if known.workdir is None else places.resolve(known.workdir),
        plan=known.plan,
        teacher=known.teacher,
        alternatives=known.alternatives,
        compile=known.compile,
        distributed=known.distributed,
    )


def read_build_line(argv: Sequence[str]) -> tuple[dict[str, Any], pathlib.Path]:
    """Reads the flags --config and --workdir of a command that makes data.

    Args:
      argv: the program's name and its arguments.

    Returns:
      The literal config, changed as the flags say, and the path of the workdir.

    Raises:
      InputError: an unknown or missing flag, an unknown config or field, a value of the
        wrong type, or a workdir that is a URL.
    """
    from absl import flags
    from ml_collections import config_flags

    known, argv = flags.FlagValues(), expand_home(argv)
    config = config_flags.DEFINE_config_file("config", flag_values=known, sys_argv=argv)
    flags.mark_flag_as_required("config", known)
    workdir = flags.DEFINE_string("workdir", None, "", flag_values=known, required=True)
    (fields,) = parse_flags(known, [config], argv)
    return fields or {}, places.local_path(workdir.value)


def expand_home(argv: Sequence[str]) -> list[str]:
    """Returns the arguments with the home folder for ~ in --config and --diff."""
    return [
        re.sub(r"^(--?(?:config|diff)=)(~.*)", _resolve_second, argument)
        for argument in argv
    ]


def _resolve_second(found: re.Match[str]) -> str:
    return found[1] + places.resolve(found[2])


def parse_flags(
    known: "flags.FlagValues",
    configs: Sequence["flags.FlagHolder"],
    argv: Sequence[str],
) -> list[dict[str, Any] | None]:
    """Parses a command line whose flags may change fields of configs.

    Args:
      known: the flags of the command; they receive their values.
      configs: the flags in `known` that name a config file.
      argv: the program's name and its arguments.

    Returns:
      For each of `configs` its literal config, or None if the flag is not given.

    Raises:
      InputError: an unknown flag, config or field, an argument that is no flag, a
        required flag that is missing, or a value of the wrong type.
    """
    from absl import flags

    try:
        if surplus := known(argv)[1:]:
            raise InputError(
                f"unexpected arguments: {' '.join(surplus)}; a flag begins with --"
            )
        return [_literal(flag.value) for flag in configs]
    except InputError:
        raise
    except (AttributeError, KeyError) as error:
        if "get_config" in str(error):
            flag = re.sub(r"module '(\w+)_config' .*", r"--\1", str(error))
            raise InputError(f"the file of {flag} has no get_config()") from error
        found = re.search(r"\w+", str(error))
        name = found.group() if found else str(error)
        meant = re.search(r'mean "(\w+)"', str(error))
        hint = f"did you mean {meant[1]!r}? If not, " if meant else ""
        raise InputError(
            f"the config file has no field {name!r}; {hint}add it"
            " to the file, since flags set only fields that are there"
        ) from error
    except IndexError as error:
        raise InputError(
            f"bad flags: {error}; give the whole tuple, as in --config.NAME='(1, 2)'"
        ) from error
    except (flags.Error, TypeError, ValueError, OSError) as error:
        reason = one_line(error)
        reason = re.sub(r"Traceback .*?\w+Error: ", "", reason)  # from the config file
        raise InputError(f"bad flags: {reason}") from error


def _literal(config: Any) -> dict[str, Any] | None:
    """Converts the result of `get_config` to a literal config; None stays None."""
    from ml_collections import ConfigDict

    if config is None or isinstance(config, ConfigDict):
        return config and config.to_dict()
    raise InputError(
        f"get_config() of a config file returned a {type(config).__name__}; wanted a"
        " ConfigDict of ml_collections"
    )
