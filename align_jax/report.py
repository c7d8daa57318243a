"""A finished run's report: one HTML page that loads nothing from elsewhere."""

import base64
import importlib.metadata
import io
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jinja2
import numpy as np
import tensorflow as tf
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from align_jax import workdir as folder
from align_jax.datasets import MANIFEST
from align_jax.embedding import Embedder
from align_jax.evaluators.retrieval import Found, Retrieval
from align_jax.results import PUBLISHED, REPORT_FILE, table_rows
from align_jax.telemetry import read_metrics

TEMPLATE = pathlib.Path(__file__).with_name("report.html.jinja")
ROOT = TEMPLATE.parents[1]
PACKAGES = "jax flax optax orbax-checkpoint tensorflow tensorflow-text".split()

IMAGE_QUERIES = 16
TEXT_QUERIES = 10
ANSWERS = 5
HISTOGRAM_PICTURES = 1000
HISTOGRAM_BINS = 60

# Okabe and Ito's colours, told apart by the colour-blind too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")

# First bytes of the picture files that tf.io.decode_image reads.
MIME_TYPES = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
    b"RIFF": "image/webp",
    b"\xff\x0a": "image/jxl",
    b"\0\0\0\x0cJXL": "image/jxl",
}


def write_report(
    workdir: str,
    fields: dict[str, Any],
    results: dict[str, float],
    evaluators: dict[str, Any],
    embedder: Embedder,
) -> str:
    """Writes `<workdir>/report.html`.

    Args:
      workdir: folder of the finished run.
      fields: the run's literal config.
      results: of the run, see `collect_results`.
      evaluators: by name; pictures and texts of every `Retrieval` are shown.
      embedder: with the final parameters.

    Returns:
      The page's path.
    """
    rows, table = read_metrics(workdir), table_rows(results)
    template = jinja2.Template(
        TEMPLATE.read_text(encoding="utf-8"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    page = template.render(
        run=os.path.basename(os.path.normpath(workdir)),
        workdir=workdir,
        results=results,
        table=table,
        published=PUBLISHED if any(any(row.published) for row in table) else None,
        training=training_plots(rows),
        scores=score_plots(rows),
        corpora=read_corpora(fields),
        retrievals={
            name: describe_retrieval(evaluator, embedder)
            for name, evaluator in evaluators.items()
            if isinstance(evaluator, Retrieval)
        },
        command=shlex.join(["python", *sys.argv]),
        provenance=provenance(),
        config=json.dumps(fields, indent=2, ensure_ascii=False),
    )
    path = os.path.join(workdir, REPORT_FILE)
    if folder.leads():
        folder.write_text(path, page)
    return path


def training_plots(rows: list[dict[str, float]]) -> list[dict[str, str]]:
    """Plots loss, temperature and speed over the steps; see `plot` for the values."""
    return [
        plot_lines(name.replace("_", " "), {name: points})
        for name in ("loss", "temperature", "pairs_per_second")
        if (points := [(r["step"], r[k]) for r in rows if (k := f"train/{name}") in r])
    ]


def score_plots(rows: list[dict[str, float]]) -> list[dict[str, str]]:
    """Plots every evaluator's recalls and accuracies over the steps."""
    lines: dict[str, dict[str, list]] = {}
    for row in rows:
        for name, value in row.items():
            evaluator, _, score = name.removeprefix("eval/").rpartition("/")
            shown = "_recall@" in score or score in ("top1", "top5")
            if name.startswith("eval/") and shown:
                points = lines.setdefault(evaluator, {}).setdefault(score, [])
                points.append((row["step"], value))
    return [plot_lines(name, series, (0, 1)) for name, series in lines.items()]


def plot_lines(
    title: str,
    lines: dict[str, list[tuple[float, float]]],
    limits: tuple[float, float] | None = None,
) -> dict[str, str]:
    """Plots named lines of (step, value); `limits` of the values, default theirs."""

    def draw(axes: Axes) -> None:
        for name, points in lines.items():
            axes.plot(
                *zip(*points, strict=True),
                label=name.replace("_", " "),
                marker="." if len(points) < 30 else "",
                linewidth=1.2,
            )
        axes.set_xlabel("step")
        axes.set_ylim(limits)
        if len(lines) > 1:
            axes.legend(fontsize="small")

    ends = [
        f"{name.replace('_', ' ')} from {points[0][1]:.4g} at step {points[0][0]:.0f}"
        f" to {points[-1][1]:.4g} at step {points[-1][0]:.0f}"
        for name, points in lines.items()
    ]
    return plot(title, "; ".join(ends), draw)


def plot(title: str, alt: str, draw: Callable[[Axes], None]) -> dict[str, str]:
    """Returns {"title", "alt", "picture": data URI of what `draw` puts on axes}."""
    figure = Figure(figsize=(6, 3.4), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.set_prop_cycle(color=COLOURS)
    draw(axes)
    axes.grid(alpha=0.3)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return {"title": title, "alt": alt, "picture": data_uri(file.getvalue())}


def data_uri(picture: bytes) -> str:
    """Turns a picture file into a data URI; ValueError where its type is unknown."""
    for magic, mime in MIME_TYPES.items():
        if picture.startswith(magic):
            return f"data:{mime};base64,{base64.b64encode(picture).decode()}"
    raise ValueError(f"no picture file starts with {picture[:8]!r}")


def read_corpora(fields: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Reads what the rules dropped, of each dataset whose manifest tells."""
    corpora = {}
    for name, dataset in fields.get("input", {}).get("datasets", {}).items():
        path = os.path.join(dataset["directory"], MANIFEST)
        manifest = folder.read_json(path) if tf.io.gfile.exists(path) else {}
        if "rules" in manifest:
            corpora[name] = manifest
    return corpora


def describe_retrieval(evaluator: Retrieval, embedder: Embedder) -> dict[str, Any]:
    """Lists some queries with their best answers, and plots the similarities."""
    found = evaluator.found or evaluator.find(embedder)
    return {
        "pictures": list(picture_queries(evaluator, found)),
        "texts": list(text_queries(evaluator, found)),
        "histogram": plot_similarity(found.images, found.texts, evaluator.pairs),
    }


def picture_queries(evaluator: Retrieval, found: Found) -> Iterator[dict]:
    """Yields query pictures with their best texts."""
    pairs, ranks = evaluator.pairs, found.ranks[0]
    for how, row in choose_queries(evaluator.image_queries, ranks, IMAGE_QUERIES):
        right = pairs[pairs[:, 0] == row, 1]
        answers = rank_answers(found.texts @ found.images[row], right, ranks[row])
        for answer in answers["best"]:
            answer["text"] = evaluator.texts[answer["index"]]
        text = evaluator.texts[answers["right_index"]]
        picture = data_uri(evaluator.pictures[row])
        yield {"chosen": how, "picture": picture, "right_text": text, **answers}


def text_queries(evaluator: Retrieval, found: Found) -> Iterator[dict]:
    """Yields query texts with their best pictures."""
    pairs, ranks = evaluator.pairs, found.ranks[1]
    for how, column in choose_queries(evaluator.text_queries, ranks, TEXT_QUERIES):
        right = pairs[pairs[:, 1] == column, 0]
        answers = rank_answers(found.images @ found.texts[column], right, ranks[column])
        for answer in answers["best"]:
            row = answer["index"]
            answer["picture"] = data_uri(evaluator.pictures[row])
            columns = pairs[pairs[:, 0] == row, 1][:1]
            answer["alt"] = "".join(evaluator.texts[i] for i in columns) or "no text"
        yield {"chosen": how, "text": evaluator.texts[column], **answers}


def choose_queries(
    flags: np.ndarray, ranks: np.ndarray, count: int
) -> list[tuple[str, int]]:
    """Picks `count` queries (N,) evenly, and of the others some worst and best."""
    even = spread(flags, count)
    others = np.setdiff1d(np.flatnonzero(flags), even)
    order = others[np.argsort(ranks[others], kind="stable")].tolist()
    ends = min(count, len(order)) // 2
    return [
        *(("picked evenly", query) for query in even),
        *(("one of the worst", query) for query in order[::-1][:ends]),
        *(("one of the best", query) for query in order[:ends]),
    ]


def spread(flags: np.ndarray, count: int) -> list[int]:
    """Picks up to `count` of the flagged indices (N,), evenly from first to last."""
    flagged = np.flatnonzero(flags)
    picked = np.linspace(0, len(flagged) - 1, min(count, len(flagged)))
    return flagged[picked.round().astype(int)].tolist()


def rank_answers(scores: np.ndarray, right: np.ndarray, rank: int) -> dict[str, Any]:
    """Lists one query's best candidates, wrong ones first among equals.

    Args:
      scores: (C,) similarity of every candidate.
      right: (m,) places of the right ones; at least one.
      rank: of the best right one, from 0, see `pair_ranks`.

    Returns:
      {"best": the first candidates' {"index", "score", "right"}, "right_rank": the
      rank, from 1, "right_index": the best right one}.
    """
    is_right = np.isin(np.arange(len(scores)), right)
    order = np.lexsort((is_right, -scores))
    return {
        "best": [
            {"index": int(i), "score": float(scores[i]), "right": bool(is_right[i])}
            for i in order[:ANSWERS]
        ],
        "right_rank": 1 + int(rank),
        "right_index": int(right[np.argmax(scores[right])]),
    }


def plot_similarity(
    images: np.ndarray, texts: np.ndarray, pairs: np.ndarray
) -> dict[str, str]:
    """Plots how cosine similarities of matched and unmatched pairs spread.

    Args:
      images: (I, D); of many, some are taken, evenly.
      texts: (T, D).
      pairs: (P, 2), picture and text of what belongs together.
    """
    rows = np.array(spread(np.ones(len(images), bool), HISTOGRAM_PICTURES))
    similarity = images[rows] @ texts.T
    pairs = pairs[np.isin(pairs[:, 0], rows)]
    matched = similarity[np.searchsorted(rows, pairs[:, 0]), pairs[:, 1]]
    bounds = (float(similarity.min()), float(similarity.max()))
    # Unmatched is all less matched: no second array of all pairs is made.
    both, edges = np.histogram(similarity, HISTOGRAM_BINS, bounds)
    counts, _ = np.histogram(matched, HISTOGRAM_BINS, bounds)
    unmatched = similarity.size - matched.size
    total = float(similarity.sum(dtype=np.float64))
    mean = (total - float(matched.sum(dtype=np.float64))) / max(unmatched, 1)

    def draw(axes: Axes) -> None:
        shares = {
            "unmatched": (both - counts) / max(unmatched, 1),
            "matched": counts / matched.size,
        }
        for name, share in shares.items():
            axes.stairs(share, edges, fill=True, alpha=0.5, label=name)
        axes.set_xlabel("cosine similarity")
        axes.set_ylabel("share of pairs")
        axes.legend(fontsize="small")

    alt = (
        f"{matched.size} matched pairs have a mean cosine similarity of"
        f" {matched.mean():.3f}, {unmatched} unmatched pairs one of {mean:.3f}"
    )
    return plot("cosine similarity", alt, draw)


def provenance() -> dict[str, str]:
    """Names the code's revision, the packages' versions and the devices."""
    found = {"git revision": git_revision() or "not known"}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed under this name"
    device = jax.devices()[0]
    kind = f"{jax.device_count()} x {device.device_kind} ({device.platform})"
    return found | {"python": platform.python_version(), "devices": kind}


def git_revision() -> str | None:
    """The checkout's commit, with "-dirty" where files were changed; None without."""
    if not (ROOT / ".git").exists():
        return None
    command = "git --no-optional-locks describe --always --dirty --abbrev=40"
    try:
        return subprocess.check_output(
            [*command.split(), "--exclude=*"],
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
            text=True,
        ).strip()
    except (OSError, subprocess.CalledProcessError):
        return None
