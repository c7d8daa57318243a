"""Sets that the paper does not have, made small, with a tiny model end to end."""

import json

from align_jax.evaluate import evaluate
from tests import tiny, wds
from tests.evaluation import aro_test, languages_test, selection_test


def test_a_random_model_is_scored_on_every_kind_of_set(tmp_path, capsys):
    choices = wds.write_choices(tmp_path / "choices", selection_test.CHOICES)
    evaluators = {
        "sugar_crepe": selection_test.write_sugar_crepe(tmp_path / "sugar"),
        "winoground": selection_test.write_winoground(tmp_path / "winoground"),
        "choices": {"directory": choices, "format": "wds"},
        "relation": aro_test.write_authors(tmp_path / "aro"),
        "order": aro_test.write_order(tmp_path / "order"),
    }
    evaluators = {n: {"kind": "selection"} | f for n, f in evaluators.items()}
    crossmodal = languages_test.write_crossmodal(tmp_path / "crossmodal")
    evaluators["xm3600"] = {"kind": "languages"} | crossmodal
    xtd = languages_test.write_xtd(tmp_path / "xtd")
    evaluators["xtd10"] = {"kind": "languages"} | xtd
    evaluators["attacked"] = {
        "kind": "zero_shot",
        "directory": wds.write_classes(tmp_path / "classes"),
        "split": "test",
        "prompts": "",
        "format": "wds",
        "attack": True,
    }
    fields = {
        "run": "evaluate",
        "checkpoint": tiny.write_model(tmp_path / "model"),
        "evaluators": evaluators,
    }
    evaluate(fields, str(tmp_path / "out"))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    counts = {
        name: results[f"eval/{name}/queries"]
        for name in evaluators
        if f"eval/{name}/queries" in results
    }
    assert counts == {
        "sugar_crepe": 13,
        "winoground": 2,
        "choices": 2,
        "relation": 4,
        "order": 3,
        "attacked": 12,
    }
    for name in (
        "relation/on_text_acc",
        "relation/plain_text_acc",
        "order/text_acc",
        "xtd10/jp_i2t_recall@1",
        "xm3600/mean_recall",
        "xm3600/de_t2i_recall@10",
        "winoground/acc",
        "sugar_crepe/swap_obj_text_acc",
        "attacked/attacked_top1",
    ):
        assert 0 <= results[f"eval/{name}"] <= 1
    table = capsys.readouterr().out
    (row,) = (line for line in table.splitlines() if "winoground/text_acc" in line)
    assert row.split()[-2:] == ["0.250", "2"]  # chance and count
    (row,) = (line for line in table.splitlines() if "/add_att_text_acc" in line)
    assert row.split()[-1] == "2"
