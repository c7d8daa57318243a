import itertools
import os
import pathlib
import random
import subprocess
import sys

import pytest

from tests import tiny
from tests.input.written import WRITERS, write_format
from tests.input_reader import read_hashes

STEPS = 60  # more than four epochs of 96 pairs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("readers")
    for name in ("tfds", *WRITERS):
        write_format(name, root, [30, 20, 25, 21])
    tiny.write_vocabulary(root / "vocabulary.txt")
    return root


@pytest.fixture(scope="module")
def expected(folder):
    """Hashes of the global batches of one uninterrupted reader of TFRecord files."""
    hashes = read_hashes(str(folder), 0, 1, 0, workers=1)
    return list(itertools.islice(hashes, STEPS))


def start_reader(folder, host, hosts, step, name):
    command = [sys.executable, "-m", "tests.input_reader", str(folder)]
    return subprocess.Popen(
        [*command, str(host), str(hosts), str(step), name],
        cwd=pathlib.Path(__file__).parents[2],
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=subprocess.PIPE,
        text=True,
    )


def kill(readers):
    for reader in readers:
        reader.kill()
        reader.wait()
        reader.stdout.close()


def read_steps(reader, count):
    """Reads the next `count` steps of a reader: their numbers and their rows."""
    lines = [reader.stdout.readline().split() for _ in range(count)]
    return [int(line[0]) for line in lines], [line[1:] for line in lines]


@pytest.mark.pods
@pytest.mark.parametrize(
    ("hosts", "name"),
    [(2, "tfds"), (1, "tfds"), (4, "tfds"), *((2, name) for name in WRITERS)],
)
def test_killed_processes_go_on_with_the_same_global_batches(
    folder, expected, hosts, name
):
    before = random.randint(5, 30)  # any number must work; pytest shows a failing one
    readers = [start_reader(folder, host, hosts, 0, name) for host in range(hosts)]
    first = [read_steps(reader, before) for reader in readers]
    kill(readers)
    readers = [start_reader(folder, host, hosts, before, name) for host in range(hosts)]
    second = [read_steps(reader, 20) for reader in readers]
    kill(readers)
    assert all(numbers == [*range(before)] for numbers, _ in first)
    assert all(numbers == [*range(before, before + 20)] for numbers, _ in second)
    for step in range(before):
        found = [*itertools.chain.from_iterable(rows[step] for _, rows in first)]
        assert found == expected[step]
    for step in range(20):
        found = [*itertools.chain.from_iterable(rows[step] for _, rows in second)]
        assert found == expected[before + step]
