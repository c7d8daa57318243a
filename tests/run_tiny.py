"""Makes a tiny run through `main.py`: python -m tests.run_tiny DATA WORKDIR [FLAGS]."""

import json
import os
import pathlib
import sys

STEPS = 24


def rows(workdir):
    """Reads the metric lines of a run, without the metrics that depend on the clock."""
    from align_jax.runs.metric_lines import read_metrics
    from align_jax.runs.pace import SLOWEST, STARTED, Pace

    measures = [*Pace(1, {}, []).end_interval(1), *SLOWEST]
    clocked = {STARTED, *(f"train/{name}" for name in measures)}
    rows = [
        {name: value for name, value in row.items() if name not in clocked}
        for row in read_metrics(str(workdir))
    ]
    return [row for row in rows if len(row) > 1]


def log_compiled(path):
    """Appends the name of every program that is compiled or comes from JAX's cache."""
    import jax

    def listen(event, _, fun_name="", **__):
        if event == "/jax/core/compile/backend_compile_duration":
            with open(path, "a") as file:
                file.write(f"{fun_name}\n")

    jax.monitoring.register_event_duration_secs_listener(listen)


def main(data: str, workdir: str, *flags: str) -> int:
    """Trains, or continues a run; returns the exit code of `main.py`."""
    from tests import tiny

    fields = tiny.make_run(
        pathlib.Path(data),
        total_steps=STEPS,
        evaluate_every_steps=10,
        checkpoint={"every_steps": 5, "keep": 2},
        hang_seconds=300,
    )
    path = pathlib.Path(data) / "config.py"
    if not path.exists():
        text = f"ConfigDict(json.loads({json.dumps(fields)!r}))"
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(
            "import json\nfrom ml_collections import ConfigDict\n\n\n"
            f"def get_config():\n    config = {text}\n"
            "    config.phases = ()  # so that a flag can set it\n    return config\n"
        )
        partial.rename(path)

    import main as program

    if log := os.environ.get("COMPILED"):
        log_compiled(log)
    sys.argv = ["main.py", f"--config={path}", f"--workdir={workdir}", *flags]
    return program.main()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
