"""Writes the folders of runs, for tests of reports."""

import json


def write_run(folder, fields, scores, step=20, finished=True, **metrics):
    folder.mkdir(parents=True)
    named = {f"eval/{name}": value for name, value in scores.items()}
    rows = [
        {"step": step / 2, "train/loss": 3.0},
        {"step": step, "train/loss": 1.5}
        | {f"train/{k}": v for k, v in metrics.items()},
        {"step": step, **named},
    ]
    files = {"config.json": fields, "provenance.json": {"git revision": "0123abc"}}
    if finished:
        files["results.json"] = {"step": step, **named}
        (folder / "report.html").touch()
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(lines)
