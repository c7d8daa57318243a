"""The results of a finished run and its report, one self-contained HTML page."""

import contextlib
import io
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from align_jax import places
from align_jax.embed.encoder import Encoder
from align_jax.embed.model import make_embedder
from align_jax.errors import warned
from align_jax.evaluation.datacomp import make_table
from align_jax.evaluation.evaluators import Evaluator, PairEvaluator
from align_jax.evaluation.examples import spread
from align_jax.evaluation.runner import make_evaluators
from align_jax.pictures import make_thumbnail
from align_jax.report.corpora import read_corpora
from align_jax.report.pages import TEMPLATES, encode_uri, render
from align_jax.report.plots import plot, plot_lines
from align_jax.runs import workdir as folder
from align_jax.runs.lost_time import split_time
from align_jax.runs.metric_lines import Row, stream_metrics
from align_jax.runs.provenance import count_starts, provenance, read_starts
from align_jax.runs.results import (
    PUBLISHED,
    REPORT_FILE,
    is_score,
    number_remarks,
    print_results,
    published_columns,
    read_results,
    table_rows,
)
from align_jax.weights.source import open_weights

HISTOGRAM_PICTURES = 1000
HISTOGRAM_BINS = 60

# Picture files of these types, up to this size, are put on the page unchanged.
SMALL_BYTES = 16 << 10
MIME_TYPES = {
    b"\x89PNG": "png",
    b"\xff\xd8\xff": "jpeg",
    b"GIF8": "gif",
    b"RIFF": "webp",
}
SIDE = 256  # longer side in pixels to which other pictures are reduced

PLOTTED = ("loss", "temperature", "pairs_per_second")  # metrics of training


def publish(
    workdir: str,
    fields: Mapping[str, Any],
    results: dict[str, float],
    evaluators: Mapping[str, Evaluator],
    embedder: Encoder,
) -> list[dict[str, str]]:
    """Writes a run's results, which makes it a finished one, then its report.

    Prints the results. If the report fails, a warning is printed instead of an error.
    Arguments and result are those of `write_report`, or no plots if it fails.
    """
    if folder.leads():
        places.write_json(os.path.join(workdir, folder.RESULTS_FILE), results)
    plots: list[dict[str, str]] = []
    with _warned(workdir):
        plots = write_report(workdir, fields, results, evaluators, embedder)
    _print(workdir)
    return plots


def show_finished(workdir: str, fields: Mapping[str, Any], source: str) -> None:
    """Prints the results of a finished run; writes the report if there is none.

    A run has no report if it was stopped before its page was complete, or if the page
    failed, as in an evaluator. It is drawn from the run's weights.

    Args:
      workdir: path or URL of the run's folder.
      fields: the run's literal config.
      source: weights that the run trained or evaluated, see `open_weights`.
    """
    if not places.exists(os.path.join(workdir, REPORT_FILE)):
        results = read_results(os.path.join(workdir, folder.RESULTS_FILE))
        with _warned(workdir):
            evaluators = make_evaluators(fields["evaluators"])
            embedder = make_embedder(open_weights(source))
            write_report(workdir, fields, results, evaluators, embedder)
    _print(workdir)


def _print(workdir: str) -> None:
    """Prints a finished run's results; the first process does."""
    if folder.leads():
        print_results(workdir)
        results = read_results(os.path.join(workdir, folder.RESULTS_FILE))
        if table := make_table(results):
            print(table.format())


def _warned(workdir: str) -> contextlib.AbstractContextManager[None]:
    path = os.path.join(workdir, REPORT_FILE)
    advice = "the results are, and the same command tries the report again"
    return warned(f"{path} is not written", advice)


def write_report(
    workdir: str,
    fields: Mapping[str, Any],
    results: dict[str, float],
    evaluators: Mapping[str, Evaluator],
    embedder: Encoder,
) -> list[dict[str, str]]:
    """Writes `<workdir>/report.html`; every process calls this, and the first writes.

    The page's command and versions are those of this process.

    Args:
      workdir: folder of the finished run.
      fields: the run's literal config, with its defaults.
      results: the run's results, see `collect_results`; used by the first process.
      evaluators: evaluators by name; the page shows some queries of each.
      embedder: the model with its final parameters.

    Returns:
      The page's plots, the dicts of `plot`; none in the other processes.
    """
    evaluations = {  # by all processes together
        name: describe(evaluator, embedder) for name, evaluator in evaluators.items()
    }
    if not folder.leads():
        return []
    rows, table = read_plotted(workdir), table_rows(results)
    marks = [step for step, _ in fields.get("phases", ())[1:]]
    training, scores = training_plots(rows, marks), score_plots(rows, marks)
    page = render(
        TEMPLATES / "run.html.jinja",
        run=os.path.basename(os.path.normpath(workdir)),
        workdir=workdir,
        results=results,
        table=table,
        published=published_columns([row.published for row in table]),
        columns=PUBLISHED["columns"],
        source=PUBLISHED["source"],
        remarks=number_remarks(row.name for row in table)[1],
        datacomp=make_table(results),
        times=split_time(results),
        training=training,
        scores=scores,
        corpora=read_corpora(fields),
        evaluations=evaluations,
        data_uri=data_uri,
        command=shlex.join(["python", *sys.argv]),
        provenance=provenance() | count_starts(read_starts(workdir)),
        config=json.dumps(fields, indent=2, ensure_ascii=False),
    )
    places.write_text(os.path.join(workdir, REPORT_FILE), page)
    similarities = [
        found["histogram"] | {"title": f"{name} {found['histogram']['title']}"}
        for name, found in evaluations.items()
        if found["histogram"]
    ]
    return [*training, *scores, *similarities]


