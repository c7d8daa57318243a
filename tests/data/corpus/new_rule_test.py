"""A picture rule added by one line, through a whole build, and rules that are none."""

import dataclasses
import json

import ibis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.corpus.builder import build, check_inputs
from data.corpus.config import CorpusConfig, EngineConfig
from data.corpus.picture_rules import PICTURE_RULES, make_picture_rules
from data.corpus.rules import RULES, Rule, RuleBounds
from data.sources.config import SourceConfig
from tests import tiny

TEXTS = ["a red thing", "is this red?", "is it blue?", "what?", "one blue thing"]


class HeavyRule:
    meaning = "the picture's file is the heaviest"
    bound = ""
    withheld = True
    columns = (pa.field("file_bytes", pa.int64()),)

    def __init__(self, config):
        self.bound_bytes = config.pictures.max_nsfw * 1e6

    def off(self):
        return "" if self.bound_bytes else "config.pictures.max_nsfw is 0"

    def check(self):
        pass

    def prepare(self, stages, shards):
        scores = stages.folder / "prepared"
        scores.write_text(str(shards))

    def open_shard(self, stages, index, threads):
        assert (stages / "prepared").read_text() == "1"
        return lambda images: [pa.array(map(len, images["image"].to_pylist()))]

    def breaks(self, scores):
        return scores.file_bytes > self.bound_bytes


@pytest.fixture
def config(tmp_path):
    """Five pairs with five pictures; the last picture has the largest file."""
    pictures = [tiny.draw(name, 3) for name in tiny.NAMES[: len(TEXTS)]]
    pictures[-1] += b"\0" * 1000
    table = {"image": pictures, "alt_text": TEXTS, "language": ["en"] * len(TEXTS)}
    pq.write_table(pa.table(table), tmp_path / "raw.parquet")
    config = CorpusConfig(
        name="toy",
        seed=0,
        ingest=SourceConfig("parquet", str(tmp_path / "raw.parquet")),
        rules=RuleBounds(min_shorter_side=8),
        vocabulary_size=300,
        engine=EngineConfig(workers=1),
        shards=1,
    )
    heaviest = (len(pictures[-1]) - 1) / 1e6
    pictures = dataclasses.replace(config.pictures, max_nsfw=heaviest)
    return dataclasses.replace(config, pictures=pictures)


def rules_of(folder) -> dict[str, tuple[int, int]]:
    report = json.loads((folder / "report.json").read_text())
    return {row["rule"]: (row["breaks"], row["first"]) for row in report["rules"]}


def texts_of(folder) -> set[str]:
    kept = pq.read_table(folder / "stages" / "kept.parquet")
    return set(kept["text"].to_pylist())


def test_a_new_picture_rule_takes_one_line(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PICTURE_RULES, "heavy", HeavyRule)
    build(config, tmp_path / "corpus")
    rules = rules_of(tmp_path / "corpus")
    assert rules["heavy"] == (1, 1)
    assert [*rules] == [*RULES, *PICTURE_RULES]
    assert "one blue thing" not in texts_of(tmp_path / "corpus")
    line = "heavy                        1              1"
    assert line in capsys.readouterr().out
    page = (tmp_path / "corpus" / "report.html").read_text()
    assert "is the heaviest" in page
    assert page.count("withheld") == 1
    manifest = (tmp_path / "corpus" / "records" / "manifest.json").read_text()
    assert json.loads(manifest)["rules"][-1]["rule"] == "heavy"
    scores = pq.read_table(tmp_path / "corpus" / "stages" / "scores")
    assert scores.column_names[-1] == "file_bytes"
    assert len(scores) == 4

    off = dataclasses.replace(config.pictures, max_nsfw=0.0)
    capsys.readouterr()
    build(dataclasses.replace(config, pictures=off), tmp_path / "off")
    assert rules_of(tmp_path / "off")["heavy"] == (0, 0)
    assert "one blue thing" in texts_of(tmp_path / "off")
    line = "NOT EVALUATED: heavy, since config.pictures.max_nsfw is 0"
    assert line in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "breaks", "message"),
    [
        (
            "long",
            lambda facts, _: facts.text.length(),
            "rule 'long' of RULES gives Int",
        ),
        (
            "long",
            lambda facts, _: True,
            "rule 'long' of RULES gives bool; wanted a bool",
        ),
        ("images", lambda facts, _: facts.rare, "rule 'images' .* a name other than"),
        ("long", lambda facts, _: facts.letters > 3, "no attribute 'letters'"),
    ],
)
def test_a_rule_that_is_none_is_refused_at_the_start(
    config, tmp_path, monkeypatch, name, breaks, message
):
    monkeypatch.setitem(RULES, name, Rule("", breaks))
    with pytest.raises((TypeError, AttributeError), match=message):
        build(config, tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


def test_a_picture_rule_that_lacks_a_method_is_refused_at_the_start(
    config, monkeypatch
):
    class HalfRule:
        meaning, bound, withheld, columns = "", "", False, ()

        def off(self):
            raise AssertionError("not even asked")

    monkeypatch.setitem(PICTURE_RULES, "half", HalfRule)
    message = (
        r"class HalfRule of PICTURE_RULES\['half'\] lacks the method check\(\); it"
        r" lacks the method prepare\(stages, shards\); .* it has __init__\(\), wanted"
        r" __init__\(config\) .*data.corpus.picture_rules.PictureRule\)"
    )
    with pytest.raises(TypeError, match=message):
        check_inputs(config)


def test_the_columns_of_picture_rules_have_names_of_their_own(config, monkeypatch):
    monkeypatch.setitem(PICTURE_RULES, "again", PICTURE_RULES["near_embedding"])
    message = r"'again'\] has the names \['cosine', 'near_embedding'\], which another"
    with pytest.raises(TypeError, match=message):
        make_picture_rules(config)


def test_a_rule_that_finds_null_is_not_broken(config, tmp_path, monkeypatch):
    unknown = Rule("nothing is known", lambda facts, _: ibis.null("boolean"))
    monkeypatch.setitem(RULES, "unknown", unknown)
    build(config, tmp_path / "corpus")
    assert rules_of(tmp_path / "corpus")["unknown"] == (0, 0)
    assert len(texts_of(tmp_path / "corpus")) == 4


class NumberRule(HeavyRule):
    def breaks(self, scores):
        return scores.file_bytes


class OtherColumnRule(HeavyRule):
    def breaks(self, scores):
        return scores.file_size > 3


class HeldRule(HeavyRule):
    def __init__(self, config):
        super().__init__(config)
        self.measure = lambda image: len(image)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (NumberRule, r"breaks of PICTURE_RULES\['heavy'\] gives Int.*; wanted a bool"),
        (OtherColumnRule, "no attribute 'file_size'"),
        (
            HeldRule,
            r"PICTURE_RULES\['heavy'\] cannot be sent to other processes: .*lam",
        ),
    ],
)
def test_a_picture_rule_that_is_none_is_refused_at_the_start(
    config, tmp_path, monkeypatch, rule, message
):
    monkeypatch.setitem(PICTURE_RULES, "heavy", rule)
    with pytest.raises((TypeError, AttributeError), match=message):
        build(config, tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()
