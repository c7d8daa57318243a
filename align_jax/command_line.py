"""Flags of commands that take a config file, and those of `main.py`."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from align_jax import places
from align_jax.errors import InputError, one_line


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """The values of `main.py`'s flags.

    Attributes:
      fields: the literal config (see `align_jax.config`), changed as the flags say.
      diff: the literal config to compare `fields` with, or None.
      workdir: absolute path or URL of the run's folder, or None.
      plan: TPU slice, or "here", to plan the run for; or None.
      alternatives: whether the plan also prints the needs of other settings.
      distributed: whether to join the other processes of the run.
    """

    fields: dict[str, Any]
    diff: dict[str, Any] | None
    workdir: str | None
    plan: str | None
    alternatives: bool
    distributed: bool


def read_command_line(argv: list[str]) -> CommandLine:
    """Reads `main.py`'s flags; argv[0] is the program's name.

    Raises:
      InputError: an unknown flag, no --config, not exactly one of --workdir, --plan and
        --diff, an unknown config or field, or a value of the wrong type.
    """
    argv = expand_home(argv)
    known = flags.FlagValues()
    configs = [
        config_flags.DEFINE_config_file(name, flag_values=known, sys_argv=argv)
        for name in ("config", "diff")
    ]
    flags.DEFINE_string("workdir", None, "", flag_values=known)
    flags.DEFINE_string("plan", None, "", flag_values=known)
    flags.DEFINE_bool("alternatives", False, "", flag_values=known)
    flags.DEFINE_bool("distributed", False, "", flag_values=known)
    flags.mark_flags_as_required(["config"], known)
    flags.mark_flags_as_mutual_exclusive(["workdir", "plan", "diff"], True, known)
    fields, diff = parse_flags(known, configs, argv)
    assert fields is not None  # the flag is required
    return CommandLine(
        fields=fields,
        diff=diff,
        workdir=None if known.workdir is None else places.resolve(known.workdir),
        plan=known.plan,
        alternatives=known.alternatives,
        distributed=known.distributed,
    )


def expand_home(argv: Sequence[str]) -> list[str]:
    """Replaces ~ in the paths of config files, as no shell does after `--config=`."""
    found = [re.fullmatch(r"(--?(?:config|diff)=)(~.*)", argument) for argument in argv]
    return [
        match[1] + places.resolve(match[2]) if match else argument
        for match, argument in zip(found, argv, strict=True)
    ]


def parse_flags(
    known: flags.FlagValues, configs: Sequence[flags.FlagHolder], argv: Sequence[str]
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
    try:
        if surplus := known(argv)[1:]:
            raise InputError(
                f"unexpected arguments: {' '.join(surplus)}; a flag begins with --"
            )
        return [flag.value and flag.value.to_dict() for flag in configs]
    except (AttributeError, KeyError) as error:
        found = re.search(r"\w+", str(error))
        name = found.group() if found else str(error)
        meant = re.search(r'mean "(\w+)"', str(error))
        hint = f"did you mean {meant[1]!r}?" if meant else "see the config file"
        raise InputError(f"the config has no field {name!r}; {hint}") from error
    except (flags.Error, TypeError, ValueError, OSError) as error:
        reason = one_line(error)
        reason = re.sub(r"Traceback .*?\w+Error: ", "", reason)  # from the config file
        raise InputError(f"bad flags: {reason}") from error
