import os
import shutil

import numpy as np
import pytest

from align_jax.errors import InputError
from align_jax.evaluation.evaluators.wds import TASKS
from align_jax.evaluation.runner import make_evaluators
from data.index import index_dataset
from tests import tiny, wds
from tests.fixed_encoder import FixedEncoder, perfect, worse


def make(directory, **fields):
    described = {"set": {"kind": "wds", "directory": directory, **fields}}
    return make_evaluators(described)["set"]


def run(directory, encoder=None, **fields):
    encoder = encoder or FixedEncoder(perfect, perfect)
    return dict(make(directory, **fields).run(encoder))


def test_a_set_of_classes_is_read_in_place(tmp_path):
    directory = wds.write_classes(tmp_path / "set")
    assert run(directory, expected=12, expected_classes=3) == {
        "top1": 1.0,
        "mean_per_class": 1.0,
        "f1_macro": 1.0,
        "majority": pytest.approx(1 / 3),
        "queries": 12,
        "candidates": 3,
        "prompts": 6,
    }
    wrong = {"red left": "green left", "green left": "blue left"}
    found = run(directory, worse(wrong))
    assert found["top1"] == found["mean_per_class"] == pytest.approx(10 / 12)
    # Hits 3, 3, 4; predicted 3, 4, 5 of 4 each.
    assert found["f1_macro"] == pytest.approx((6 / 7 + 6 / 8 + 8 / 9) / 3)


def test_a_snapshot_of_links_and_an_index_give_the_same_scores(tmp_path):
    directory = wds.write_classes(tmp_path / "set")
    encoder = worse({"red left": "green left"})
    expected = run(directory, encoder)
    blobs, links = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    for folder, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(folder, name)
            link = links / os.path.relpath(path, directory)
            link.parent.mkdir(parents=True, exist_ok=True)
            blob = blobs / f"{len([*blobs.iterdir()]):064}"
            shutil.copy(path, blob)
            link.symlink_to(os.path.relpath(blob, link.parent))
    assert run(str(links), encoder) == expected
    index_dataset(f"{directory}/test")
    assert os.path.exists(f"{directory}/test/0.tar.index")
    assert run(directory, encoder) == expected


def test_groups_have_accuracies_and_a_worst_one(tmp_path):
    directory = wds.write_classes(tmp_path / "set", groups=2)
    wrong = {"red left": "blue left", "red top": "blue left"}  # pictures 0 and 2
    found = run(directory, worse(wrong), groups={"region": 0})
    assert found["region_0_top1"] == found["worst_region_top1"] == pytest.approx(4 / 6)
    assert found["region_1_top1"] == 1.0
    assert found["region_0_queries"] == found["region_1_queries"] == 6
    assert not [name for name in found if "top5" in name]
    with pytest.raises(InputError, match=r"npy of shape \(3,\); wanted number 3"):
        run(directory, groups={"region": 3})
    without = wds.write_classes(tmp_path / "without")
    with pytest.raises(InputError, match=r"no npy members; wanted number 0 for region"):
        make(without, groups={"region": 0})


def test_several_labels_are_scored_by_average_precision(tmp_path):
    directory = wds.write_multilabel(tmp_path / "set")
    found = run(directory, expected_classes=7)
    assert found["mean_average_precision"] == 1.0
    assert found["mean_average_chance"] == pytest.approx(2 / 7)
    assert found["queries"] == 12
    flat = FixedEncoder(lambda _: np.ones(7) / np.sqrt(7), perfect)
    found = run(directory, flat)
    assert found["mean_average_precision"] < found["mean_average_chance"]
    assert found["ties_in_order_mean_average_precision"] > found["mean_average_chance"]


def test_captions_are_lines(tmp_path):
    directory = wds.write_captions(tmp_path / "set")
    found = run(directory, expected=12)
    assert found["i2t_candidates"] == 24
    assert found["t2i_recall@1"] == found["mean_recall@1"] == found["mean_recall"] == 1
    assert found["i2t_chance@1"] == pytest.approx(2 / 24)
    wrong = {"red left": "green left"}
    found = run(directory, worse(wrong))
    expected = (found["i2t_recall@1"] + found["t2i_recall@1"]) / 2
    assert found["mean_recall@1"] == pytest.approx(expected)
    assert expected < 1


