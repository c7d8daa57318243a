"""Sizes and choices of `benchmarks.step`, which its implementations share."""

import argparse
from collections.abc import Callable
from typing import NamedTuple

from align_jax.devices.kernel_choice import CHOICES
from align_jax.models.attention import ATTENTIONS, XLA
from align_jax.models.efficientnet import REMATERIALISATIONS
from benchmarks.comparisons import add_record_flag

PEERS = (
    "timm",
    "timm_eager",
    "huggingface",
    "huggingface_blocks",
    "huggingface_eager",
    "open_clip",
    "open_clip_eager",
)
OURS = "align_jax"


class Program(NamedTuple):
    """A step that can be timed.

    Attributes:
      take: function that queues a step.
      wait: function that waits for all queued steps.
      finish: function that returns peak memory and further results by name.
    """

    take: Callable[[], None]
    wait: Callable[[], None]
    finish: Callable[[], dict]


def read_flags(
    description: str, arguments: list[str] | None = None
) -> argparse.Namespace:
    """Reads the command line, or other arguments."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--image", default="b5", help="a tower as b5, v2_s or vit_b/16")
    parser.add_argument("--text", default="base", help="a tower as base or clip_b")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--image_size", type=int, default=289)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--pairs_per_core", type=int, default=16)
    parser.add_argument("--group", type=int, default=16, help="images of a BatchNorm")
    parser.add_argument("--microbatches", type=int, default=1)
    parser.add_argument("--scan", action="store_true", help="repeated blocks as one")
    parser.add_argument("--rematerialise", choices=REMATERIALISATIONS, default="none")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--precision", default="default", help="of the loss's products")
    parser.add_argument("--optimizer", default="lamb")
    parser.add_argument("--kernels", choices=CHOICES, default="auto")
    parser.add_argument("--attention", choices=ATTENTIONS, default=XLA)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--bandwidth", type=float, default=3.0e12, help="bytes/s")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=[])
    parser.add_argument("--topology", help="as v5e:2x2, for --count on a TPU core")
    parser.add_argument("--count", action="store_true", help="counts, nothing else")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--only", choices=(OURS, *PEERS), help=argparse.SUPPRESS)
    parser.add_argument("--in_turn", action="store_true", help=argparse.SUPPRESS)
    add_record_flag(parser)
    return parser.parse_args(arguments)
