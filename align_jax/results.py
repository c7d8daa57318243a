"""A run's results: one flat JSON file and the table that shows it."""

import os

from align_jax import workdir as folder
from align_jax.telemetry import read_metrics

# Where a run's report lies, beside its results.
REPORT_FILE = "report.html"


def collect_results(workdir: str) -> dict[str, float]:
    """Gathers a finished run's results from its metrics.

    Returns:
      {"step": last step, "eval/...": its scores, "untrained/eval/...": those of step
      0, "train/...": the last step's metrics}.
    """
    rows = read_metrics(workdir)
    last = max(row["step"] for row in rows)
    results: dict[str, float] = {"step": last}
    for row in rows:
        step = row["step"]
        prefix = {0: "untrained/", last: ""}.get(step)
        if prefix is not None:
            own = {k: v for k, v in row.items() if k.startswith(("train/", "eval/"))}
            results |= {prefix + name: value for name, value in own.items()}
    return results


def table_rows(
    results: dict[str, float],
) -> list[tuple[str, float, float | None, float]]:
    """Lists (measure, value, untrained value, chance) of every recall and accuracy.

    The untrained value is None where the run was not evaluated at step 0; the chance of
    top1 is the share of the largest class.
    """
    rows = []
    for name, value in results.items():
        if not name.startswith("eval/"):
            continue
        if "_recall@" in name:
            chance = results[name.replace("_recall@", "_chance@")]
        elif name.endswith("/top1"):
            chance = results[name.removesuffix("top1") + "majority"]
        else:
            continue
        rows.append((name, value, results.get(f"untrained/{name}"), chance))
    return rows


def format_table(results: dict[str, float]) -> str:
    """Lays the table out for a terminal."""
    lines = [f"{'measure':<38}{'trained':>9}{'untrained':>11}{'chance':>9}"]
    for name, value, untrained, chance in table_rows(results):
        before = "" if untrained is None else f"{untrained:.3f}"
        lines.append(f"{name:<38}{value:>9.3f}{before:>11}{chance:>9.3f}")
    return "\n".join(lines)


def print_results(workdir: str) -> None:
    """Prints a finished run's table and where its files are."""
    path = os.path.join(workdir, folder.RESULTS_FILE)
    print(format_table(folder.read_json(path)))
    print(f"results: {path}")
    report = os.path.join(workdir, REPORT_FILE)
    if os.path.exists(report):
        print(f"report:  {report}")
