"""The contrastive loss in plain PyTorch, for comparison in `benchmarks.loss`.

    python -m benchmarks.loss_torch --size 65536

It times value and all gradients in bfloat16 autocast on one GPU, eager and compiled. It
prints one line of JSON per implementation. An error is a line, too, and the next
implementation runs; with --only, an error ends the process.
"""

import argparse
import json
import statistics

import torch
import torch.nn.functional as F

from benchmarks.turns import wait_for_turn


def loss_of(
    ximg: torch.Tensor,
    ytxt: torch.Tensor,
    temperature: torch.Tensor,
    smoothing: float,
) -> torch.Tensor:
    """Returns the loss of unit embeddings (N, D); holds all logits."""
    with torch.autocast("cuda", torch.bfloat16):
        logits = ximg @ ytxt.T / temperature  # (N, N)
        own = torch.arange(len(logits), device=logits.device)
        i2t = F.cross_entropy(logits, own, label_smoothing=smoothing)
        t2i = F.cross_entropy(logits.T, own, label_smoothing=smoothing)
        return i2t + t2i


IMPLEMENTATIONS = {"torch compiled": torch.compile, "torch eager": lambda loss: loss}


def measure(loss, flags: argparse.Namespace) -> dict:
    """Returns median milliseconds and the peak of allocated bytes."""
    embeddings = torch.randn(2, flags.size, flags.width, device="cuda")
    embeddings /= embeddings.norm(dim=-1, keepdim=True)
    inputs = [x.clone().requires_grad_() for x in embeddings]
    inputs.append(torch.tensor(1 / 64, device="cuda", requires_grad=True))
    del embeddings

    def step():
        for x in inputs:
            x.grad = None
        loss(*inputs, flags.smoothing).backward()

    for _ in range(2):
        step()
    torch.cuda.synchronize()
    if flags.in_turn:
        torch.cuda.empty_cache()
        wait_for_turn()
    torch.cuda.reset_peak_memory_stats()
    milliseconds = []
    for _ in range(flags.repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        milliseconds.append(start.elapsed_time(end))
    return {
        "milliseconds": statistics.median(milliseconds),
        "all_milliseconds": milliseconds,
        "peak_bytes": torch.cuda.max_memory_allocated(),
    }


def main() -> None:
    """Prints the lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=65536)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--smoothing", type=float, default=0.1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", choices=IMPLEMENTATIONS, help=argparse.SUPPRESS)
    parser.add_argument("--in_turn", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    for name in [flags.only] if flags.only else IMPLEMENTATIONS:
        try:
            row = measure(IMPLEMENTATIONS[name](loss_of), flags)
        except Exception as error:
            if flags.only:
                raise
            row = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps({"implementation": name, **row}), flush=True)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
