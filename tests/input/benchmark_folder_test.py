from tests import wds
from tests.places_test import run


def test_a_set_in_a_bucket_is_read_as_on_a_disk(tmp_path):
    classes = wds.write_classes(tmp_path / "classes", groups=3)
    captions = wds.write_captions(tmp_path / "captions")
    run(f"""
import pathlib
from align_jax.input import benchmark_folder as folder

root = pathlib.Path({str(tmp_path)!r})
for path in root.rglob("*.*"):
    places.write_bytes(f"gs://bucket/{{path.relative_to(root)}}", path.read_bytes())
near = folder.BenchmarkPictures({classes!r}, "test", 12)
far = folder.BenchmarkPictures("gs://bucket/classes", "test", 12)
assert [*near] == [*far] and far.names == near.names and far.count == 12
assert [row.tolist() for row in far.metadata] == [row.tolist() for row in near.metadata]
assert far.metadata[4].tolist() == [1, 7, 1]
assert far.some([7, 0]) == near.some([0, 7])
pairs = folder.read_captions("gs://bucket/captions", "test")
assert pairs == folder.read_captions({captions!r}, "test")
assert pairs[0][1] == ["red left", "the red left"]
assert folder.read_type("gs://bucket/captions") == folder.RETRIEVAL
assert folder.read_templates("gs://bucket/classes") == ["{{}}", "{{}} left"]
""")
