"""Prepares a process before it computes: quiet logs, devices, compilation cache."""

import ctypes
import functools
import importlib.util
import logging
import os
import pathlib
import sys
from collections.abc import Callable

# Lets mimalloc, the allocator of pyarrow, keep freed memory. By default it gives memory
# back after 10 ms, and the next batch of a Parquet file costs its page faults.
ARROW_KEEPS = ("MIMALLOC_PURGE_DELAY", "-1")
# Numbers of parameters of glibc's mallopt.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
MIB = 2**20


def start(distributed: bool = False, tensorflow: bool = True) -> None:
    """Prepares TensorFlow, pyarrow and JAX.

    Call it once, before TensorFlow and pyarrow are imported and before JAX computes.

    TensorFlow only reads data, so it is kept off GPUs. Logs of TensorFlow and Orbax are
    dropped. Compiled programs are kept in JAX_COMPILATION_CACHE_DIR, by default
    ~/.cache/align_jax.

    Args:
      distributed: whether to join the run's other processes. JAX finds them on TPU
        pods and under Slurm, Open MPI and Kubernetes. Elsewhere the environment must
        give JAX_COORDINATOR_ADDRESS (host:port of the first process),
        JAX_NUM_PROCESSES and JAX_PROCESS_ID.
      tensorflow: whether to prepare TensorFlow, if it is installed. Its import takes
        seconds, and only training and datasets need it.

    Raises:
      InputError: the other processes cannot be found, or do not answer.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault(*ARROW_KEEPS)

    if tensorflow and importlib.util.find_spec("tensorflow"):
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")
    # Orbax logs a failed write of a checkpoint many times, also through tasks that it
    # leaves to asyncio. The failure is raised too, so these logs are dropped.
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    logging.getLogger("asyncio").addFilter(
        lambda record: "orbax" not in record.getMessage()
    )
    sys.unraisablehook = functools.partial(_show_unraisable, sys.unraisablehook)
    keep_programs()
    if distributed:
        _join_processes()


def keep_programs() -> None:
    """Lets JAX keep compiled programs, unless it knows a folder for them already.

    They are kept in JAX_COMPILATION_CACHE_DIR, by default ~/.cache/align_jax.
    """
    import jax

    if not jax.config.values["jax_compilation_cache_dir"]:
        cache = pathlib.Path.home() / ".cache" / "align_jax"
        jax.config.update("jax_compilation_cache_dir", str(cache))


def reuse_memory() -> None:
    """Keeps freed memory for reuse.

    Must be called before JAX runs a program. With other C libraries than glibc, memory
    is managed as before.

    By default glibc returns freed memory to the system, and the first use of new memory
    costs a page fault for every 4 KiB. Files of pictures come and go by batches, so up
    to 256 MiB are kept for them.

    XLA allocates all temporaries of a step at once. On one CPU device their page faults
    take a fourth of a small step. glibc can keep all memory of the main thread, so
    programs are then made to run in the thread that calls them. Programs for several
    devices always run in other threads.
    """
    import jax

    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: None)
    mallopt(M_MMAP_THRESHOLD, 32 * MIB)
    mallopt(M_TRIM_THRESHOLD, 256 * MIB)
    flags = os.environ.get("XLA_FLAGS", "")
    several = jax.config.values["jax_num_cpu_devices"] > 1
    if several or "host_platform_device_count" in flags:
        return
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if jax.default_backend() == "cpu":
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)  # never give memory back


def return_memory() -> None:
    """Gives freed memory back to the system once, also memory kept by `reuse_memory`.

    A compiler frees gigabytes that later steps do not need. With other C libraries than
    glibc, nothing happens.
    """
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)


def _show_unraisable(
    show: Callable[["sys.UnraisableHookArgs"], object],
    unraisable: "sys.UnraisableHookArgs",
) -> None:
    """Shows an error that no code can catch, unless it follows a failed write.

    After a failed write, other writes of TensorStore's threads end, and they report to
    an event loop that Orbax has closed.

    Args:
      show: the earlier `sys.unraisablehook`.
      unraisable: description of the error.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        show(unraisable)


def _join_processes() -> None:
    import jax

    from align_jax.errors import InputError, one_line

    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = [os.environ.get(name) for name in names]
    if any(given) and not all(given):
        absent = [n for n, value in zip(names, given, strict=True) if not value]
        raise InputError(f"--distributed: {', '.join(absent)} is not set, others are")
    try:
        address, count, index = given
        jax.distributed.initialize(
            address, int(count) if count else None, int(index) if index else None
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"--distributed: {one_line(error)}; where there is no TPU pod,"
            f" Slurm, Open MPI or Kubernetes, set {', '.join(names)}"
        ) from error
