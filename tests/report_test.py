import html.parser
import json
import re
import sys

import numpy as np
import pytest

from align_jax import report
from align_jax.evaluators.retrieval import Retrieval
from align_jax.sharding import make_mesh
from tests.tiny import NAMES, draw

VOID = {"meta", "img", "link", "br", "hr", "input"}
TEXTS = ["red left", "<script>alert(1)</script>", "blue top", "see https://x.org/a.png"]

# Row 0 finds its text first, row 1 second, row 2 ties with a wrong text.
SIMILARITY = np.array(
    [[0.9, 0.1, 0.2, 0.3], [0.1, 0.5, 0.2, 0.625], [0.25, 0.0, 0.75, 0.75]],
    np.float32,
)

RESULTS = {
    "step": 4,
    "train/loss": 1.5,
    "eval/pairs/i2t_recall@1": 0.3125,
    "eval/pairs/i2t_chance@1": 0.0625,
    "untrained/eval/pairs/i2t_recall@1": 0.1875,
    "eval/colour/top1": 0.4375,
    "eval/colour/majority": 0.5625,
    "eval/pairs/i2t_queries": 3,
    "eval/coco/mean_recall": 0.5,
    "eval/coco/i2t_queries": 5000,
    "eval/imagenet/top1": 0.25,
    "eval/imagenet/majority": 0.001,
}


class FakeRetrieval(Retrieval):
    def __init__(self):
        self.pictures = [draw(name, 0) for name in NAMES[:3]]
        self.texts = TEXTS
        self.pairs = np.array([[0, 0], [1, 1], [2, 2]])
        self.image_queries = np.array([True, True, True])
        self.found = None
        self.text_queries = np.array([True, True, True, False])


class FakeEmbedder:
    mesh = make_mesh()

    def encode_images(self, pictures):
        return SIMILARITY

    def encode_texts(self, texts):
        return np.eye(4, dtype=np.float32)


class Page(html.parser.HTMLParser):
    """Keeps every element's tag, attributes and text; refuses unbalanced tags."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        element = {"tag": tag, "text": "", **dict(attributes)}
        assert len(attributes) == len(dict(attributes))
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag, **attributes):
        return [
            e
            for e in self.elements
            if e["tag"] == tag and attributes.items() <= e.items()
        ]


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a report of a run of four steps; returns the page."""
    monkeypatch.setattr(report, "ROOT", tmp_path)  # no checkout
    monkeypatch.setattr(sys, "argv", ["main.py", "--config=a b.py"])
    run = tmp_path / "run"
    run.mkdir()
    rows = [{"step": 0, "eval/pairs/i2t_recall@1": 0.1875}]
    for step in range(1, 5):
        train = {"loss": 3 / step, "temperature": 0.5, "pairs_per_second": 7.0}
        rows.append({"step": step} | {f"train/{k}": v for k, v in train.items()})
    rows.append({"step": 4, "eval/pairs/i2t_recall@1": 0.3125})
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))

    def make(results=RESULTS, evaluators=None) -> Page:
        datasets = {"data": {"directory": str(tmp_path / "data")}}
        fields = {"input": {"datasets": datasets}, "note": "</pre>&"}
        evaluators = {"pairs": FakeRetrieval()} if evaluators is None else evaluators
        path = report.write_report(
            str(run), fields, results, evaluators, FakeEmbedder()
        )
        assert path == str(run / "report.html")
        assert sorted(p.name for p in run.iterdir()) == ["metrics.jsonl", "report.html"]
        return Page((run / "report.html").read_text(encoding="utf-8"))

    return make


def cells(page: Page) -> list[list[str]]:
    """The text of every table row."""
    rows = []
    for element in page.elements:
        if element["tag"] == "tr":
            rows.append([])
        elif element["tag"] in ("th", "td"):
            rows[-1].append(element["text"])
    return rows


def test_page_holds_the_scores_beside_untrained_and_chance(write):
    rows = cells(write())
    assert ["eval/pairs/i2t_recall@1", "0.312", "0.188", "0.062", "3", "–", "–"] in rows
    assert ["eval/colour/top1", "0.438", "–", "0.562", "–", "–", "–"] in rows
    assert ["eval/coco/mean_recall", "0.500", "–", "–", "5,000", "–", "–"] in rows
    assert ["eval/imagenet/top1", "0.250", "–", "0.001", "–", "0.764", "–"] in rows
    alone = {"step": 4, "eval/colour/top1": 0.4375, "eval/colour/majority": 0.5625}
    assert ["eval/colour/top1", "0.438", "–", "0.562", "–"] in cells(write(alone))


