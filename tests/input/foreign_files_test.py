"""Files as img2dataset and `datasets` write them train the quickstart's towers."""

import functools
import http.server
import math
import pathlib
import subprocess
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align_jax.runs.metric_lines import read_metrics
from align_jax.train import train
from configs import quickstart
from data.doctor.__main__ import diagnose
from data.index import index_dataset
from tests import tiny
from tests.input.written import pairs_of

pytestmark = pytest.mark.formats
ROOT = pathlib.Path(__file__).parents[2]
PYTHON = ROOT / ".venv-formats" / "bin" / "python"
COUNT = 240


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A table of pairs whose URLs a server of this process answers."""
    folder = tmp_path_factory.mktemp("pictures")
    [found] = pairs_of([COUNT])
    for number, (image, _) in enumerate(found):
        (folder / f"{number}.png").write_bytes(image)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    images, captions = zip(*found, strict=True)
    columns = {
        "url": [f"{address}/{number}.png" for number in range(COUNT)],
        "caption": captions,
        "image": images,
    }
    pq.write_table(pa.table(columns), folder / "pairs.parquet")
    yield folder / "pairs.parquet"
    server.shutdown()


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("webdataset", {"format": "webdataset", "text_feature": "json/caption"}),
        ("webdataset", {"format": "webdataset"}),
        (
            "parquet",
            {"format": "parquet", "image_feature": "jpg", "text_feature": "caption"},
        ),
        ("datasets", {"format": "parquet", "text_feature": "caption"}),
    ],
)
def test_files_of_others_train_the_quickstarts_towers(tmp_path, pairs, kind, fields):
    folder = tmp_path / "files"
    command = [PYTHON, "tests/input/foreign_writer.py", kind, folder, pairs]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    if fields["format"] == "webdataset":
        index_dataset(str(folder))
        assert not [f for f in diagnose(folder) if f.what != "duplicates"]
    config = quickstart.get_config()
    config.total_steps = 2  # and so no warm-up and no cooldown
    config = config.to_dict() | {"log_every_steps": 1, "evaluators": {}}
    config["vocabulary"] = tiny.write_vocabulary(tmp_path / "vocabulary.txt")
    config["input"]["datasets"] = {"files": {"directory": str(folder)} | fields}
    train(config, str(tmp_path / "run"))
    metrics = read_metrics(str(tmp_path / "run"))
    losses = [row["train/loss"] for row in metrics if "train/loss" in row]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
    replaced = [row.get("train/replaced_pairs", 0) for row in metrics]
    assert not any(replaced)