def read_plotted(workdir: str) -> list[Row]:
    """Reads the steps, the scores and the `PLOTTED` metrics of a run's metric lines.

    A run of a million steps has lines of several GB in memory, most of it names.
    """
    names = ("step", *(f"train/{name}" for name in PLOTTED))
    rows = []
    for row in stream_metrics(workdir):
        scores = {name: row[name] for name in row if name.startswith("eval/")}
        rows.append({name: row[name] for name in names if name in row} | scores)
    return rows


def training_plots(rows: list[Row], marks: Sequence[int] = ()) -> list[dict[str, str]]:
    """Plots loss, temperature and speed over the steps.

    Args:
      rows: metric lines, see `read_plotted`.
      marks: steps at which later phases of the run begin.

    Returns:
      The dicts of `plot`, one for each of these metrics that occurs in the lines.
    """
    return [
        plot_lines(name.replace("_", " "), {name: points}, marks=marks)
        for name in PLOTTED
        if (points := [(r["step"], r[k]) for r in rows if (k := f"train/{name}") in r])
    ]


def score_plots(rows: list[Row], marks: Sequence[int] = ()) -> list[dict[str, str]]:
    """Plots every evaluator's scores over the steps, from 0 to 1 if they allow it.

    Args:
      rows: metric lines, see `read_plotted`.
      marks: steps at which later phases of the run begin.

    Returns:
      The dicts of `plot`, one for each evaluator.
    """
    lines: dict[str, dict[str, list]] = {}
    for row in rows:
        for name in filter(is_score, row):
            evaluator, _, score = name.removeprefix("eval/").rpartition("/")
            points = lines.setdefault(evaluator, {}).setdefault(score, [])
            points.append((row["step"], row[name]))
    plots = []
    for evaluator, series in lines.items():
        values = [value for points in series.values() for _, value in points]
        limits = (0, 1) if 0 <= min(values) and max(values) <= 1 else None
        plots.append(plot_lines(evaluator, series, limits, marks=marks))
    return plots


def data_uri(picture: bytes) -> str:
    """Turns a picture file into a data URI.

    A file of one of `MIME_TYPES` up to `SMALL_BYTES` is unchanged. Any other picture is
    reduced to `SIDE`, as JPEG, or as PNG if it is transparent.
    """
    kind = next((k for magic, k in MIME_TYPES.items() if picture.startswith(magic)), "")
    if not kind or len(picture) > SMALL_BYTES:
        reduced = make_thumbnail(picture, SIDE)
        kind = "png" if reduced.mode == "RGBA" else "jpeg"
        file = io.BytesIO()
        reduced.save(file, kind, quality=85)
        picture = file.getvalue()
    return encode_uri(picture, kind)


def describe(evaluator: Evaluator, embedder: Encoder) -> dict[str, Any]:
    """Lists an evaluator's examples, and plots the similarities of matched pairs.

    Returns:
      {"examples": {title: [Example, ...]}, "histogram": dict of `plot`, or None if the
      evaluator is no `PairEvaluator`}.
    """
    found = {
        title: list(examples)
        for title, examples in evaluator.examples(embedder).items()
    }
    histogram = None
    if isinstance(evaluator, PairEvaluator):
        images, texts, pairs = evaluator.matched_pairs(embedder)
        histogram = plot_similarity(images, texts, pairs)
    return {"examples": found, "histogram": histogram}


def plot_similarity(
    images: np.ndarray, texts: np.ndarray, pairs: np.ndarray
) -> dict[str, str]:
    """Plots the distribution of cosine similarity for matched and unmatched pairs.

    Args:
      images: (I, D) embeddings of unit length, of which up to HISTOGRAM_PICTURES are
        used, evenly.
      texts: (T, D) embeddings of unit length.
      pairs: (P, 2) indices of the image and the text of each matched pair.

    Returns:
      The dict that `plot` returns.
    """
    rows = np.array(spread(np.ones(len(images), bool), HISTOGRAM_PICTURES))
    similarity = images[rows] @ texts.T
    pairs = pairs[np.isin(pairs[:, 0], rows)]
    matched = similarity[np.searchsorted(rows, pairs[:, 0]), pairs[:, 1]]
    bounds = (float(similarity.min()), float(similarity.max()))
    # Counting unmatched pairs as all minus matched needs no second (I, T) array.
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
