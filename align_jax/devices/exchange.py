"""Small values that the processes of a run exchange through JAX's coordination service.

Collectives would also carry them, but need a compiled program and idle devices.
"""

import itertools
from typing import Any

import jax
import numpy as np

# JAX has no public function for it. Orbax and Flax use the same client.
from jax._src import distributed

PATIENCE_MS = 7_200_000  # a process may restore or write for a long time
BARRIER = "align_jax_exchange"

# State of the process, as the client is. It numbers the calls, so that a process that
# is a call behind the others fails, and does not read their older values.
_calls = itertools.count()


def gather(value: np.ndarray | np.generic) -> np.ndarray:
    """Returns the values of all processes: (processes, ...), by process index.

    All processes must call it in the same order, and from one thread.

    Args:
      value: array or scalar; its shape and type must be the same in all processes.

    Raises:
      RuntimeError: a process ended, or did not call within two hours.
    """
    value = np.asarray(value)
    if jax.process_count() == 1:
        return value[None].copy()
    client: Any = distributed.global_state.client
    index, call = jax.process_index(), next(_calls)
    folder = f"align_jax_exchange/{call}/"
    client.key_value_set_bytes(f"{folder}{index}", value.tobytes())
    client.wait_at_barrier(BARRIER, PATIENCE_MS)
    # All processes have read the values of the call before this one.
    client.key_value_delete(f"align_jax_exchange/{call - 1}/{index}")
    found = dict(client.key_value_dir_get_bytes(folder))
    parts = [found[f"{folder}{process}"] for process in range(jax.process_count())]
    values = np.frombuffer(b"".join(parts), value.dtype)
    return values.reshape(len(parts), *value.shape).copy()


def wait_for_all() -> None:
    """Waits until all processes call it; the same rules as for `gather`."""
    gather(np.zeros(0, np.uint8))
