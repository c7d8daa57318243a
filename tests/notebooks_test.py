"""Runs the notebooks on tiny data and checks their stored outputs."""

import ast
import json
import pathlib
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from tests.english_test import faults_of_text

FOLDER = pathlib.Path(__file__).parents[1] / "docs" / "notebooks"
NAMES = ("classify_and_search", "corpus")
MAX_BYTES = 300_000
# A path of a machine, an address of memory, or a message that does not belong there.
FOREIGN = re.compile(
    r"(?<![\w.])/(home|root|tmp|work|usr)/|0x[0-9a-f]{6}|Warning|Error"
)


def code_cells(name: str) -> list[dict]:
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def run_cells(name: str, settings: dict[str, Any]) -> tuple[dict[str, Any], list]:
    """Runs a notebook as Jupyter does: all cells in one namespace, in their order.

    Args:
      name: name of the notebook.
      settings: values for variables of the first cell.

    Returns:
      The namespace after the last cell, and the value that each cell shows, or None.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = []
    for number, cell in enumerate(code_cells(name)):
        *body, last = ast.parse("".join(cell["source"])).body
        value = ast.Expression(last.value) if isinstance(last, ast.Expr) else None
        statements = ast.Module(body if value else [*body, last], type_ignores=[])
        where = f"{name}.ipynb, code cell {number}"
        exec(compile(statements, where, "exec"), names)
        shown.append(eval(compile(value, where, "eval"), names) if value else None)
        if not number:
            assert {*settings} <= {*names}, f"no settings {settings}"
            names |= settings
    return names, shown


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(FOLDER.parents[1])


def test_pictures_are_classified_and_searched(tmp_path, capsys):
    tiny.write_evaluation(tmp_path / "test")
    settings = {
        "MODEL": tiny.write_model(tmp_path / "model"),
        "PICTURES": str(tmp_path / "pictures"),
        "INDEX": str(tmp_path / "index"),
        "EXAMPLES": str(tmp_path / "test"),
        "SPLIT": "test",
        "LABELS": [*tiny.COLOURS],
    }
    names, shown = run_cells("classify_and_search", settings)
    # Eight of the twelve records are queries; these become the pictures.
    files, model = names["files"], names["model"]
    assert len(files) == len(names["index"]) == 8
    assert "8 pictures in the index" in capsys.readouterr().out
    probabilities = names["probabilities"]
    assert probabilities.shape == (8, 3)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert (names["best"] == probabilities.argmax(1)).all()

    embeddings = model.encode_images([*map(str, files)])  # (8, D)
    (query,) = model.encode_texts(["heart"])
    scores = embeddings @ query
    by_text = names["by_text"]
    order = [files[row].name for row in np.argsort(-scores)[:6]]
    assert [hit.id for hit in by_text] == order
    found = [hit.score for hit in by_text]
    np.testing.assert_allclose(found, np.sort(scores)[::-1][:6], atol=1e-5)
    assert names["by_picture"][0].id == by_text[0].id
    assert names["by_picture"][0].score == pytest.approx(1, abs=1e-5)
    for hits in (names["with_text"], names["without_text"]):
        assert len({hit.id for hit in hits}) == 6
    sheets = [value for value in shown if isinstance(value, Image.Image)]
    pictures = [sheet.width // names["SIDE"] for sheet in sheets]
    assert pictures == [8, len(tiny.COLOURS), 8, 6, 6, 6, 6]


def test_raw_pairs_become_a_corpus(tmp_path, capsys):
    folder = tmp_path / "raw"
    settings = {
        "RAW": str(folder / "pairs.tsv"),
        "CORPUS": str(tmp_path / "corpus"),
    }
    names, shown = run_cells("corpus", settings)
    report, raw = names["report"], names["raw"]
    assert len(raw) == report["pairs_raw"] + sum(report["drops"].values())
    assert report["drops"] == {"image file missing": 1, "path outside its folder": 1}
    assert report["pairs_in"] == report["pairs_raw"] - 1  # one pair is there twice
    first = {rule["rule"]: rule["first"] for rule in report["rules"]}
    assert report["pairs_kept"] == report["pairs_in"] - sum(first.values())
    assert report["pairs_kept"] == len(names["rows"]) == 48
    assert {name: count for name, count in first.items() if count} == {
        "other_language": 1,
        "undecodable": 1,
        "shorter_side": 1,
        "aspect_ratio": 1,
        "images_per_text": 11,
        "too_short": 1,
        "too_long": 1,
    }
    assert names["split"].num_examples == 48
    texts = {row[1].lower() for row in names["rows"]}
    assert len(names["first"]) == 6
    assert {record["text"].decode() for record in names["first"]} <= texts
    assert isinstance(shown[-1], Image.Image)
    assert "pairs_kept" not in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_stored_outputs_are_whole_small_and_of_no_machine(name):
    assert (FOLDER / f"{name}.ipynb").stat().st_size < MAX_BYTES
    cells = code_cells(name)
    counts = [cell["execution_count"] for cell in cells]
    assert counts == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs
    assert {output["output_type"] for output in outputs} <= {
        "execute_result",
        "stream",
    }
    assert all(output.get("name", "stdout") == "stdout" for output in outputs)
    text = json.dumps(
        [
            output.get("text", output.get("data", {}).get("text/plain"))
            for output in outputs
        ]
    )
    assert not FOREIGN.search(text), FOREIGN.search(text)


def test_every_notebook_is_run():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == {*NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_in_plain_english(name):
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]
    faults = [f for cell in cells for f in faults_of_text("".join(cell["source"]))]
    assert not faults, faults
