"""The flags of `main.py`: a config, its changed fields, and what to do with it."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from absl import flags
from ml_collections import config_flags

from align_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What the flags say.

    Attributes:
      fields: the config, literal, with the flags' changes.
      diff: another config to compare it with, or None.
      workdir: the run's folder, or None.
      plan: a slice to plan the run for, or None.
      alternatives: whether the plan tells other settings, too.
      distributed: whether to join the other processes of the run.
    """

    fields: Mapping[str, Any]
    diff: Mapping[str, Any] | None
    workdir: str | None
    plan: str | None
    alternatives: bool
    distributed: bool


def read_command_line(argv: list[str]) -> CommandLine:
    """Reads `main.py`'s flags; argv[0] is the program's name.

    Raises:
      InputError: a flag, config or field that there is not, or a value of another type.
    """
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
    try:
        known(argv)
        fields, diff = (flag.value and flag.value.to_dict() for flag in configs)
    except (AttributeError, KeyError) as error:
        name = re.search(r"\w+", str(error)).group()
        meant = re.search(r'mean "(\w+)"', str(error))
        hint = f"did you mean {meant[1]!r}?" if meant else "see the config file"
        raise InputError(f"the config has no field {name!r}; {hint}") from error
    except (flags.Error, TypeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        reason = re.sub(r"Traceback .*?\w+Error: ", "", reason)  # of a config file
        raise InputError(f"bad flags: {reason}") from error
    return CommandLine(
        fields,
        diff,
        known.workdir,
        known.plan,
        known.alternatives,
        known.distributed,
    )
