"""Reads tars as open_clip does, for `benchmarks.input`; needs torch and webdataset.

    pip install torch torchvision webdataset
    python benchmarks/input_baseline.py TARS WORKERS BATCH

Worker processes decode with Pillow and apply Resize, RandomCrop, RandomHorizontalFlip,
ToTensor and Normalize; the main process receives float32 batches. Texts stay strings.
For each line "SKIP COUNT" on standard input the program draws SKIP batches, then times
COUNT batches and prints their pairs, seconds and CPU seconds.
"""

import json
import os
import sys
import time

import webdataset as wds
from torchvision import transforms


def make_loader(pattern: str, workers: int, batch_size: int) -> wds.WebLoader:
    """Builds the pipeline of open_clip's `get_wds_dataset`, without tokens."""
    augment = transforms.Compose(
        [
            transforms.Resize((346, 346)),
            transforms.RandomCrop(289),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.5,) * 3, (0.5,) * 3),
        ]
    )
    dataset = wds.DataPipeline(
        wds.ResampledShards(pattern),
        wds.tarfile_to_samples(),
        wds.shuffle(256, initial=64),
        wds.decode("pilrgb"),
        wds.rename(image="jpg", text="txt"),
        wds.map_dict(image=augment),
        wds.to_tuple("image", "text"),
        wds.batched(batch_size, partial=False),
    )
    return wds.WebLoader(dataset, batch_size=None, shuffle=False, num_workers=workers)


def processor_seconds() -> float:
    """Returns the CPU seconds of this process and its live children."""
    total = sum(os.times()[:2])
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/children") as file:
            children = file.read().split()
        for child in children:
            with open(f"/proc/{child}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def main() -> None:
    """Measures once for each line of standard input."""
    pattern, workers, batch_size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    batches = iter(make_loader(pattern, workers, batch_size))
    next(batches)
    print("ready", flush=True)
    for line in sys.stdin:
        skip, count = map(int, line.split())
        for _ in range(skip):
            next(batches)
        start, used = time.perf_counter(), processor_seconds()
        for _ in range(count):
            next(batches)
        found = {
            "pairs": count * batch_size,
            "seconds": time.perf_counter() - start,
            "processor_seconds": processor_seconds() - used,
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
