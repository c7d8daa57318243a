import csv
import json
import shutil

import numpy as np
import pytest

from align_jax.embed.embedder import Embedder
from align_jax.errors import InputError
from align_jax.evaluate import evaluate
from align_jax.evaluation import datacomp_run
from align_jax.evaluation.datacomp import (
    GROUPS,
    PUBLISHED,
    SCORED,
    SETS,
    find_sets,
    make_table,
    misnamed_sets,
    summarise,
    write_row,
)
from align_jax.evaluation.runner import run_evaluators
from configs import zero_shot
from tests import tiny, wds
from tests.report.run_page_test import Page, cells

SEVEN = "CIFAR-10 PatchCamelyon Flickr WinoGAViL iWildCam FMoW UTKFace".split()


def test_the_table_has_the_38_published_sets():
    names = [each.name for each in SCORED]
    assert len(SETS) == 40
    assert len({*names}) == len(SCORED) == 38
    assert {*PUBLISHED["columns"][3:]} == {*names}
    assert {name for group in GROUPS.values() for name in group} <= {*names}
    assert [len(group) for group in GROUPS.values()] == [1, 6, 13, 3]
    for row in PUBLISHED["rows"]:
        scores = dict(zip(PUBLISHED["columns"][3:], row[3:], strict=True))
        results = {each.result: scores[each.name] for each in SCORED}
        average = summarise(results)["eval/datacomp/average"]
        assert average == pytest.approx(row[2], abs=2e-5)  # cells have four decimals


def test_averages_are_of_whole_groups():
    results = {each.result: float(i) for i, each in enumerate(SCORED)}
    found = summarise(results)
    assert found["eval/datacomp/average"] == 18.5
    assert found["eval/datacomp/queries"] == 38
    assert "eval/datacomp/average_of_present" not in found
    (objectnet,) = (each for each in SCORED if each.name == "ObjectNet")
    del results[objectnet.result]
    found = summarise(results)
    assert "eval/datacomp/average" not in found
    assert "eval/datacomp/imagenet_shifts" not in found
    retrieval = [i for i, each in enumerate(SCORED) if each.name in GROUPS["retrieval"]]
    assert found["eval/datacomp/retrieval"] == np.mean(retrieval)
    present = np.mean([*results.values()])
    assert found["eval/datacomp/average_of_present"] == pytest.approx(present)
    assert found["eval/datacomp/queries"] == 37
    table = make_table(results)
    assert table.missing == "37 of 38 sets; missing: ObjectNet."
    assert "37 of 38 sets; missing: ObjectNet." in table.format()
    head, row = csv.reader(write_row(results, "mine", "corpus").splitlines())
    assert head == PUBLISHED["columns"]
    assert row[:3] == ["mine", "corpus", ""]
    cell = dict(zip(head, row, strict=True))
    assert cell["ObjectNet"] == ""
    assert cell["Caltech-101"] == "0.0000"
    assert {len(row) for row in table.rows} == {len(table.head)} == {4 + 12 + 3}
    (imagenet,) = (row for row in table.rows if row[0] == "ImageNet 1k")
    assert imagenet[1:5] == ["acc1", "11.000", "0.001", "0.801"]
    assert imagenet[-3:] == ["0.782", "0.850", "0.627"]
    (average,) = (row for row in table.rows if row[0] == "average")
    assert average[2:5] == ["–", "–", "0.667"]
    assert average[-1] == "–"
    assert make_table({"eval/imagenet/top1": 1.0}) is None
    assert summarise({"eval/imagenet/top1": 1.0}) == {}


