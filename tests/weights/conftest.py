import pathlib

import pytest

from tests.weights.clip_folders import write_folder


@pytest.fixture
def clip_folder(tmp_path):
    """The folder of a small CLIP."""
    return pathlib.Path(write_folder(tmp_path / "clip", "clip_small"))
