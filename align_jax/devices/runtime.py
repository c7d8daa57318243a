"""What a process needs before it computes: quiet logs, devices, compilation cache."""

import ctypes
import functools
import logging
import os
import pathlib
import sys

# Of glibc's mallopt.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def start(distributed: bool = False) -> None:
    """Prepares TensorFlow and JAX; call once, before either computes.

    TensorFlow only reads data, so it is kept off the accelerators. Compiled programs
    are kept in JAX_COMPILATION_CACHE_DIR, by default ~/.cache/align_jax.

    Args:
      distributed: join the run's other processes. JAX finds them on TPU pods, under
        Slurm, Open MPI and Kubernetes; elsewhere JAX_COORDINATOR_ADDRESS (host:port of
        the first), JAX_NUM_PROCESSES and JAX_PROCESS_ID say where they are.

    Raises:
      InputError: there are none, or they do not answer.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import jax
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    # What fails while a checkpoint is written is raised too; Orbax logs it many times,
    # itself and by tasks that it leaves to asyncio.
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    logging.getLogger("asyncio").addFilter(
        lambda record: "orbax" not in record.getMessage()
    )
    sys.unraisablehook = functools.partial(_show_unraisable, sys.unraisablehook)
    if not jax.config.values["jax_compilation_cache_dir"]:
        cache = pathlib.Path.home() / ".cache" / "align_jax"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    if distributed:
        _join_processes()


def reuse_memory() -> None:
    """Has memory used again where JAX computes on one CPU device; call before it does.

    XLA allocates all temporaries of a step at once. By default glibc maps them anew
    each time, which costs a page fault for every 4 KiB, a fourth of a small step. The
    main thread's memory can be kept instead, so programs run in the thread that calls
    them. Those of several devices run in other threads all the same: they and other C
    libraries stay as they are.
    """
    import jax

    flags = os.environ.get("XLA_FLAGS", "")
    several = jax.config.values["jax_num_cpu_devices"] > 1
    if several or "host_platform_device_count" in flags:
        return
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if jax.default_backend() == "cpu":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: None)
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)  # never


def _show_unraisable(show, unraisable) -> None:
    """Shows what no code can catch, but for writes that end after one has failed.

    TensorStore's threads then tell an event loop that Orbax has closed.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        show(unraisable)


def _join_processes() -> None:
    import jax

    from align_jax.errors import InputError

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
            f"--distributed: {' '.join(str(error).split())}; where there is no TPU pod,"
            f" Slurm, Open MPI or Kubernetes, set {', '.join(names)}"
        ) from error
