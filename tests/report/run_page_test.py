import base64
import html.parser
import io
import json
import re
import sys

import numpy as np
import pytest
from PIL import Image

from align_jax.devices.mesh import make_mesh
from align_jax.evaluation.evaluators.retrieval import Retrieval
from align_jax.report import run_page as report
from align_jax.runs import provenance
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
    """Parses a page into elements (tag, attributes, text); refuses unbalanced tags."""

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
    """Returns a function that writes and parses the report of a run of four steps."""
    monkeypatch.setattr(provenance, "ROOT", tmp_path)  # no checkout
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
        plots = report.write_report(
            str(run), fields, results, evaluators, FakeEmbedder()
        )
        assert {"loss", "temperature"} < {plot["title"] for plot in plots}
        assert sorted(p.name for p in run.iterdir()) == ["metrics.jsonl", "report.html"]
        return Page((run / "report.html").read_text(encoding="utf-8"))

    return make


def test_only_the_first_process_reads_the_metrics_and_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(report.folder, "leads", lambda: False)
    monkeypatch.setattr(report, "stream_metrics", lambda _: pytest.fail("it is read"))
    described = []
    monkeypatch.setattr(report, "describe", lambda *parts: described.append(parts))
    evaluators, embedder = {"pairs": FakeRetrieval()}, FakeEmbedder()
    plots = report.write_report(str(tmp_path), {}, {}, evaluators, embedder)
    assert plots == []
    assert described == [(evaluators["pairs"], embedder)]  # with the others
    assert not [*tmp_path.iterdir()]


def cells(page: Page) -> list[list[str]]:
    """Returns the cells' texts of every table row."""
    rows = []
    for element in page.elements:
        if element["tag"] == "tr":
            rows.append([])
        elif element["tag"] in ("th", "td"):
            rows[-1].append(element["text"])
    return rows


def test_page_holds_the_scores_beside_untrained_and_chance(write):
    rows = cells(write())
    assert ["eval/pairs/i2t_recall@1", "0.312", "0.188", "0.062", "3", "–"] in rows
    assert ["eval/colour/top1", "0.438", "–", "0.562", "–", "–"] in rows
    assert ["eval/coco/mean_recall", "0.500", "–", "–", "5,000", "–"] in rows
    assert ["eval/imagenet/top1", "0.250", "–", "0.001", "–", "0.764"] in rows
    remarked = write({"eval/coco/t2i_recall@1": 0.5, "eval/imagenet/top1": 0.25})
    row = ["eval/coco/t2i_recall@1", "0.500", "–", "–", "–"]
    assert [*row, "0.456 [1, 2]", "0.421 [1, 2]"] in cells(remarked)
    texts = [e["text"] for e in remarked.all("p") if e["text"].startswith("[")]
    assert [text[:4] for text in texts] == ["[1] ", "[2] "]
    assert "25,010 captions" in texts[0]
    alone = {"step": 4, "eval/colour/top1": 0.4375, "eval/colour/majority": 0.5625}
    assert ["eval/colour/top1", "0.438", "–", "0.562", "–"] in cells(write(alone))


def test_page_says_where_the_time_went(write):
    assert not any("Where the time" in e["text"] for e in write().all("h2"))
    seconds = {"productive": 900.0, "lost_compile": 240.0, "lost_away": 60.0}
    times = {f"train/{name}_seconds": value for name, value in seconds.items()}
    rows = cells(write(RESULTS | times | {"train/wall_seconds": 1200.0}))
    assert ["steps that were kept", "15.0", "75.0%"] in rows
    assert ["compiling", "4.0", "20.0%"] in rows
    assert ["evaluation", "0.0", "0.0%"] in rows


def test_page_loads_nothing_from_elsewhere(write):
    page = write()
    assert not page.all("script")
    assert not page.all("link")
    assert not page.all("iframe")
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
    assert page.all("img")
    assert page.all("th")
    assert all(element["alt"] for element in page.all("img"))
    assert all(element["scope"] in ("row", "col") for element in page.all("th"))
    plots = [element["alt"] for element in page.all("img", width="660")]
    assert "loss: loss from 3 at step 1 to 0.75 at step 4" in plots
    assert "pairs: i2t recall@1 from 0.1875 at step 0 to 0.3125 at step 4" in plots


def test_similarities_are_plotted_of_an_evaluator_that_has_matched_pairs(write):
    class Pairs:
        """An evaluator that is no retrieval."""

        def examples(self, embedder):
            return {"Pictures": []}

        def matched_pairs(self, embedder):
            return SIMILARITY, np.eye(4, dtype=np.float32), FakeRetrieval().pairs

    class Alone:
        examples = Pairs.examples

    page = write(evaluators={"pairs": Pairs(), "alone": Alone()})
    (plot,) = [e["alt"] for e in page.all("img") if "cosine" in e["alt"]]
    assert "3 matched pairs have a mean cosine similarity of 0.717" in plot
    assert "9 unmatched pairs one of 0.281" in plot


def test_scores_outside_of_0_to_1_are_not_cut_off(monkeypatch):
    monkeypatch.setattr(report, "plot_lines", lambda *arguments, **_: arguments)
    rows = [{"step": 0, "eval/a/recall@1": 0.5, "eval/b/margin": -0.25}]
    assert report.score_plots(rows) == [
        ("a", {"recall@1": [(0, 0.5)]}, (0, 1)),
        ("b", {"margin": [(0, -0.25)]}, None),
    ]


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


def test_large_pictures_and_rare_formats_are_reduced():
    small = draw(NAMES[0], 0)
    assert base64.b64decode(report.data_uri(small).partition("base64,")[2]) == small
    noise = np.random.default_rng(0).integers(0, 255, (300, 600, 3), np.uint8)
    for kind in ("png", "bmp"):
        file = io.BytesIO()
        Image.fromarray(noise).save(file, kind)
        head, _, content = report.data_uri(file.getvalue()).partition("base64,")
        assert head == "data:image/jpeg;"
        assert Image.open(io.BytesIO(base64.b64decode(content))).size == (256, 128)
