"""Compiles the programs of a training run and keeps them in its folder.

    python main.py --config=configs/X.py --workdir=DIR --compile

The run then starts without compiling, on devices of the same type and number.
"""

from functools import partial
from typing import Any

import jax

from align_jax.config import write_config
from align_jax.devices.mesh import make_mesh
from align_jax.devices.runtime import reuse_memory
from align_jax.report.run_kinds import check_workdir, fill_defaults
from align_jax.runs import workdir as folder
from align_jax.training.kept_programs import FIRST_STATE, KeptPrograms
from align_jax.training.parameter_choice import check_parameters
from align_jax.training.phase_programs import PhasePrograms
from align_jax.training.train_state import compile_draws
from align_jax.training.training_runs import read_run_config


def compile_run(fields: dict[str, Any], workdir: str) -> None:
    """Compiles a run's first state and step, and prints the sizes of their files.

    Programs that the folder holds already are left as they are. The run's data is not
    read, and nothing is trained.

    Args:
      fields: the literal config of a training run; its `run` is a key of `TRAINING`.
      workdir: path or URL of the run's folder.

    Raises:
      InputError: bad fields or workdir, another run holds its lock, or a program cannot
        be written.
    """
    config = read_run_config(fields)
    reuse_memory()
    # A program from JAX's cache could not be written, see `KeptPrograms.get`.
    jax.config.update("jax_enable_compilation_cache", False)
    check_workdir(workdir, fields)
    folder.check_path(workdir)
    mesh = make_mesh(config.fsdp)
    programs = PhasePrograms(config, mesh)
    check_parameters(config)
    with folder.locked_workdir(workdir):
        check_workdir(workdir, fields)  # it was not locked before
        if folder.leads():
            write_config(workdir, fill_defaults(fields))
        kept = KeptPrograms(workdir, config, mesh)
        kept.get(FIRST_STATE, partial(compile_draws, programs.plans[0]))
        programs.compile_all(kept)
        for path, size in kept.write(required=True).items():
            print(f"{path}: {size / 1e6:.1f} MB")
