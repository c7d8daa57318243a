"""The parts of `benchmarks.gpu_check`: what it compiles, times and compares."""

import dataclasses
import importlib.util
import pathlib
import sys

from benchmarks.step_flags import OURS

TORCH, TIMM, OPEN_CLIP, TRANSFORMERS = "torch", "timm", "open_clip", "transformers"


@dataclasses.dataclass(frozen=True)
class Machine:
    """The machine that runs the check.

    Attributes:
      kind: name of the GPU, as `jax.Device.device_kind`.
      torch: whether PyTorch sees the GPU, too.
    """

    kind: str
    torch: bool = False


@dataclasses.dataclass(frozen=True)
class Entry:
    """An implementation, which is timed in a separate process.

    Attributes:
      name: name in the table.
      module: module of `benchmarks` that times it, with the flag --in_turn.
      arguments: flags of the module.
      seconds: estimate of its turn, which includes making the first state or inputs.
      file: file that `python -m benchmarks.MODULE compile FILE` writes with the
        arguments, and that `run FILE` reads; "" for none.
      instead: flags for `benchmarks.step` where the file is missing, which then
        compiles on the GPU's machine; () for an entry that needs its file.
      packages: import names of the packages that it needs.
      lacking: reason why it is not timed on any machine; "" for none.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    seconds: float
    file: str = ""
    instead: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    lacking: str = ""

    @property
    def is_peer(self) -> bool:
        """Whether this is an implementation of others."""
        return not self.file

    def compile_command(self, path: pathlib.Path) -> list[str]:
        """Returns the command that compiles the entry ahead into a file."""
        return [*self._python(self.module), "compile", f"{path}", *self.arguments]

    def run_command(self, folder: pathlib.Path) -> list[str]:
        """Returns the command that times the entry; the folder has compiled files."""
        path = folder / self.file
        if self.is_peer:
            command = [*self._python(self.module), *self.arguments]
        elif self.instead and not path.exists():
            command = [*self._python("step"), *self.instead]
        else:
            command = [*self._python(self.module), "run", f"{path}"]
        return [*command, "--in_turn"]

    def obstacle(self, folder: pathlib.Path, machine: Machine) -> str:
        """Returns the reason why a machine cannot time the entry, or ""."""
        if self.lacking:
            return self.lacking
        for package in self.packages:
            if importlib.util.find_spec(package) is None:
                return f"{package} is not installed"
        if TORCH in self.packages and not machine.torch:
            return "PyTorch sees no GPU"
        if self.file and not self.instead and not (folder / self.file).exists():
            return f"{folder / self.file} is missing: `compile` writes it"
        return ""

    @staticmethod
    def _python(module: str) -> list[str]:
        return [sys.executable, "-m", f"benchmarks.{module}"]


@dataclasses.dataclass(frozen=True)
class Part:
    """Implementations of the same work, which are timed one after another.

    Attributes:
      name: key of the part in the results.
      title: the work, for people.
      pairs: number of pairs of a step.
      entries: the implementations, ours first.
    """

    name: str
    title: str
    pairs: int
    entries: tuple[Entry, ...]

    @property
    def seconds(self) -> float:
        """Estimate of the turns of all entries."""
        return sum(entry.seconds for entry in self.entries)

    @property
    def has_peer(self) -> bool:
        """Whether the part is compared with a peer, which takes minutes to compile."""
        return any(entry.is_peer and not entry.lacking for entry in self.entries)


def step_entry(
    file: str, arguments: str, seconds: float, name: str = OURS, **options: tuple
) -> Entry:
    """Returns our step, compiled ahead."""
    return Entry(name, "ahead", (*arguments.split(),), seconds, file=file, **options)


def step_peer(
    name: str, peer: str, arguments: str, seconds: float, packages: tuple[str, ...]
) -> Entry:
    """Returns a peer's step of the same flags."""
    flags = (*arguments.split(), f"--only={peer}")
    return Entry(name, "step", flags, seconds, packages=(TORCH, *packages))


def loss_entry(exchange: str, size: int, repeats: int, seconds: float) -> Entry:
    """Returns one form of our loss, compiled ahead."""
    flags = (f"--size={size}", f"--exchange={exchange}", f"--repeats={repeats}")
    name = f"{OURS}, {exchange}"
    return Entry(name, "loss_ahead", flags, seconds, file=f"{exchange}_{size}.loss")


# Sizes and flags as in docs/performance.md, "On a GPU".
B5 = "--image=b5 --text=base --batch=128 --optimizer=adamw"
B7 = "--image=b7 --text=base --batch=128 --optimizer=adamw"
B16 = (
    "--image=vit_b/16 --text=clip_b --image_size=224 --tokens=77 --batch=128"
    " --optimizer=adamw"
)
L2 = (
    "--image=l2 --text=large --batch=64 --microbatches=4 --optimizer=lamb --scan"
    " --steps=15"
)
CUDNN = f"{B16} --attention=cudnn"
SIZE, LARGE_SIZE = 65_536, 1_048_576

# The most important part first. The estimates follow the times of that page: on an H200
# a call of the loss takes 17 s at the larger size, if its time grows as N^2.
PARTS = (
    Part(
        "b5_base",
        "B5 + BERT-Base",
        128,
        (
            step_entry("b5_base.step", B5, 8),
            step_peer("timm, compiled whole", "timm", B5, 8, (TIMM, TRANSFORMERS)),
        ),
    ),
    Part(
        "b7_base",
        "B7 + BERT-Base",
        128,
        (
            step_entry("b7_base.step", B7, 9),
            step_peer(
                "AlignModel, compiled by blocks",
                "huggingface_blocks",
                B7,
                12,
                (TRANSFORMERS,),
            ),
        ),
    ),
    Part(
        "loss",
        f"loss, N = {SIZE:,}",
        SIZE,
        (
            loss_entry("gather", SIZE, 8, 6),
            loss_entry("ring", SIZE, 8, 6),
            Entry(
                "torch, compiled",
                "loss_torch",
                (f"--size={SIZE}", "--only=torch compiled"),
                5,
                packages=(TORCH,),
            ),
        ),
    ),
    Part(
        "vit_b16",
        "ViT-B/16 + CLIP-B",
        128,
        (
            step_entry("vit_b16.step", B16, 6),
            step_entry(
                "vit_b16_cudnn.step",
                CUDNN,
                6,
                f"{OURS}, cuDNN's attention",
                instead=(*CUDNN.split(), f"--only={OURS}"),
            ),
            step_peer(
                "OpenCLIP, compiled whole",
                "open_clip",
                B16,
                6,
                (OPEN_CLIP, TRANSFORMERS),
            ),
        ),
    ),
    Part("l2_large", "L2 + BERT-Large", 64, (step_entry("l2_large.step", L2, 22),)),
    Part(
        "large_loss",
        f"loss, N = {LARGE_SIZE:,}",
        LARGE_SIZE,
        (
            loss_entry("ring", LARGE_SIZE, 2, 42),
            loss_entry("gather", LARGE_SIZE, 2, 42),
            Entry(
                "torch",
                "loss_torch",
                (),
                0,
                packages=(TORCH,),
                lacking=f"its logits take {2 * LARGE_SIZE**2 / 2**30:,.0f} GiB",
            ),
        ),
    ),
)
