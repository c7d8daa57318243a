import json

import pytest

from align_jax import places
from align_jax.runs import metric_lines
from align_jax.runs.metric_lines import (
    modified,
    open_lines,
    read_last_metrics,
    read_metrics,
)
from align_jax.runs.pace import DEVICE_HOURS, PRODUCTIVE, STARTED
from tests.runs.telemetry_test import rows_of


def train(workdir, start, end, loss):
    """Writes the lines of the steps after `start`, and scores of each fifth step."""
    writer, past = open_lines(str(workdir), start)
    if not start:
        writer.write_scalars(0, {"eval/a": loss})
    for step in range(start + 1, end + 1):
        writer.write_scalars(step, {"train/loss": loss})
        if step % 5 == 0:
            writer.write_scalars(step, {"eval/a": loss})
        writer.flush()
    writer.close()
    return past


def values(workdir, read=read_metrics):
    return [
        (row["step"], row.get("train/loss", row.get("eval/a")))
        for row in read(str(workdir))
        if STARTED not in row
    ]


@pytest.fixture(params=["file", "parts", "file, then parts"])
def workdir(request, tmp_path, monkeypatch):
    """A run that was killed twice and went on, with its lines in one of two forms."""
    monkeypatch.setattr(metric_lines, "PART_BYTES", 100)
    if request.param == "parts":
        (tmp_path / "metrics").mkdir()
        (tmp_path / "metrics" / "0000-00000000-000000.jsonl").touch()
    train(tmp_path, 0, 3, 1.0)  # killed before its first checkpoint
    train(tmp_path, 0, 9, 2.0)
    if request.param == "file, then parts":
        (tmp_path / "metrics").mkdir()
        (tmp_path / "metrics" / "0000-00000005-000000.jsonl").touch()
    past = train(tmp_path, 5, 7, 3.0)
    assert [row["step"] for row in past if "eval/a" in row] == [0, 5]
    train(tmp_path, 7, 11, 4.0)
    return tmp_path


WANTED = [(0, 2.0), *((step, 2.0) for step in range(1, 6)), (5, 2.0)]
WANTED += [(6, 3.0), (7, 3.0), (8, 4.0), (9, 4.0), (10, 4.0), (10, 4.0), (11, 4.0)]


def test_each_step_counts_once_whatever_was_killed(workdir):
    assert values(workdir) == values(workdir, read_last_metrics) == WANTED
    starts = [row["step"] for row in read_metrics(str(workdir)) if STARTED in row]
    assert starts == [0, 0, 5, 7]
    if not (workdir / "metrics").exists():
        assert read_metrics(str(workdir)) == rows_of(workdir)


def test_a_flush_sends_one_part_at_most_and_old_parts_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(metric_lines, "PART_BYTES", 2000)
    monkeypatch.setattr(places, "is_url", lambda place: place == str(tmp_path))
    sent, write = [], places.write_text

    def count(file, text):
        sent.append(len(text))
        write(file, text)

    monkeypatch.setattr(places, "write_text", count)
    train(tmp_path, 0, 500, 1.0)
    once = sum(sent)
    assert max(sent) < 2100
    train(tmp_path, 500, 1000, 1.0)
    assert sum(sent) / once < 2.1  # a file sent again at each flush gives 4
    parts = [
        path.stat().st_mtime_ns for path in sorted((tmp_path / "metrics").iterdir())
    ]
    assert 19 < len(parts) < 40
    assert modified(str(tmp_path)) == pytest.approx(parts[-1] / 1e9)
    before = {path: path.read_bytes() for path in (tmp_path / "metrics").iterdir()}
    train(tmp_path, 700, 701, 2.0)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert values(tmp_path)[-2:] == [(700, 1.0), (701, 2.0)]


def test_a_start_reads_the_newest_parts_and_the_first_line_of_each_start(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(metric_lines, "PART_BYTES", 1000)
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "0000-00000000-000000.jsonl").touch()
    for start, end in ((0, 300), (280, 600), (590, 900)):
        writer, _ = open_lines(str(tmp_path), start)
        for step in range(start + 1, end + 1):
            writer.write_scalars(step, {"train/loss": 1.0})
            if step % 10 == 0:
                totals = {PRODUCTIVE: 2.0 * step, DEVICE_HOURS: start + 3.0 * step}
                writer.write_scalars(step, totals)
                writer.write_scalars(step, {"eval/a": 1.0 * step})
                writer.flush()
    rows = [row for row in read_metrics(str(tmp_path)) if row["step"] <= 850]
    read, read_part = [], metric_lines._read_part

    def count(workdir, part):
        read.append(part)
        return read_part(workdir, part)

    monkeypatch.setattr(metric_lines, "_read_part", count)
    _, past = open_lines(str(tmp_path), 850)
    assert len(list((tmp_path / "metrics").iterdir())) > 30
    assert len(read) < 12
    new, past = past[-1], past[:-1]
    assert new[DEVICE_HOURS] == 590 + 3.0 * 900  # lost steps cost time, too
    assert max(row.get(PRODUCTIVE, 0.0) for row in past) == 2.0 * 850
    for counts in (lambda row: STARTED in row, lambda row: row["step"] == 850):
        wanted = [row for row in rows if counts(row) and "train/loss" not in row]
        assert [row for row in past if counts(row)] == wanted
    assert len(wanted) == 2
    assert [row["step"] for row in past if STARTED in row] == [0, 280, 590]


DAMAGED = [b"\0" * 30, b'{"step": 3, "train/lo', b"[3]", b'{"loss": 1}', b"\xff\xfe"]


@pytest.mark.parametrize("damage", [*DAMAGED, b'{"step": 3, "train/loss": "high"}'])
def test_a_damaged_line_is_skipped_and_named(tmp_path, capsys, damage):
    lines = [json.dumps({"step": step, "train/loss": 1.0}) for step in (1, 2, 4)]
    rest = [line.encode() for line in lines]
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join([rest[0], rest[1], damage, rest[2], b""]))
    for read in (read_metrics, read_last_metrics):
        assert [row["step"] for row in read(str(tmp_path))] == [1, 2, 4]
        told = f"warning: line 3 of {path} is no metric line and was skipped\n"
        assert capsys.readouterr().err == told
    assert [row["step"] for row in open_lines(str(tmp_path), 4)[1]] == [4]
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2, 4, 4]
