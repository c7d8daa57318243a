"""Values of config fields: each has a range, and none ends in another error."""

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Annotated, Any

import pytest

from align_jax.config import READER, change, read_config
from align_jax.errors import InputError
from align_jax.evaluation.evaluators import EVALUATORS
from align_jax.evaluation.runner import EvaluateConfig
from align_jax.models.towers import IMAGE_TOWERS, TEXT_TOWERS
from align_jax.ranges import ANY, INT32, INT64, Count, Range, find_fault
from align_jax.runs.trackers import TRACKERS
from align_jax.training.classify_config import ClassifyConfig
from align_jax.training.optimizer import OptimizerConfig
from align_jax.training.pretrain_config import PretrainConfig
from align_jax.training.random_search_config import SearchConfig
from align_jax.training.training_runs import read_run_config
from configs import (
    corpus_datacomp,
    corpus_quickstart,
    quickstart,
    quickstart_transfer,
    vtab,
)
from data.corpus.config import CorpusConfig
from data.curation.config import CurationConfig

TOWERS = [config for config, _ in (*IMAGE_TOWERS.values(), *TEXT_TOWERS.values())]
CONFIGS = [PretrainConfig, ClassifyConfig, EvaluateConfig, SearchConfig, CorpusConfig]
CONFIGS += [
    CurationConfig,
    *TOWERS,
    *(evaluator.Config for evaluator in EVALUATORS.values()),
    *(tracker.Config for tracker in TRACKERS.values()),
]
# Any finite number.
UNBOUNDED = {
    "FilterBounds.min_score",
    "HardPairs.reference_bias",
    "ModelConfig.logit_bias_init",
}


@dataclasses.dataclass(frozen=True)
class Mixed:
    pairs: tuple[tuple[str, Annotated[float, Range(above=0, most=1)]], ...] = ()
    sizes: dict[str, Count] = dataclasses.field(default_factory=dict)
    count: Count | None = None
    value: Any = None
    share: float = 0.5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"pairs": (("a", 0),)},
            r"pairs\[0\]\[1\] is 0.0; wanted above 0, up to 1",
        ),
        ({"pairs": (("a", 1), ("b",))}, r"pairs\[1\] is \('b',\); wanted 2 values, no"),
        ({"pairs": (("a", 1, 1),)}, "wanted 2 values, not 3"),
        ({"pairs": ("ab",)}, r"config.pairs\[0\] is 'ab' \(str\); wanted tuple"),
        ({"sizes": {"a": 1, "b": 0}}, "config.sizes.b is 0; wanted 1 or more"),
        ({"sizes": {"a": 1.0}}, r"config.sizes.a is 1.0 \(float\); wanted int"),
        ({"sizes": {3: 1}}, r"a name in config.sizes is 3 \(int\); wanted str"),
        ({"sizes": (1,)}, r"config.sizes is \(1,\) \(tuple\); wanted dict"),
        ({"count": 0}, "config.count is 0; wanted 1 or more"),
        ({"count": 2**31}, "is 2147483648; wanted a whole number up to 2147483647"),
        ({"count": True}, r"config.count is True \(bool\); wanted int"),
        ({"share": math.nan}, "config.share is nan; wanted a finite number"),
        ({"share": 10**400}, "config.share is inf; wanted a finite number"),
        ({"share": 1e-60}, "config.share is 1e-60; wanted a finite number, 0 or from"),
    ],
)
def test_parts_of_a_field_are_read_by_their_types(fields, message):
    with pytest.raises(InputError, match=message):
        read_config(Mixed, fields)


def test_lists_and_whole_numbers_become_what_is_annotated():
    fields = {"pairs": [["a", 1]], "sizes": {"b": 2}, "count": None, "value": [1]}
    assert read_config(Mixed, fields) == Mixed((("a", 1.0),), {"b": 2}, None, [1])


@pytest.mark.parametrize(
    ("allowed", "inside", "outside", "words"),
    [
        (Range(least=0, below=1), (0, 0.5), (-1, 1, math.nan), "0 or more, below 1"),
        (Range(above=0), (1e-9, 3e38), (0, -1e-9, math.nan), "above 0"),
        (Range(least=0, most=INT64), (0, INT64), (-1, INT64 + 1), f"0 to {INT64}"),
        (ANY, (-INT32, 0, -1e30), (), ""),
    ],
)
def test_a_range_holds_its_numbers(allowed, inside, outside, words):
    assert [find_fault(number, allowed) for number in inside] == [""] * len(inside)
    assert {find_fault(number, allowed) for number in outside} <= {words}
    assert "finite" in find_fault(math.inf, ANY)
    assert "finite" in find_fault(-math.inf, ANY)


