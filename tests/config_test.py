import dataclasses

import pytest

from align_jax.config import (
    check_choices,
    check_folder,
    choose,
    claim_folder,
    differing_fields,
    is_claimed,
    read_config,
    write_config,
)
from align_jax.errors import InputError

CONFIG = {"seed": 0, "input": {"sizes": (1, 2)}}


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    size: int | None = None


@dataclasses.dataclass(frozen=True)
class Outer:
    steps: int
    inner: Inner
    names: tuple = ()

    def __post_init__(self):
        if self.steps < 0:
            raise ValueError("steps is negative")


@dataclasses.dataclass
class Loss:
    reduction: str


def test_sub_dicts_become_dataclasses_and_defaults_hold():
    config = read_config(Outer, {"steps": 3, "inner": {"rate": 1}})
    assert config == Outer(3, Inner(1.0, None))


def test_the_lists_of_a_json_file_become_tuples():
    fields = {"steps": 1, "inner": {}, "names": [["a", 0.5], "b"]}
    assert read_config(Outer, fields).names == (("a", 0.5), "b")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 1, "inner": {"rat": 1}}, "config.inner has no field 'rat'; did you"),
        ({"inner": {}}, "config lacks the field 'steps'"),
        ({"steps": "3", "inner": {}}, "config.steps is '3' (str); wanted int"),
        ({"steps": True, "inner": {}}, "config.steps is True (bool); wanted int"),
        ({"steps": 1, "inner": 5}, "config.inner is 5; wanted a sub-dict"),
        ({"steps": -1, "inner": {}}, "config: steps is negative"),
    ],
)
def test_what_does_not_fit_is_refused_by_path(fields, message):
    with pytest.raises(InputError) as error:
        read_config(Outer, fields)
    assert message in str(error.value)


def test_an_unknown_choice_lists_the_known_ones():
    with pytest.raises(InputError, match=r"did you mean 'retrieval'.*zero_shot"):
        choose({"retrieval": 1, "zero_shot": 2}, "retrival", "config.kind")


def test_an_unknown_name_in_a_field_lists_the_known_ones():
    choices = {"reduction": ("sum", "mean")}
    check_choices(Loss("mean"), choices)
    message = r"^loss.reduction is 'meam'; did you mean 'mean'\? known: sum, mean$"
    with pytest.raises(ValueError, match=message):
        check_choices(Loss("meam"), choices, "loss.")


def test_differing_fields_are_named_with_both_values():
    old = {"a": 1, "b": {"c": 2, "d": 3}}
    new = {"a": 1, "b": {"c": 4}}
    assert differing_fields(old, new) == [
        "config.b.c: 2 -> 4",
        "config.b.d: 3 -> 'absent'",
    ]


def test_a_folder_belongs_to_its_config(tmp_path):
    folder = tmp_path / "run"
    check_folder(folder, CONFIG)
    assert not folder.exists()
    claim_folder(folder, CONFIG)
    check_folder(folder, CONFIG)  # tuples come back as lists
    for refuse in (check_folder, claim_folder):
        with pytest.raises(InputError, match=r"another config .*config\.seed: 0 -> 1"):
            refuse(folder, {**CONFIG, "seed": 1})
    claim_folder(folder, {**CONFIG, "seed": 1}, free=["seed"])
    check_folder(folder, CONFIG)  # the first config stays


def test_a_folder_of_somebody_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match=r"not empty and holds no config\.json"):
        claim_folder(tmp_path, CONFIG)
    assert (tmp_path / "thesis.tex").read_text() == "x"
    assert not is_claimed(tmp_path)
    with pytest.raises(InputError, match=r"thesis\.tex is a file; wanted a folder"):
        claim_folder(tmp_path / "thesis.tex", CONFIG)


def test_a_broken_config_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is not valid JSON"):
        claim_folder(tmp_path, CONFIG)


def test_a_folder_whose_run_was_killed_at_its_start_is_free(tmp_path):
    for left in ("config.json.tmp", "config.json.01ab23cd.tmp"):
        (tmp_path / left).write_text('{"se')
    check_folder(tmp_path, CONFIG)
    write_config(tmp_path, CONFIG)
    with pytest.raises(InputError, match="another config"):
        check_folder(tmp_path, {"seed": 1})
