"""Draws the plots of the report pages."""

import io
from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from align_jax.report.pages import encode_uri

# Okabe and Ito's colours, which colour-blind readers can also distinguish.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
DASHES = ("-", "--", ":", "-.")  # the next one whenever all colours are used


def plot_lines(
    title: str,
    lines: dict[str, list[tuple[float, float]]],
    limits: tuple[float, float] | None = None,
    among: Sequence[str] = (),
    marks: Sequence[int] = (),
) -> dict[str, str]:
    """Plots named lines over the training step.

    Args:
      title: title of the plot.
      lines: points (step, value) of each line, by its name.
      limits: lowest and highest value of the vertical axis; None fits it to the lines.
      among: line names of several plots, this one included, so that a line looks the
        same in all of them; by default the names of `lines`.
      marks: steps at which a vertical line stands, where a phase of the run begins.

    Returns:
      The dict that `plot` returns.
    """
    looks = {name: i for i, name in enumerate(among or lines)}

    def draw(axes: Axes) -> None:
        for name, points in lines.items():
            axes.plot(
                *zip(*points, strict=True),
                label=name.replace("_", " "),
                marker="." if len(points) < 30 else "",
                color=COLOURS[looks[name] % len(COLOURS)],
                linestyle=DASHES[looks[name] // len(COLOURS) % len(DASHES)],
                linewidth=1.2,
            )
        for step in marks:
            axes.axvline(step, color="grey", linestyle=":", linewidth=1)
        axes.set_xlabel("step")
        axes.set_ylim(limits)
        if len(lines) > 1:
            axes.legend(fontsize="small" if len(lines) <= len(COLOURS) else "xx-small")

    ends = [
        f"{name.replace('_', ' ')} from {points[0][1]:.4g} at step {points[0][0]:.0f}"
        f" to {points[-1][1]:.4g} at step {points[-1][0]:.0f}"
        for name, points in lines.items()
    ]
    if marks:
        ends.append(f"phases begin at steps {', '.join(map(str, marks))}")
    return plot(title, "; ".join(ends), draw)


def plot_points(
    title: str,
    of: str,
    series: Mapping[str, Mapping[str, tuple[float, float]]],
) -> dict[str, str]:
    """Plots labelled points over a size, on a logarithmic horizontal axis.

    Args:
      title: title of the plot.
      of: name of the size, as the label of the horizontal axis.
      series: points of each series, {series name: {label: (size, value)}}.

    Returns:
      The dict that `plot` returns.
    """

    def draw(axes: Axes) -> None:
        for name, points in series.items():
            ordered = sorted(points.values())
            axes.plot(*zip(*ordered, strict=True), "o", label=name.replace("_", " "))
            for thing, point in points.items():
                text = thing.replace("_", " ")
                axes.annotate(text, point, (4, 3), textcoords="offset points", size=6)
        axes.set_xscale("log")
        axes.set_xlabel(of)
        if len(series) > 1:
            axes.legend(fontsize="small")

    told = [
        f"{name.replace('_', ' ')}: "
        + ", ".join(f"{t} {x:.4g} {y:.4g}" for t, (x, y) in points.items())
        for name, points in series.items()
    ]
    return plot(title, "; ".join(told), draw)


def plot(title: str, alt: str, draw: Callable[[Axes], None]) -> dict[str, str]:
    """Draws a plot.

    Args:
      title: title, which is not drawn.
      alt: text for readers who cannot see the plot.
      draw: function that draws on the axes.

    Returns:
      {"title": title, "alt": alt, "picture": data URI of a PNG file}.
    """
    figure = Figure(figsize=(6, 3.4), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.set_prop_cycle(color=COLOURS)
    draw(axes)
    axes.grid(alpha=0.3)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return {"title": title, "alt": alt, "picture": encode_uri(file.getvalue(), "png")}