def parts_of(hint: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yields (name, type) of the values in a field of an annotated type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union, tuple, dict):
        for argument in arguments:
            yield from parts_of(argument, name)
    elif dataclasses.is_dataclass(hint):
        yield from values_of(hint)
    else:
        yield name, hint


def values_of(config: Any) -> Iterator[tuple[str, Any]]:
    hints = typing.get_type_hints(config, include_extras=True)
    for field in dataclasses.fields(config):
        if READER not in field.metadata:
            yield from parts_of(hints[field.name], f"{config.__name__}.{field.name}")


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
def test_every_number_of_a_config_has_a_range(config):
    plain = {name for name, hint in values_of(config) if hint in (int, float)}
    assert plain <= UNBOUNDED
    untyped = {name for name, hint in values_of(config) if hint is tuple}
    assert untyped <= {"SearchConfig.space"}  # its rows are of several forms


def read_evaluator(kind: str, fields: Mapping[str, Any]) -> Any:
    return read_config(EVALUATORS[kind].Config, fields)


def search() -> dict[str, Any]:
    fields = vtab.get_config("pets").to_dict() | {"trials": 1}
    fields["base"]["initialize"] = {"image_tower": "RUN"}
    return fields | {"groups": {"all": ("vtab_pets",)}}


def transfer() -> dict[str, Any]:
    fields = quickstart_transfer.get_config("tuned").to_dict() | {"initialize": {}}
    return fields | {"evaluation": fields["input"]["preprocess"]}


def read_search(fields: Mapping[str, Any]) -> SearchConfig:
    config = read_config(SearchConfig, fields)
    config.check()
    return config


READERS: dict[str, tuple[Callable[[Mapping[str, Any]], Any], Callable[[], Mapping]]] = {
    "pretrain": (read_run_config, lambda: quickstart.get_config().to_dict()),
    "classify": (read_run_config, transfer),
    "evaluate": (
        partial(read_config, EvaluateConfig),
        lambda: {"run": "evaluate", "checkpoint": "RUN", "evaluators": {"x": {}}},
    ),
    "random_search": (read_search, search),
    "corpus": (
        partial(read_config, CorpusConfig),
        lambda: corpus_quickstart.get_config().to_dict(),
    ),
    "curation": (
        partial(read_config, CurationConfig),
        lambda: corpus_datacomp.get_config().to_dict(),
    ),
    **{
        kind: (
            partial(read_evaluator, kind),
            lambda config=evaluator.Config: {
                field.name: "x"
                for field in dataclasses.fields(config)
                if field.default is field.default_factory is dataclasses.MISSING
            },
        )
        for kind, evaluator in EVALUATORS.items()
    },
}


def paths_of(fields: Mapping[str, Any], where: str = "") -> Iterator[str]:
    for name, value in fields.items():
        yield where + name
        if isinstance(value, Mapping):
            yield from paths_of(value, f"{where}{name}.")


BAD = [None, True, -1, 0, 2**70, -0.5, 1.5, math.nan, math.inf, "", "x", b"x", object()]
BAD += [(), [], ("a", "b"), (("a",),), ((0, {"x": "y"}),), {}, {"x": "y"}, {"x": ()}]


@pytest.mark.parametrize("name", READERS)
def test_no_value_ends_in_another_error(name):
    """A value is read, or refused in one line that names its field or its class."""
    read, fields = READERS[name]
    complete, refusals = dataclasses.asdict(read(fields())), []
    read(complete)
    for path in paths_of(complete):
        for value in BAD:
            try:
                read(change(complete, [(path, value)]))
            except InputError as error:
                refusals.append(str(error))
    assert len(refusals) > len(BAD)
    assert not [text for text in refusals if "\n" in text]


@pytest.mark.parametrize("rate", [0, 1e-3, 1e6])
def test_any_finite_rate_is_legal(rate):
    assert read_config(OptimizerConfig, {"learning_rate": rate}).learning_rate == rate
