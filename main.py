"""Runs a config: `python main.py --config=configs/X.py --workdir=DIR`.

`--plan=v5e:16x16` instead of a workdir prints what the run needs on that slice, with
`--alternatives` also what other settings would; `--distributed` joins the processes of
a pod or a cluster.
Any field can be changed on the command line, as in `--config.total_steps=100`. Bad
input ends in one line on stderr and exit code 2, an interruption in 130, a notice to
stop (SIGTERM, after which the state is saved) in 143.
"""

import re
import sys
from typing import Any


def train(fields: dict[str, Any], workdir: str) -> None:
    """Trains a dual encoder or a classifier, or continues its training."""
    from align_jax.train import train

    train(fields, workdir)


def evaluate(fields: dict[str, Any], workdir: str) -> None:
    """Evaluates a trained model."""
    from align_jax.evaluate import evaluate

    evaluate(fields, workdir)


def search(fields: dict[str, Any], workdir: str) -> None:
    """Runs a random search over training runs, or continues it."""
    from align_jax.search import search

    search(fields, workdir)


RUNS = {"pretrain": train, "classify": train, "evaluate": evaluate, "search": search}


def run(argv: list[str]) -> int:
    """Starts the run that the config's field `run` names; returns the exit code."""
    from absl import flags
    from ml_collections import config_flags

    from align_jax.config import choose
    from align_jax.errors import InputError
    from align_jax.runtime import start

    known = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", flag_values=known)
    workdir = flags.DEFINE_string("workdir", None, "", flag_values=known)
    target = flags.DEFINE_string("plan", None, "", flag_values=known)
    alternatives = flags.DEFINE_bool("alternatives", False, "", flag_values=known)
    distributed = flags.DEFINE_bool("distributed", False, "", flag_values=known)
    flags.mark_flags_as_required(["config"], known)
    flags.mark_flags_as_mutual_exclusive(["workdir", "plan"], True, known)
    try:
        known(argv)
        fields = config.value.to_dict()
    except (AttributeError, KeyError) as error:
        name = re.search(r"\w+", str(error)).group()
        meant = re.search(r'mean "(\w+)"', str(error))
        hint = f"did you mean {meant[1]!r}?" if meant else "see the config file"
        raise InputError(f"the config has no field {name!r}; {hint}") from error
    except (flags.Error, TypeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        reason = re.sub(r"Traceback .*?\w+Error: ", "", reason)  # of a config file
        raise InputError(f"bad flags: {reason}") from error
    chosen = choose(RUNS, fields.get("run", "absent"), "config.run")
    start(distributed.value)
    if target.value is None:
        chosen(fields, workdir.value)
        return 0
    if chosen is not train:
        raise InputError(f"--plan is for training, not for {fields['run']!r}")
    from align_jax.plan import plan

    return 0 if plan(fields, target.value, alternatives.value) else 1


def main() -> int:
    """Runs with the command line's flags; returns the exit code."""
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
        return 0
    try:
        return run(sys.argv)
    except ModuleNotFoundError as error:
        message = (
            f"package {error.name!r} is missing: run `make .venv`, or `pip install"
        )
        return _fail(f"{message} -r requirements.txt`", 2)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command continues", 130)
    except Exception as error:
        return _explain(error)


def _explain(error: Exception) -> int:
    """Prints what a user can mend and returns its exit code; raises any other error."""
    from align_jax.errors import STOPPED, InputError, Preempted

    if isinstance(error, Preempted):
        return _fail(f"{error}; the same command continues", STOPPED)
    if isinstance(error, InputError | FloatingPointError):
        return _fail(str(error), 2)
    raise error


def _fail(message: str, code: int) -> int:
    print(f"main.py: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