def test_folders_are_found_by_their_names_on_the_hub(tmp_path):
    for name in ("wds_mscoco_captions", "wds_vtab-dtd_test", "wds_geode_test", "other"):
        (tmp_path / name).mkdir()
    assert misnamed_sets(str(tmp_path)) == []
    found = find_sets(str(tmp_path))
    assert found == {
        "Describable Textures": f"{tmp_path}/wds_vtab-dtd_test",
        "MSCOCO": f"{tmp_path}/wds_mscoco_captions",
        "GeoDE": f"{tmp_path}/wds_geode_test",
    }
    (tmp_path / "wds_vtab-dtd").mkdir()
    with pytest.raises(InputError, match=r"wds_vtab-dtd and wds_vtab-dtd_test, which"):
        find_sets(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has none of DataComp's sets; wanted folders"):
        find_sets(str(tmp_path / "empty"))
    for name in ("wds_vtab-dtdd_test", "cifar10", "WDS_stl10", "other"):
        (tmp_path / "empty" / name).mkdir()
    wrong = ["WDS_stl10", "cifar10", "wds_vtab-dtdd_test"]
    assert misnamed_sets(str(tmp_path / "empty")) == wrong
    with pytest.raises(InputError, match=f"_test, not {', '.join(wrong)}$"):
        find_sets(str(tmp_path / "empty"))


def make_fields(root, names):
    fields = zero_shot.get_config("datacomp").to_dict()
    fields["checkpoint"] = tiny.write_model(root / "model")
    fields["datacomp"] |= {
        "directory": wds.write_datacomp(root / "sets", names),
        "check_sizes": False,
        "model": "tiny",
    }
    return fields


def count_pictures(monkeypatch):
    """Makes every embedder add the number of its pictures to the returned list."""
    counts, encode = [], Embedder.encode_images

    def counting(self, pictures):
        found = encode(self, pictures)
        counts.append(len(found))
        return found

    monkeypatch.setattr(Embedder, "encode_images", counting)
    return counts


def results_of(workdir):
    return json.loads((workdir / "results.json").read_text())


def test_a_killed_evaluation_continues_with_the_sets_that_are_left(
    tmp_path, monkeypatch, capsys
):
    counts = count_pictures(monkeypatch)
    fields = make_fields(tmp_path, SEVEN)
    evaluated, kills = [], [4]

    def run(evaluators, embedder):
        evaluated.extend(evaluators)
        yield from run_evaluators(evaluators, embedder)
        if len(evaluated) in kills:
            kills.clear()
            raise KeyboardInterrupt  # the fourth set's scores are not written yet

    monkeypatch.setattr(datacomp_run, "run_evaluators", run)
    workdir = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        evaluate(fields, str(workdir))
    assert not (workdir / "results.json").exists()
    evaluate(fields, str(workdir))
    assert evaluated[3] == evaluated[4]
    assert len({*evaluated}) == len(evaluated) - 1 == 7
    assert sum(counts) == len(tiny.NAMES)  # the sets have the same pictures
    results = results_of(workdir)
    assert results["eval/datacomp/queries"] == 6  # UTKFace has no main score
    assert "eval/wds_fairness-utkface/gender_x_1_0_top1" in results
    other = tmp_path / "whole"
    evaluate(fields, str(other))
    assert results_of(other) == results
    printed = capsys.readouterr().out
    assert "6 of 38 sets; missing: Caltech-101, CIFAR-100, " in printed
    page = Page((workdir / "report.html").read_text())
    (row,) = (r for r in cells(page) if r[:2] == ["FMoW", "acc_worst_region"])
    value = results["eval/wds_wilds-fmow/worst_region_top1"]
    assert row[2:4] == [f"{value:.3f}", "0.027"]

    evaluated.clear()
    evaluate(fields, str(workdir))
    assert not evaluated  # it is finished
    wds.write_datacomp(tmp_path / "sets", ["STL-10"])
    (tmp_path / "sets" / "wds_stl-10_test").mkdir()
    evaluate(fields, str(workdir))
    assert evaluated == ["wds_stl10"]
    assert results_of(workdir)["eval/datacomp/queries"] == 7
    assert "sets has wds_stl-10_test: left out, since" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "sets")
    (tmp_path / "sets").mkdir()
    evaluate(fields, str(workdir))  # it needs no sets
    assert "7 of 38 sets" in capsys.readouterr().out


def test_one_command_evaluates_all_sets(tmp_path, monkeypatch):
    counts = count_pictures(monkeypatch)
    fields = make_fields(tmp_path, [each.name for each in SETS])
    workdir = tmp_path / "run"
    evaluate(fields, str(workdir))
    results = results_of(workdir)
    assert results["eval/datacomp/queries"] == 38
    average = np.mean([results[each.result] for each in SCORED])
    assert results["eval/datacomp/average"] == pytest.approx(average)
    assert sum(counts) == len(tiny.NAMES)
    head, row = csv.reader((workdir / "openclip_results.csv").read_text().splitlines())
    assert head == PUBLISHED["columns"]
    assert row[0] == "tiny"
    assert float(row[2]) == pytest.approx(average)
    assert all(row[3:])


