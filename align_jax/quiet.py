"""Drops the log lines that TensorFlow writes to stderr when a command imports it."""

import contextlib
import importlib.abc
import importlib.machinery
import os
import re
import sys
import tempfile
import types
from collections.abc import Iterator, Sequence

STDERR = 2  # file descriptor
# Log lines about the CPU, missing GPUs and libraries that are registered twice. An
# error that matters ends the import, and a fatal one (F) is kept.
NOISE = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog|[IWE]\d{4} "
    rb"|To enable the following instructions: "  # second line of one about the CPU
)


def drop_start_lines() -> None:
    """Makes the first import of TensorFlow in this process quiet.

    TensorFlow writes these lines before it reads TF_CPP_MIN_LOG_LEVEL. If that variable
    is 0, all lines are shown.
    """
    shown = os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0"
    hidden = any(isinstance(finder, _Finder) for finder in sys.meta_path)
    if not shown and not hidden and "tensorflow" not in sys.modules:
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the package `tensorflow` as Python does, and makes its loader quiet."""

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None,
        target: types.ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "tensorflow":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_quietly(module: types.ModuleType) -> None:
                with without_noise():
                    execute(module)

            spec.loader.exec_module = execute_quietly  # type: ignore[method-assign]
        return spec


@contextlib.contextmanager
def without_noise() -> Iterator[None]:
    """Drops the lines of `NOISE` that are written to stderr in the `with` statement.

    All other lines are written at its end.
    """
    with tempfile.TemporaryFile() as held:
        sys.stderr.flush()
        stderr = os.dup(STDERR)
        os.dup2(held.fileno(), STDERR)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, STDERR)
            os.close(stderr)
            held.seek(0)
            lines = held.read().splitlines(keepends=True)
            os.write(STDERR, b"".join(x for x in lines if not NOISE.match(x)))
