import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align_jax.errors import InputError
from tests.data.sources.reading import PNG, read, write_tar


@pytest.mark.parametrize("packing", ["webdataset", "parquet", "tfrecord", "files"])
def test_img2dataset_output(tmp_path, packing):
    rows = [
        {"caption": "one", "url": "http://u/1", "key": "000", "status": "success"},
        {"caption": "two", "url": "http://u/2", "key": "001", "status": "success"},
        {
            "caption": "three",
            "url": "http://u/3",
            "key": "002",
            "status": "failed_to_download",
        },
    ]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    if packing == "parquet":
        columns |= {"txt": columns["caption"], "jpg": [PNG, PNG, None]}
    pq.write_table(pa.table(columns), tmp_path / "00000.parquet")
    if packing == "webdataset":
        members = []
        for row in rows[:2]:
            parts = {"jpg": PNG, "txt": row["caption"].encode()}
            parts["json"] = json.dumps(row).encode()
            members += [(f"{row['key']}.{name}", c) for name, c in parts.items()]
        write_tar(tmp_path / "00000.tar", members)
    elif packing == "tfrecord":
        import tensorflow as tf

        from data.records.records import make_example

        with tf.io.TFRecordWriter(str(tmp_path / "00000.tfrecord")) as writer:
            for row in rows[:2]:
                fields = {name: value.encode() for name, value in row.items()}
                writer.write(make_example(**fields, jpg=PNG, width=3))
    elif packing == "files":
        (tmp_path / "00000").mkdir()
        for row in rows[:2]:
            (tmp_path / "00000" / f"{row['key']}.jpg").write_bytes(PNG)
    found, drops = read("img2dataset", tmp_path)
    expected = [(PNG, "http://u/1", "one", ""), (PNG, "http://u/2", "two", "")]
    assert found == expected
    assert drops == {"img2dataset: failed_to_download": 1}


def test_an_unfinished_img2dataset_shard_is_refused(tmp_path):
    path = tmp_path / "00000.parquet"
    path.write_bytes(b"PAR1 cut")
    with pytest.raises(InputError, match="img2dataset was stopped before"):
        read("img2dataset", tmp_path)
    pq.write_table(pa.table({"key": ["1"], "status": ["success"]}), path)
    with pytest.raises(InputError, match=r"no pictures beside .*wanted 00000\.tar"):
        read("img2dataset", tmp_path)
