"""Writes docs/scale.md: bounds on the steps, the input and the price of large runs.

    python -m benchmarks.scale > docs/scale.md
    python -m benchmarks.scale --price=v4:3.22,v6e:2.70

`benchmarks.step_bounds` divides counted work by published rates. `--price` adds a
column: the price of the chip-hours, at a price per chip and hour for each named chip.
"""

import argparse
import collections
import pathlib
from collections.abc import Iterator

from benchmarks.step_bounds import (
    CHIPS,
    HOST,
    MODELS,
    PAIRS,
    PROCESSOR_SECONDS,
    PROCESSORS,
    STATE_BYTES,
    STEPS,
    Model,
    bound_step,
)

# Chips, and the slices that they are in.
SLICES = ((4, 1), (16, 1), (64, 1), (256, 1), (512, 2), (1024, 1), (1024, 4))
# Measured on two CPU cores.
PICTURE_BYTES = 46e3  # JPEG of 500 x 375 pixels
DISK = 2.7e9 / 20.5  # bytes a second of a checkpoint on a local disk
LIMITS = {"memory": "HBM"}  # their names in the tables, if they are others


def cases() -> Iterator[tuple[str, int, int]]:
    """Yields (name of the chip, chips, slices) of all slices that exist."""
    for name, chip in CHIPS.items():
        for chips, slices in SLICES:
            if chips // slices <= chip.largest:
                yield name, chips, slices


def three_digits(value: float) -> str:
    """Formats a number with three digits, or all digits before its point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table_of_steps(model: Model, prices: dict[str, float]) -> Iterator[str]:
    """Yields the lines of a model's table."""
    titles = ["chips", "arithmetic, ms", "HBM, ms", "links, ms", "network, ms"]
    titles += ["bound by", "pairs/s", "MB/s a host", "processors a host"]
    titles += ["days", "chip-hours"]
    titles += ["price"] if prices else []
    yield f"| {' | '.join(titles)} |"
    yield "|---" * len(titles) + "|"
    for name, chips, slices in cases():
        if not prices or name in prices:
            yield f"| {' | '.join(row_of(model, name, chips, slices, prices))} |"


def row_of(
    model: Model, name: str, chips: int, slices: int, prices: dict[str, float]
) -> Iterator[str]:
    """Yields the cells of one row."""
    chip = CHIPS[name]
    bounds = bound_step(model, chip, chips, slices)
    limit, seconds = bounds.limit
    host = HOST * PAIRS / chips / seconds  # pairs a second
    hours = STEPS * seconds / 3600
    yield f"{slices} x {chips // slices} {name}" if slices > 1 else f"{chips} {name}"
    for value in (bounds.arithmetic, bounds.memory, bounds.links, bounds.network):
        yield three_digits(1e3 * value) if value else "–"
    yield LIMITS.get(limit, limit)
    yield f"{PAIRS / seconds:,.0f}"
    yield f"{host * PICTURE_BYTES / 1e6:,.0f}"
    yield f"{host * PROCESSOR_SECONDS:.2g}"
    yield three_digits(hours / 24)
    yield f"{chips * hours:,.0f}"
    if prices:
        yield f"{chips * hours * prices[name]:,.0f}"


def table_of_checkpoints() -> Iterator[str]:
    """Yields the lines of the table of checkpoints."""
    hosts = [f"network of a {name} host" for name in CHIPS]
    yield f"| | bytes | {' | '.join(hosts)} | a local disk, as measured |"
    yield "|---" * (3 + len(hosts)) + "|"
    for model in MODELS:
        size = model.checkpoint
        cells = [model.title, f"{size / 1e9:.1f} GB"]
        cells += [f"{size / chip.network / HOST:.2g} s" for chip in CHIPS.values()]
        yield f"| {' | '.join(cells)} | {size / DISK:.0f} s |"


def table_of_chips() -> Iterator[str]:
    """Yields the lines of the table of chips."""
    yield "| chip | bfloat16 | HBM | links, sent | network | largest slice |"
    yield "|---" * 6 + "|"
    for name, chip in CHIPS.items():
        yield (
            f"| {name} | {chip.arithmetic / 1e12:.0f} TFLOP/s"
            f" | {chip.memory / 1e9:,.0f} GB/s | {chip.links / 1e9:.0f} GB/s"
            f" | {chip.network / 1e9:.4g} GB/s | {chip.largest:,} chips |"
        )


def table_of_models() -> Iterator[str]:
    """Yields the lines of the table of models."""
    yield "| | parameters | operations a pair | HBM a pair | gradients | embeddings |"
    yield "|---" * 6 + "|"
    for model in MODELS:
        yield (
            f"| {model.title} | {model.parameters / 1e6:.0f}M"
            f" | {model.flops / 1e9:.3g} GFLOP | {model.traffic / 1e9:.2f} GB"
            f" | {model.gradients / 1e9:.2f} GB | {model.embeddings / 1e6:.0f} MB |"
        )


def summarise() -> Iterator[str]:
    """Yields one line a model: which limits bind, and the fewest chip-hours."""
    for model in MODELS:
        steps = {
            case: bound_step(model, CHIPS[case[0]], *case[1:]).limit for case in cases()
        }
        counts = collections.Counter(
            LIMITS.get(limit, limit) for limit, _ in steps.values()
        )
        parts = [f"{limit} in {count}" for limit, count in counts.most_common()]
        hours, name = min(
            (chips * seconds * STEPS / 3600, name)
            for (name, chips, _), (_, seconds) in steps.items()
        )
        yield (
            f"* {model.title}: of {counts.total()} cases, the longest time is that of"
            f" {', of '.join(parts)}. The fewest chip-hours: {hours:,.0f}, on {name}."
        )


def busiest() -> str:
    """Describes the case in which hosts need the largest share of their processors."""
    found = [
        (bounds.input / bounds.limit[1], f"of {model.title} on {chips:,} {name}")
        for model in MODELS
        for name, chips, slices in cases()
        for bounds in [bound_step(model, CHIPS[name], chips, slices)]
    ]
    share, where = max(found)
    return f"{100 * share:.0f} % of a host's processors, {where}"


def write_page(prices: dict[str, float]) -> str:
    """Returns the page, with a column of prices if there are any."""
    first, second = ("\n".join(table_of_steps(model, prices)) for model in MODELS)
    page = pathlib.Path(__file__).with_name("scale_page.md").read_text()
    return page.format(
        pairs=PAIRS,
        steps=STEPS,
        milliseconds=1e3 * PROCESSOR_SECONDS,
        kilobytes=PICTURE_BYTES / 1e3,
        disk=DISK / 1e6,
        state=STATE_BYTES,
        host=HOST,
        processors=PROCESSORS,
        models="\n".join(table_of_models()),
        first=first,
        second=second,
        summary="\n".join(summarise()),
        busiest=busiest(),
        checkpoints="\n".join(table_of_checkpoints()),
        chips="\n".join(table_of_chips()),
    )


def read_prices(text: str) -> dict[str, float]:
    """Reads "v4:3.22,v6e:2.70"."""
    pairs = dict(part.split(":") for part in text.split(",") if part)
    if unknown := pairs.keys() - CHIPS.keys():
        raise argparse.ArgumentTypeError(
            f"unknown chips {sorted(unknown)}; known are {[*CHIPS]}"
        )
    return {name: float(price) for name, price in pairs.items()}


def main() -> None:
    """Prints the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--price", type=read_prices, default={}, metavar="CHIP:PRICE,..."
    )
    print(write_page(parser.parse_args().price), end="")


if __name__ == "__main__":
    main()