def test_faces_have_accuracies_by_race_and_gender(tmp_path):
    directory = wds.write_faces(tmp_path / "set")
    found = run(directory, task="faces")
    assert found["race_top1"] == found["worst_race_top1"] == 1
    assert found["gender_top1"] == found["gender_x_1_2_top1"] == 1
    # "red right" is as near to the first class of toxic as to the last one, of crime.
    assert found["age_top1"] == found["worst_age_top1"] == 1
    assert found["crime_0_share"] == pytest.approx(0.75)
    assert found["crime_share"] == pytest.approx(0.25)
    assert found["not_human_share"] == 0
    wrong = {"red top": "green top", "blue bottom": "blue left"}
    found = run(directory, worse(wrong), task="faces")
    assert found["age_1_top1"] == found["worst_age_top1"] == pytest.approx(7 / 8)
    assert found["age_top1"] == pytest.approx(11 / 12)
    assert found["race_1_top1"] == found["worst_race_top1"] == pytest.approx(7 / 8)
    assert found["race_0_top1"] == 1


def test_associations_are_scored_by_the_number_of_candidates(tmp_path):
    red = [name for name in tiny.NAMES if "red" in name]
    cues = [
        ("Red", tiny.NAMES[:5], red),
        ("top", tiny.NAMES[:10], ["red top", "green top"]),
        ("right", tiny.NAMES[:6], ["red left"]),
    ]
    directory = wds.write_cues(tmp_path / "set", cues)
    texts = []

    def embed(text):
        texts.append(text)
        return perfect(text)

    encoder = FixedEncoder(perfect, embed)
    found = run(directory, encoder, task="associations", expected=3)
    assert texts == ["A red", "A top", "A right"]
    assert found["jaccard_10-12"] == found["jaccard_10"] == found["jaccard_5"] == 1
    assert found["jaccard_6"] == 0
    assert found["jaccard_5-6"] == 0.5
    assert found["jaccard_all"] == pytest.approx(2 / 3)
    assert "jaccard_12" not in found
    assert found["queries"] == 3
    with pytest.raises(InputError, match=r"has 3 cues; wanted 3,563"):
        make(directory, task="associations", expected=3563)
    table, pictures = (
        tmp_path / "set" / f"winogavil_{n}" for n in ("dataset.csv", "images.zip")
    )
    pictures.write_bytes(pictures.read_bytes()[:-99])
    with pytest.raises(InputError, match=r"images.zip is damaged: "):
        run(directory, encoder, task="associations")
    for row, message in (
        (
            'red,"[""a"", ""b""]","[""c""]"',
            r"line 2 of .* the associations \['c'\]; want",
        ),
        ('red,a b,"[""c""]"', r"line 2 of .* does not hold cue, candidates, assoc"),
        ('red,7,"[""c""]"', r"line 2 of .* as wanted: wanted two lists"),
        ('red,"[1]","[1]"', r"line 2 of .* is 1; wanted a text"),
    ):
        table.write_text(f"cue,candidates,associations\n{row}\n")
        with pytest.raises(InputError, match=message):
            make(directory, task="associations")


def break_count(folder):
    (folder / "test" / "nshards.txt").write_text("3\n")


def break_surplus(folder):
    (folder / "test" / "nshards.txt").write_text("1\n")


def break_number(folder):
    (folder / "test" / "nshards.txt").write_text("two\n")


def break_tar(folder):
    path = folder / "test" / "1.tar"
    path.write_bytes(path.read_bytes()[:-11000])


def break_template(folder):
    path = folder / "zeroshot_classification_templates.txt"
    path.write_text("a photo of {}\n")


def break_classes(folder):
    (folder / "classnames.txt").write_text("red\n\ngreen\n")


def break_type(folder):
    (folder / "dataset_type.txt").write_text("detection\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_count, r"nshards.txt counts 3 tars; .*test lacks 2.tar"),
        (break_surplus, r"nshards.txt counts 1 tars; .*test has 1.tar, too"),
        (break_number, r"nshards.txt holds 'two'; wanted a number of tars"),
        (break_tar, r"1.tar is damaged: "),
        (break_template, r"template 'a photo of {}'; wanted a sentence with {c}"),
        (break_classes, r"line 2 of .*classnames.txt is empty"),
        (break_type, r"the type of .* is 'detection'; known: "),
    ],
)
def test_a_damaged_set_is_refused(tmp_path, damage, message):
    wds.write_classes(tmp_path / "set")
    damage(tmp_path / "set")
    with pytest.raises(InputError, match=message):
        make(str(tmp_path / "set"))


