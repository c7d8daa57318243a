"""Damaged pictures: every part survives them and gives the same verdict."""

import base64
import collections
import concurrent.futures
import os
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from align_jax.embed.model import load
from align_jax.errors import InputError
from align_jax.input.preprocess import PreprocessConfig, train_image
from align_jax.pictures import MAX_PIXELS, PictureError, open_picture, read_picture
from align_jax.search.batching import BatchingEncoder
from align_jax.search.collection import Entry
from align_jax.search.indexing import index_pictures
from align_jax.search.uploads import MAX_PIXELS as MAX_UPLOADED
from align_jax.search.uploads import read_upload
from align_jax.search.vector_index import Description, create_index
from align_jax.weights.folder import digest
from data.doctor.records import READERS, scan_shard
from data.pictures.images import describe_images
from data.records.record_shards import reduce_image
from data.records.records import make_example, write_shard
from tests import tiny
from tests.mutated_pictures import draw_pictures, mutate

SEED = 33
FEW, MANY, AT_ONCE = 300, 15_000, 250
PROGRAMS = (
    "gs gswin32c gswin64c magick convert ffmpeg heif-convert rsvg-convert".split()
)
SIZES = PreprocessConfig(resize=18, image_size=16)
# The stated bound of one picture's memory, see docs/input.md.
BYTES_PER_PIXEL, CONSTANT_BYTES = 32, 64 * 2**20


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Puts programs in front of PATH that write their name to a file, returned."""
    folder, log = tmp_path / "bin", tmp_path / "started"
    folder.mkdir()
    for name in PROGRAMS:
        (folder / name).write_text(f"#!/bin/sh\necho {name} >> {log}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return log


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(tiny.write_model(tmp_path_factory.mktemp("model") / "model"))


def test_the_drawn_pictures_are_read_unless_their_format_is_not_accepted():
    for name, content in draw_pictures().items():
        (row,) = describe_images([name], [content]).to_pylist()
        refused = name.startswith("no ") or name in ("TIFF 2", "TIFF 3")  # F and I
        assert (row["error"] is not None) == refused, (name, row["error"])


def test_damaged_pictures_get_one_verdict(model, programs, tmp_path):
    outcome = check(model, FEW, tmp_path)
    assert min(outcome["read"], outcome["refused"]) > FEW / 10
    assert not programs.exists()


@pytest.mark.faults
def test_many_damaged_pictures_get_one_verdict(model, programs, tmp_path):
    outcome = check(model, MANY, tmp_path)
    print(dict(outcome))
    assert min(outcome["read"], outcome["refused"]) > MANY / 10
    assert not programs.exists()


def check(model, count: int, folder: pathlib.Path) -> collections.Counter:
    """Passes damaged pictures through the five parts; returns counts of verdicts."""
    width = model.width
    description = Description(digest(model.weights), "", width, 8)
    index = create_index(str(folder / "index"), description)
    server = BatchingEncoder(model, 16, AT_ONCE)
    outcome: collections.Counter = collections.Counter()
    whole = draw_pictures()
    for content in whole.values():  # Numba's compiling is not memory of a picture
        train_image(content, (SEED, 0), SIZES)
    contents = list(mutate(whole, count, SEED))
    for start in range(0, count, AT_ONCE):
        part = contents[start : start + AT_ONCE]
        pixels = [claimed_pixels(content) for content in part]
        corpus, peaks = in_the_corpus(part)
        trained, more = in_training(part)
        peaks = [*map(max, peaks, more)]
        verdicts = {
            "training": trained,
            "doctor": by_the_doctor(part, folder / f"shard{start}"),
            "search": in_search(part, model, index, start),
        }
        for name, verdict in verdicts.items():
            wrong = [
                start + i
                for i, is_right in enumerate(corpus == verdict)
                if not is_right
            ]
            assert not wrong, (name, wrong)
        # The server takes fewer pixels than the others.
        small = [i for i, found in enumerate(pixels) if found <= MAX_UPLOADED]
        answers = by_the_server([part[i] for i in small], server)
        assert (answers == corpus[small]).all(), start
        for content, found, peak in zip(part, pixels, peaks, strict=True):
            bound = BYTES_PER_PIXEL * min(found, MAX_PIXELS) + CONSTANT_BYTES
            assert peak < bound, (start, found, peak, content[:80])
            outcome["largest MiB"] = max(outcome["largest MiB"], peak >> 20)
            small_one = found < 10**6
            key = "largest MiB of small ones"
            outcome[key] = max(outcome[key], small_one * peak >> 20)
        outcome["read"] += int(corpus.sum())
        outcome["refused"] += int((~corpus).sum())
        outcome.update(reason_of(content) for content in part)
    server.close()
    return outcome


def claimed_pixels(content: bytes) -> int:
    """Returns the number of pixels in a file's header; 0 if none can be read."""
    try:
        with open_picture(content) as opened:
            return opened.width * opened.height
    except PictureError as error:
        found = re.search(r"is (\d+) x (\d+) pixels", str(error))
        return int(found[1]) * int(found[2]) if found else 0


