import io

import pytest
import tensorflow as tf
from PIL import Image

from align_jax.errors import InputError
from data.sources.config import SourceConfig
from data.sources.source import list_shards
from tests.data.sources.reading import read


def test_tfds_dataset_with_several_texts(tmp_path):
    import tensorflow_datasets as tfds

    from data.records.records import (
        image_feature,
        make_example,
        write_metadata,
        write_split,
    )

    texts = tfds.features.Sequence({"text": tfds.features.Text()})
    features = tfds.features.FeaturesDict(
        {"image": image_feature(), "captions": texts, "language": tfds.features.Text()}
    )
    pictures = []
    for n in range(3):  # TFDS decodes the first picture
        file = io.BytesIO()
        Image.new("RGB", (2, 2), (n, 0, 0)).save(file, "png")
        pictures.append(file.getvalue())
    examples = [
        make_example(
            image=pictures[n],
            language=b"en",
            **{"captions/text": [f"a {n}".encode(), f"b {n}".encode()]},
        )
        for n in range(3)
    ]
    shards = write_split(tmp_path, "pairs", "train", iter(examples), count=3, shards=2)
    write_metadata(tmp_path, "pairs", features, {"train": shards})
    config = SourceConfig("tfds", str(tmp_path), text_column="captions/text")
    assert len(list_shards(config)) == 2
    rows, drops = read("tfds", tmp_path, text_column="captions/text")
    assert rows == [
        (pictures[n], None, f"{which} {n}", "en") for n in range(3) for which in "ab"
    ]
    assert not drops
    with pytest.raises(InputError, match=r"has no split 'test'; it has \['train'\]"):
        read("tfds", tmp_path, split="test")
    with pytest.raises(InputError, match=r"lacks the features \['alt_text'\]"):
        read("tfds", tmp_path)
    with pytest.raises(InputError, match="no TFDS dataset or folder 'no_such_name'"):
        read("tfds", "no_such_name")
    (path,) = tmp_path.glob("*.tfrecord-00001-of-00002")
    whole = [record.numpy() for record in tf.data.TFRecordDataset(str(path))]
    assert len(whole) == 2
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(whole[0])
    rest, drops = read("tfds", tmp_path, text_column="captions/text")
    assert rest == rows[:4]
    assert drops == {"truncated tfrecord": 1}
