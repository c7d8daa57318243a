"""The contrastive loss in plain PyTorch, for comparison in `benchmarks.loss`.

    python -m benchmarks.loss_torch --size 65536

It times value and all gradients in bfloat16 autocast on one GPU, eager and compiled. It
prints one line of JSON per implementation. An error is a line, too, and the next
implementation runs.
"""

import argparse
import json
import statistics

import torch
import torch.nn.functional as F


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
        "peak_bytes": torch.cuda.max_memory_allocated(),
    }


def main() -> None:
    """Prints the lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=65536)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--smoothing", type=float, default=0.1)
    parser.add_argument("--repeats", type=int, default=7)
    flags = parser.parse_args()
    for name, loss in (
        ("torch compiled", torch.compile(loss_of)),
        ("torch eager", loss_of),
    ):
        try:
            row = measure(loss, flags)
        except Exception as error:
            row = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps({"implementation": name, **row}), flush=True)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