def reason_of(content: bytes) -> str:
    try:
        read_picture(content)
    except PictureError as error:
        return error.reason
    return "whole"


def in_the_corpus(contents: list[bytes]) -> tuple[np.ndarray, list[int]]:
    """Measures and reduces pictures; returns verdicts and bytes of memory."""
    verdicts, peaks = [], []
    for content in contents:
        before = start_of_peak()
        (row,) = describe_images(["a"], [content]).to_pylist()
        peaks.append(peak_of_memory() - before)
        verdicts.append(row["error"] is None)
        if row["error"] is None:
            assert min(row["width"], row["height"]) > 0
            reduced = Image.fromarray(read_picture(reduce_image(content, 16)))
            assert max(reduced.size) <= 16
    return np.array(verdicts), peaks


def in_training(contents: list[bytes]) -> tuple[np.ndarray, list[int]]:
    """Prepares pictures as training does; returns verdicts and bytes of memory."""
    verdicts, peaks = [], []
    for i, content in enumerate(contents):
        before = start_of_peak()
        reason = train_image(content, (SEED, i), SIZES)[1]
        peaks.append(peak_of_memory() - before)
        assert (reason or "whole") == reason_of(content)
        verdicts.append(not reason)
    return np.array(verdicts), peaks


def by_the_doctor(contents: list[bytes], path: pathlib.Path) -> np.ndarray:
    examples = [
        make_example(image=content, text=b"a", image_id=str(i).encode(), key=i)
        for i, content in enumerate(contents)
    ]
    write_shard(path, examples)
    scan = scan_shard(path, READERS["tfrecord"], 1, 0, lambda _: None)
    assert len(scan.offsets) == scan.decoded == len(contents)
    refused = {offset for offset, _ in scan.undecodable}
    return np.array([offset not in refused for offset in scan.offsets])


def in_search(contents: list[bytes], model, index, start: int) -> np.ndarray:
    names = [f"{start + i}" for i in range(len(contents))]
    entries = [
        Entry(name, "", "", content)
        for name, content in zip(names, contents, strict=True)
    ]
    done = index_pictures(model, entries, index, lambda _: None)
    assert done.added == len(contents) - len(done.unreadable)
    return np.array([name not in done.unreadable for name in names])


def by_the_server(contents: list[bytes], encoder: BatchingEncoder) -> np.ndarray:
    def answer(content: bytes) -> bool:
        try:
            file = read_upload(base64.b64encode(content).decode())
            return bool(np.isfinite(encoder.encode_images([file])).all())
        except InputError:
            return False

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        return np.array([*pool.map(answer, contents)], bool)


def start_of_peak() -> int:
    """Sets the process's peak of memory to the memory it has, which is returned."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def peak_of_memory() -> int:
    return memory("VmHWM")


def memory(field: str) -> int:
    status = pathlib.Path("/proc/self/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    assert found
    return 1024 * int(found[1])
