"""Runs a config: `python main.py --config=configs/X.py --workdir=DIR`.

Any field can be changed on the command line, as in `--config.total_steps=100`.
`--plan=v5e:16x16` instead of `--workdir` prints the memory and the work of a training
step on that TPU slice, and ends with exit code 1 if it does not fit. `--plan=here` is
for this machine's devices. `--alternatives` adds the needs of other settings.
`--compile` with `--workdir` compiles the run's programs and keeps them in its folder.
`--teacher=MODEL` embeds the training pairs with a trained model, for distillation.
`--diff=configs/Y.py` prints the fields in which Y differs. `--distributed` joins the
processes of a pod or a cluster.

Bad input prints one line on stderr and ends with exit code 2. Ctrl-C ends with 130, and
a notice to stop (SIGTERM, after which the state is saved) with 143.
"""

import gc
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from align_jax.errors import InputError, end_unawaited, run_command
from align_jax.progress import doing


def kinds_of_runs() -> dict[str, Callable[[dict[str, Any], str], None]]:
    """Returns the functions (fields, workdir) that run a config, by its field `run`.

    The imports stand here because they load TensorFlow, which `start` must precede.
    """
    from align_jax.evaluate import evaluate
    from align_jax.random_search import random_search
    from align_jax.runs.lost_time import process_started
    from align_jax.train import train
    from align_jax.training.training_runs import TRAINING

    return {
        **dict.fromkeys(TRAINING, partial(train, begun=process_started())),
        "evaluate": evaluate,
        "random_search": random_search,
    }


def run(argv: list[str]) -> int:
    """Runs, plans or compares a config, as the flags say; returns the exit code."""
    from align_jax.command_line import read_command_line
    from align_jax.config import choose, differing_fields
    from align_jax.devices.runtime import start

    flags = read_command_line(argv)
    fields = flags.fields
    if flags.diff is not None:
        print("\n".join(differing_fields(fields, flags.diff)))
        return 0
    with doing("loading JAX and TensorFlow", sys.stderr.isatty()):
        gc.disable()  # imports leave no garbage
        start(flags.distributed)  # before the import of TensorFlow, which writes logs
        programs = kinds_of_runs()
        gc.freeze()  # what is imported stays, so that collections in traces are short
        gc.enable()
    program = choose(programs, fields.get("run", "absent"), "config.run")
    if flags.workdir is not None and not flags.compile:
        program(fields, flags.workdir)
        return 0
    from align_jax.training.training_runs import TRAINING

    if fields["run"] not in TRAINING:
        given = {"--teacher": flags.teacher, "--plan": flags.plan}
        flag = next((n for n in given if given[n] is not None), "--compile")
        raise InputError(f"{flag} is for training, not for {fields['run']!r}")
    if flags.teacher is not None:
        from align_jax.teach import teach

        teach(fields, flags.teacher)
        return 0
    if flags.workdir is not None:
        from align_jax.compile import compile_run

        compile_run(fields, flags.workdir)
        return 0
    from align_jax.plan import plan

    assert flags.plan is not None  # one of the flags is given
    return 0 if plan(fields, flags.plan, flags.alternatives) else 1


def main() -> int:
    """Runs the command line, or prints the help; returns the exit code."""
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
        return 0
    return end_unawaited(run_command("main.py", partial(run, sys.argv)))


if __name__ == "__main__":
    sys.exit(main())
