"""Shortest times of a training step on TPU slices, from counted work and rates."""

import dataclasses

from align_jax.devices.known import DEVICES

PAIRS = 16_384  # of a step
STEPS = 1_200_000  # of the paper's run
HOST = 4  # chips of a host in slices of several hosts
PROCESSORS = 112  # of a host of v5e; one of v5p has 208
STATE_BYTES = 28  # read and written per parameter by LAMB in float32: 4 in, 3 out


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published rates of a TPU chip.

    Attributes:
      kind: key of `DEVICES`, which has its arithmetic.
      memory: bytes a second from and to HBM.
      links: bytes a second that a chip sends over all its links inside a slice.
      network: bytes a second of a chip's share of its host's network.
      largest: chips of the largest slice.
    """

    kind: str
    memory: float
    links: float
    network: float
    largest: int

    @property
    def arithmetic(self) -> float:
        """Multiplications and additions a second in bfloat16."""
        return DEVICES[self.kind].peak_flops


# The page names the sources.
CHIPS = {
    "v4": Chip("TPU v4", 1200e9, 270e9, 6.25e9, 4096),
    "v5e": Chip("TPU v5 lite", 819e9, 200e9, 3.125e9, 256),
    "v5p": Chip("TPU v5", 2765e9, 600e9, 6.25e9, 6144),
    "v6e": Chip("TPU v6 lite", 1600e9, 400e9, 12.5e9, 256),
}


@dataclasses.dataclass(frozen=True)
class Model:
    """Counted work of a model's training step.

    Attributes:
      title: towers, for people.
      config: name of the config in configs/.
      flops: operations of a pair, forward and backward, nothing computed twice.
      traffic: bytes read and written in HBM for a pair, without the optimizer's.
      parameters: number of parameters.
      gradients: bytes of all gradients as they are summed over chips.
      width: numbers of an embedding.
      fsdp: number of chips that hold one copy of the state.
    """

    title: str
    config: str
    flops: float
    traffic: float
    parameters: int
    gradients: int
    width: int
    fsdp: int

    @property
    def checkpoint(self) -> int:
        """Bytes of parameters and two moments in float32."""
        return 12 * self.parameters

    @property
    def embeddings(self) -> int:
        """Bytes of the embeddings of one step's texts in float32."""
        return 4 * PAIRS * self.width


# Operations: docs/plans.md. Traffic of B7: benchmarks.traffic. The rest is traced.
# tests/scale_test.py compares all but the traffic with the configs.
MODELS = (
    Model(
        title="EfficientNet-B7 and BERT-Base",
        config="pretrain_align_b7_base",
        flops=90.6e9,
        traffic=1.77e9,
        parameters=224_886_353,
        gradients=605_163_780,
        width=640,
        fsdp=1,
    ),
    Model(
        title="EfficientNet-L2 and BERT-Large",
        config="pretrain_align_l2_large",
        flops=537e9,
        traffic=3.3 * 1.77e9,  # estimated, see the page
        parameters=873_867_957,
        gradients=1_956_911_812,
        width=1376,
        fsdp=8,
    ),
)

# Measured, see docs/scale.md.
PROCESSOR_SECONDS = 1.09e-3  # of a pair: read, decode, resize, tokenize


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Shortest times of a step, in seconds, by each limit.

    Attributes:
      arithmetic: operations at the peak.
      memory: traffic at HBM's bandwidth.
      links: bytes between the chips of a slice.
      network: bytes between slices.
      input: processor time of a host's pairs on all its processors.
    """

    arithmetic: float
    memory: float
    links: float
    network: float
    input: float

    @property
    def limit(self) -> tuple[str, float]:
        """The limit that binds, and the time of a step under it."""
        return max(dataclasses.asdict(self).items(), key=lambda item: item[1])


def gradient_bytes(name: str) -> int:
    """Returns the bytes of a number of a parameter's gradient, as it is summed.

    The kernels of dense layers and convolutions are summed in bfloat16, all others in
    float32.

    Args:
      name: last part of the parameter's path.
    """
    return 2 if name == "kernel" else 4


def ring(members: int) -> float:
    """Returns the part of an array that a member sends while a ring gathers it."""
    return (members - 1) / members


def bound_step(model: Model, chip: Chip, chips: int, slices: int) -> Bounds:
    """Returns the bounds of a step of `PAIRS` pairs on a number of chips.

    A split state is gathered forward and backward, and its gradients are summed into
    parts. Everything else that is summed over chips is first summed into parts and then
    gathered, which sends an array twice. The embeddings of texts are gathered, and the
    backward pass sums their gradients into parts. Between slices every chip exchanges
    its part.
    """
    pairs = PAIRS / chips
    inside = chips // slices
    copy = min(model.fsdp, inside)  # chips that hold one copy of the state
    split = 2 * 2 * model.parameters + model.gradients  # gathers are of bfloat16
    split *= ring(copy)
    summed = 2 * model.gradients / copy * ring(inside // copy)
    exchanged = 2 * model.embeddings * ring(inside)
    across = 2 * (model.gradients + model.embeddings) / inside * ring(slices)
    state = STATE_BYTES * model.parameters / copy
    return Bounds(
        arithmetic=pairs * model.flops / chip.arithmetic,
        memory=(pairs * model.traffic + state) / chip.memory,
        links=(split + summed + exchanged) / chip.links,
        network=across / chip.network,
        input=HOST * pairs * PROCESSOR_SECONDS / PROCESSORS,
    )
