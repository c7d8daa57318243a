"""Tests of builds on a disk that is too small, each in a separate process."""

import hashlib
import io
import os
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.mounted import run_mounting

BUILD = """
M={mount}
mount -t tmpfs -o size={size} none $M
code=0; {build} --workdir=$M/corpus || code=$?
mount -o remount,size=1g $M
{build} --workdir=$M/corpus
cp -r $M/corpus/records {saved}
exit $code
"""


@pytest.mark.faults
@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_a_full_disk_ends_a_build_which_goes_on_to_the_same_bytes(
    tmp_path, file_format
):
    random = np.random.default_rng(0)
    rows = []
    for number in range(150):
        file = io.BytesIO()
        pixels = random.integers(0, 256, (60, 60, 3), np.uint8)
        Image.fromarray(pixels).save(file, "PNG")
        rows.append({"image": file.getvalue(), "alt_text": f"noise number {number}"})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "raw.parquet")
    config = tmp_path / "config.py"
    config.write_text(f"""
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({{
        "name": "noise",
        "seed": 0,
        "ingest": {{"kind": "parquet", "path": "{tmp_path / "raw.parquet"}"}},
        "rules": {{"languages": (), "min_shorter_side": 8, "max_images_per_text": 150}},
        "vocabulary_size": 256,
        "shards": 2,
        "record_format": "{file_format}",
        "engine": {{"workers": 1, "memory_limit": "500MB"}},
    }})
""")
    mount = tmp_path / "disk"
    mount.mkdir()
    build = f"{sys.executable} -m data.build --config={config}"
    hashes = {}
    # The pictures have 1.6 MB. The disk is full in the stages pairs, exchange and
    # records; the last one has room for all.
    for size in ("1m", "2500k", "4m", "1g"):
        saved = tmp_path / f"saved_{size}"
        script = BUILD.format(mount=mount, size=size, build=build, saved=saved)
        done = run_mounting(script, os.environ)
        assert "Traceback" not in done.stderr
        found = [line for line in done.stderr.splitlines() if "data.build: " in line]
        if size == "1g":
            assert (done.returncode, found) == (0, []), done.stderr
        else:
            assert done.returncode == 2, done.stderr
            (line,) = found
            assert "cannot be written: " in line
            assert "No space left on device" in line
        hashes[size] = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in saved.iterdir()
        }
    assert all(found == hashes["1g"] for found in hashes.values())