def test_a_set_with_other_files_is_evaluated_again(tmp_path, monkeypatch, capsys):
    fields = make_fields(tmp_path, ["CIFAR-10", "STL-10"])
    workdir, folder = tmp_path / "run", tmp_path / "sets" / "wds_stl10_test"
    evaluated = []

    def run(evaluators, embedder):
        evaluated.extend(evaluators)
        return run_evaluators(evaluators, embedder)

    monkeypatch.setattr(datacomp_run, "run_evaluators", run)
    evaluate(fields, str(workdir))
    evaluated.clear()
    (folder / "README.md").write_text("A dataset.")
    evaluate(fields, str(workdir))
    assert not evaluated
    assert "nothing to do" in capsys.readouterr().out
    shutil.rmtree(folder)
    wds.write_classes(folder, count=15, classes=10)
    evaluate(fields, str(workdir))
    assert evaluated == ["wds_stl10"]
    assert results_of(workdir)["eval/wds_stl10/queries"] == 15
    names = folder / "classnames.txt"
    names.write_text("\n".join(names.read_text().splitlines()[::-1]))  # of equal size
    evaluate(fields, str(workdir))
    assert evaluated == 2 * ["wds_stl10"]


def test_sets_of_another_type_are_refused(tmp_path):
    fields = make_fields(tmp_path, ["CIFAR-10", "Flickr"])
    flickr, cifar = (
        tmp_path / "sets" / f"{each.evaluator}_test"
        for each in sorted(SETS, key=lambda each: each.name != "Flickr")
        if each.name in ("CIFAR-10", "Flickr")
    )
    (cifar / "dataset_type.txt").write_text("multilabel\n")
    message = "test has the type 'multilabel'; CIFAR-10 is of the type 'classification'"
    with pytest.raises(InputError, match=message):
        evaluate(fields, str(tmp_path / "run"))
    (cifar / "dataset_type.txt").write_text("classification\n")
    (flickr / "dataset_type.txt").unlink()
    with pytest.raises(InputError, match="Flickr is of the type 'retrieval', which"):
        evaluate(fields, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_sets_without_their_groups_are_refused_before_the_first_one(tmp_path):
    fields = make_fields(tmp_path, ["CIFAR-10", "FMoW"])
    folder = tmp_path / "sets" / "wds_wilds-fmow_test"
    shutil.rmtree(folder)
    wds.write_classes(folder, classes=62)
    with pytest.raises(InputError, match="no npy members; wanted number 0 for region"):
        evaluate(fields, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_sets_of_other_sizes_are_refused(tmp_path):
    fields = make_fields(tmp_path, ["CIFAR-10"])
    fields["datacomp"]["check_sizes"] = True
    with pytest.raises(InputError, match=r"has 12 samples; wanted 10,000"):
        evaluate(fields, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_picture_that_cannot_be_read_is_named_with_its_set(tmp_path):
    fields = make_fields(tmp_path, ["CIFAR-10", "STL-10"])
    folder = tmp_path / "sets" / "wds_stl10_test"
    shutil.rmtree(folder)
    samples = [{"png": p, "cls": b"0"} for _, p in wds.pictures(5)]
    samples[3]["png"] = samples[3]["png"][:60]
    wds.write_set(folder, samples, wds.prompts([str(n) for n in range(10)]))
    with pytest.raises(InputError, match=r"^wds_stl10: picture 3 is broken or cut"):
        evaluate(fields, str(tmp_path / "run"))
    assert (tmp_path / "run" / "datacomp" / "wds_cifar10.json").exists()


def test_scores_of_another_model_are_not_used(tmp_path, monkeypatch):
    fields = make_fields(tmp_path, ["CIFAR-10"])
    workdir = tmp_path / "run"
    path = workdir / "datacomp" / "wds_cifar10.json"
    evaluate(fields, str(workdir))
    stored = json.loads(path.read_text())
    (workdir / "results.json").unlink()
    stored["results"]["eval/wds_cifar10/top1"] = 7.0
    path.write_text(json.dumps(stored))
    evaluate(fields, str(workdir))
    assert results_of(workdir)["eval/wds_cifar10/top1"] == 7.0
    (workdir / "results.json").unlink()
    path.write_text(json.dumps(stored | {"model": "another"}))
    evaluate(fields, str(workdir))
    assert results_of(workdir)["eval/wds_cifar10/top1"] < 1.0
