"""The folders of runs that tests of reports share."""

import json

import pytest

from configs import quickstart, vtab
from tests.report.written_runs import write_run

COCO = ("coco/i2t_recall@1", "coco/t2i_recall@1", "neighbours/recall@1")


@pytest.fixture
def root(tmp_path):
    """A sweep of two finished and two unfinished runs, three evaluations, a search."""
    fields = quickstart.get_config().to_dict()
    small = json.loads(json.dumps(fields))
    small["model"]["embedding_size"] = 320
    speed = {
        "pairs_per_second": 512.0,
        "pairs_per_second_per_device": 64.0,
        "tflops_per_second_per_device": 0.125,
        "productive_seconds": 1800.0,
        "device_hours": 5.0,
        "goodput": 0.875,
    }
    scores = {"shapes/mean_recall": 0.25, "shapes/i2t_recall@1": 0.125}
    sweep = tmp_path / "sweep"
    write_run(sweep / "baseline-0123abcd", fields, scores, **speed)
    more = {"shapes/mean_recall": 0.5} | dict(
        zip(COCO, (0.5, 0.25, 0.125), strict=True)
    )
    write_run(sweep / "embedding_320-4567cdef", small, more, step=40, **speed)
    write_run(sweep / "third-89abcdef", fields | {"seed": 1}, {}, finished=False)
    early = {"coco/i2t_recall@1": 0.9}
    write_run(sweep / "embedding_80-0", small, early, finished=False)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "config.json").write_text('{"name": "a corpus"}')
    evaluate = {"run": "evaluate", "evaluators": {}}
    baseline = str(sweep / "baseline-0123abcd")
    write_run(
        tmp_path / "scores",
        evaluate | {"checkpoint": baseline},
        {"flickr30k/i2t_recall@1": 0.75, "simlex/all_spearman": 0.375},
    )
    write_run(
        tmp_path / "earlier",
        evaluate | {"checkpoint": baseline},
        {"multi30k_de/mean_recall": 0.5},
        step=10,
    )
    clash = evaluate | {"checkpoint": baseline}
    write_run(tmp_path / "clash", clash, {"shapes/mean_recall": 0.0625})
    search = vtab.get_config("dtd").to_dict()
    write_run(tmp_path / "vtab", search, {"vtab_all/mean": 0.6875})
    trial = tmp_path / "vtab" / "vtab_dtd" / "trial_00"
    write_run(trial, fields, {"shapes/mean_recall": 0.9})
    return tmp_path