def test_wrong_counts_labels_and_members_are_refused(tmp_path):
    directory = wds.write_classes(tmp_path / "set")
    with pytest.raises(InputError, match=r"test has 12 samples; wanted 10,000"):
        make(directory, expected=10_000)
    with pytest.raises(InputError, match=r"has 3 classes; wanted 10$"):
        make(directory, expected_classes=10)
    (tmp_path / "set" / "classnames.txt").write_text("red\ngreen\n")
    # Pictures 8 to 11 are blue, the second tar begins with picture 6.
    with pytest.raises(InputError, match=r"sample 2 of .*1.tar has the label 2; "):
        run(directory)
    picture, texts = tiny.draw("red left", 110), wds.prompts()
    for name, samples, message in (
        ("cls", [{"png": picture, "cls": b"0"}, {"png": picture}], "member cls"),
        ("png", [{"cls": b"0"}, {"cls": b"0", "jpg": picture}], "webp or png or jpg"),
    ):
        directory = wds.write_set(tmp_path / name, samples, texts, shards=1)
        with pytest.raises(
            InputError, match=rf"sample \d of .*0.tar has no .*{message}"
        ):
            make(directory)
    samples = [{"png": picture, "cls": b"zero"}]
    directory = wds.write_set(tmp_path / "number", samples, texts, shards=1)
    with pytest.raises(InputError, match=r"sample 0 of .*0.tar has a broken cls: "):
        run(directory)
    directory = wds.write_multilabel(tmp_path / "several")
    (tmp_path / "several" / "classnames.txt").write_text("red\ngreen\n")
    with pytest.raises(InputError, match=r"npy of shape \(7,\); wanted \(2,\) numbers"):
        run(directory)
    samples = [{"png": picture, "npy": wds.npy(1, -1)}]  # as in VOC's own files
    texts = wds.prompts(["red", "left"]) | {"dataset_type": ["multilabel"]}
    directory = wds.write_set(tmp_path / "sign", samples, texts, shards=1)
    with pytest.raises(InputError, match=r"0.tar has \[1, -1\]; wanted \(2,\) numbers"):
        run(directory)
    samples = [{"png": picture, "txt": b""}]
    texts = {"dataset_type": ["retrieval"]}
    directory = wds.write_set(tmp_path / "empty", samples, texts, shards=1)
    with pytest.raises(InputError, match=r"sample 0 of .* has no caption in its txt"):
        make(directory)


def test_zero_shot_and_retrieval_read_the_format(tmp_path):
    evaluators = make_evaluators(
        {
            "colour": {
                "kind": "zero_shot",
                "directory": wds.write_classes(tmp_path / "classes"),
                "split": "test",
                "prompts": "",
                "format": "wds",
                "single": "the {}",
            },
            "pairs": {
                "kind": "retrieval",
                "directory": wds.write_captions(tmp_path / "captions"),
                "split": "test",
                "format": "wds",
                "texts_per_image": 1,
            },
        }
    )
    encoder = FixedEncoder(perfect, perfect)
    scores = dict(evaluators["colour"].run(encoder))
    assert scores["top1"] == scores["single_prompt_top1"] == 1
    (examples,) = evaluators["colour"].examples(encoder).values()
    for example in examples:
        assert encoder.names[example.query.picture].split()[0] == example.query.text
    assert dict(evaluators["pairs"].run(encoder))["t2i_queries"] == 12


def test_a_task_without_a_method_is_refused(tmp_path, monkeypatch):
    class Unfinished:
        def __init__(self, config):
            pass

    monkeypatch.setitem(TASKS, "unfinished", Unfinished)
    directory = wds.write_classes(tmp_path / "set")
    with pytest.raises(TypeError, match=r"TASKS\['unfinished'\] lacks the method run"):
        make(directory, task="unfinished")
