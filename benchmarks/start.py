"""Seconds to the first embeddings of a loaded model, and to a run's first step.

    python -m benchmarks.start --model=FOLDER --repeats=3

FOLDER is anything that `align_jax.load` reads, such as a converted quickstart. Every
line is measured in fresh processes; the table has the medians of their wall times and
of their processor times, each from the start of the process. "cold" is with an empty
compile cache, "warm" with that of the process before it. After `make data`, --train
adds the quickstart's first step by `main.py`, with the evaluation before it. --peer
names a Python with torch and transformers, by which a CLIP of about the quickstart's
size is loaded and used in the same way, on token ids.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmarks.comparisons import Comparison, add_record_flag, record

WAIT = 0.05  # seconds between two looks at a run's metrics
LAST = "picture and text embedded"  # the last stage
LONGEST = 1200  # seconds that a run may take to its first step

STAMP = """
import json, os, sys, time
def stamp(name):
    own = os.times()
    print(json.dumps([name, time.time(), own.user + own.system]), flush=True)
"""
OURS = """
import align_jax.embed.model
import numpy as np
stamp("imported")
model = align_jax.load(sys.argv[1])
stamp("loaded")
model.encode_images([np.zeros((64, 64, 3), np.uint8)])
model.encode_texts(["a red apple"])
stamp("picture and text embedded")
"""
PEER = """
import numpy as np, torch
from transformers import CLIPImageProcessor, CLIPModel
stamp("imported")
model = CLIPModel.from_pretrained(sys.argv[1]).eval()
processor = CLIPImageProcessor.from_pretrained(sys.argv[1])
stamp("loaded")
pictures = processor(np.zeros((64, 64, 3), np.uint8), return_tensors="pt")
with torch.no_grad():
    model.get_image_features(**pictures)
    model.get_text_features(torch.tensor([[2, 5, 6, 3]]))
stamp("picture and text embedded")
"""
# Two towers of 2.8 million parameters; the quickstart has 2.0.
MAKE_PEER = """
import sys
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel
text = dict(vocab_size=4096, hidden_size=128, intermediate_size=512,
    num_hidden_layers=2, num_attention_heads=2, eos_token_id=3)
vision = dict(hidden_size=192, intermediate_size=768, num_hidden_layers=4,
    num_attention_heads=3, image_size=32, patch_size=8)
config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=240)
CLIPModel(config).save_pretrained(sys.argv[1])
size = {"height": 32, "width": 32}
CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(
    sys.argv[1])
"""


class Spent(NamedTuple):
    """Seconds since the start of a process, and of processors."""

    wall: float
    processors: float


def run_stages(python: str, code: str, source: str, cache: str) -> dict[str, Spent]:
    """Runs stages in a new process; returns what was spent when each was done."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
    began = time.time()
    output = subprocess.run(
        [python, "-c", STAMP + code, source],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    stamps = [json.loads(line) for line in output.splitlines() if line[:1] == "["]
    return {name: Spent(wall - began, spent) for name, wall, spent in stamps}


def run_first_step(workdir: str, cache: str) -> dict[str, Spent]:
    """Starts the quickstart; returns what it spent until its first step was logged."""
    command = [
        *(sys.executable, "main.py", "--config=configs/quickstart.py"),
        *(f"--workdir={workdir}", "--config.log_every_steps=1"),
    ]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
    began = time.time()
    process = subprocess.Popen(command, env=environment)
    metrics = pathlib.Path(workdir, "metrics.jsonl")
    try:
        while not (metrics.exists() and '"train/loss"' in metrics.read_text()):
            if process.poll() is not None or time.time() - began > LONGEST:
                raise SystemExit("main.py takes no first step")
            time.sleep(WAIT)
        wall = time.time() - began
        process.kill()
    finally:
        process.kill()
        _, _, usage = os.wait4(process.pid, 0)
    return {"first step": Spent(wall, usage.ru_utime + usage.ru_stime)}


def median(parts: Sequence[Mapping[str, Spent]]) -> dict[str, Spent]:
    """Returns the median of each stage over some processes."""
    return {
        name: Spent(
            *map(statistics.median, zip(*(p[name] for p in parts), strict=True))
        )
        for name in parts[0]
    }


def show(what: str, spent: Mapping[str, Spent]) -> None:
    """Prints a line of the table for each stage."""
    for name, (wall, processors) in spent.items():
        print(f"| {what}, {name} | {wall:.1f} | {processors:.1f} |", flush=True)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="what `align_jax.load` reads")
    parser.add_argument("--train", action="store_true", help="main.py's first step")
    parser.add_argument("--peer", metavar="PYTHON", help="has torch and transformers")
    parser.add_argument("--repeats", type=int, default=3)
    add_record_flag(parser)
    flags = parser.parse_args()
    own, repeats = sys.executable, range(flags.repeats)
    print("| | wall, s | processors, s |\n|---|---:|---:|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        caches = [f"{folder}/cache_{index}" for index in repeats]
        ours = {}
        for kind in ("cold", "warm") if flags.model else ():
            parts = [run_stages(own, OURS, flags.model, cache) for cache in caches]
            ours[kind] = parts
            show(f"align_jax, {kind}", median(parts))
        if flags.peer:
            peer = pathlib.Path(folder, "peer")
            peer.mkdir()
            subprocess.run([flags.peer, "-c", MAKE_PEER, peer], check=True)
            parts = [run_stages(flags.peer, PEER, str(peer), folder) for _ in repeats]
            show("transformers", median(parts))
            record(
                flags.record,
                [
                    Comparison(
                        f"start to {LAST}, {kind}",
                        "transformers",
                        "s",
                        [spent[LAST].wall for spent in found],
                        [spent[LAST].wall for spent in parts],
                    )
                    for kind, found in ours.items()
                ],
            )
        caches = [f"{folder}/run_cache_{index}" for index in repeats]
        for kind in ("cold", "warm") if flags.train else ():
            parts = [
                run_first_step(f"{folder}/{kind}_{index}", cache)
                for index, cache in enumerate(caches)
            ]
            show(f"main.py, {kind}", median(parts))


if __name__ == "__main__":
    main()