def test_page_loads_nothing_from_elsewhere(write):
    page = write()
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    for element in page.elements:
        assert not {"href", "srcset", "style", "onload", "data"} & element.keys()
        assert element.get("src", "data:image/").startswith("data:image/")
    (style,) = page.all("style")
    assert not re.search(r"url\(|@import|https?:", style["text"])


def test_texts_and_config_are_escaped(write):
    page = write()
    assert not page.all("script")
    assert page.all("h4", text="<script>alert(1)</script>")
    (config,) = page.all("details")
    assert '"note": "</pre>&"' in config["text"]


def test_every_picture_has_a_text_and_every_header_a_scope(write):
    page = write()
    assert page.all("img") and page.all("th")
    assert all(element["alt"] for element in page.all("img"))
    assert all(element["scope"] in ("row", "col") for element in page.all("th"))
    plots = [element["alt"] for element in page.all("img", width="660")]
    assert "loss: loss from 3 at step 1 to 0.75 at step 4" in plots
    assert "pairs: i2t recall@1 from 0.1875 at step 0 to 0.3125 at step 4" in plots


def test_right_answers_are_marked_at_their_place(write):
    pictures, texts = [], []
    for element in write().elements:
        if element["tag"] == "ol":
            lists = pictures if element["class"] == "texts" else texts
            lists.append([])
            rows = lists[-1]
        elif element["tag"] == "li" and element.get("class") != "card":
            assert ("✓ right" in element["text"]) == (element.get("class") == "right")
            rows.append((" ".join(element["text"].split()), element.get("class")))
    assert pictures[0][0] == ("red left 0.900 ✓ right", "right")
    assert [kind for _, kind in pictures[1]] == [None, "right", None, None]
    assert [kind for _, kind in pictures[2]] == [None, "right", None, None]  # a tie
    assert len(texts) == 3  # the fourth text is no query
    assert [kind for _, kind in texts[1]] == ["right", None, None]


def test_a_right_answer_below_the_shown_ones_is_named_with_its_rank():
    scores = np.arange(9, dtype=np.float32)
    answers = report.rank_answers(scores, np.array([2]), 6)
    assert [answer["index"] for answer in answers["best"]] == [8, 7, 6, 5, 4]
    assert not any(answer["right"] for answer in answers["best"])
    assert (answers["right_rank"], answers["right_index"]) == (7, 2)


def test_shown_queries_are_spread_over_the_flagged_ones():
    assert report.spread(np.arange(9) % 2 == 0, 3) == [0, 4, 8]
    assert report.spread(np.array([False, True, True]), 9) == [1, 2]


def test_of_the_other_queries_the_worst_and_the_best_are_shown():
    flags = np.arange(12) != 3
    ranks = np.array([0, 9, 4, 99, 0, 3, 2, 8, 1, 7, 6, 5])
    chosen = report.choose_queries(flags, ranks, 4)
    assert [query for kind, query in chosen if "evenly" in kind] == [0, 4, 8, 11]
    assert [query for kind, query in chosen if "worst" in kind] == [1, 7]
    assert [query for kind, query in chosen if "best" in kind] == [6, 5]


def test_corpus_table_needs_a_manifest_with_rules(write, tmp_path):
    assert not write().all("h2", id="corpus")
    (tmp_path / "data").mkdir()
    manifest = tmp_path / "data" / "manifest.json"
    manifest.write_text("{}")
    assert not write().all("h2", id="corpus")
    rules = [{"rule": "rare_text", "breaks": 1234, "first": 56}]
    counts = {"pairs_in": 98765, "pairs_kept": 43210}
    manifest.write_text(json.dumps({"rules": rules, **counts}))
    page = write()
    assert ["rare_text", "1,234", "56"] in cells(page)
    assert page.all("p", text="98,765 pairs in, 43,210 kept.")


def test_a_run_without_evaluators_has_a_report(write):
    page = write(results={"step": 4}, evaluators={})
    assert page.all("p", text="This run has no evaluators.")
    assert page.all("code", text="python main.py '--config=a b.py'")


def test_revision_is_git_s_where_there_is_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert report.git_revision() is None
    (tmp_path / ".git").mkdir()
    assert report.git_revision() is None
    git = tmp_path / "git"
    git.write_text("#!/bin/sh\necho 0123abc-dirty\n")
    git.chmod(0o755)
    assert report.git_revision() == "0123abc-dirty"


def test_a_file_that_is_no_picture_is_refused():
    assert report.data_uri(b"\xff\xd8\xff\xe0x").startswith("data:image/jpeg;base64,")
    with pytest.raises(ValueError, match="b'text'"):
        report.data_uri(b"text")
