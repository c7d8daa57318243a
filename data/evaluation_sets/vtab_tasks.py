"""The 19 tasks of VTAB-1k (arXiv 1910.04867): their splits and their labels.

As https://github.com/google-research/task_adaptation has them: 800 pictures to train on
and 200 to choose on, from the start of a training and of a validation split; where TFDS
has no such split, parts of others take their place.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Record = Mapping[str, Any]

# Distances whose gaps are the classes.
CLEVR_DISTANCES = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0)
KITTI_DISTANCES = (-100.0, 8.0, 20.0, 999.0)
NO_VEHICLE = 1000.0  # metres
VEHICLES = 3  # KITTI's types below it: car, van, truck
FEWEST_OBJECTS = 3  # in a picture of CLEVR


def read_label(record: Record) -> int:
    """The dataset's own label."""
    return int(record["label"])


def count_objects(record: Record) -> int:
    """CLEVR: how many objects there are, from 3 to 10."""
    return len(record["objects"]["size"]) - FEWEST_OBJECTS


def bin_closest_object(record: Record) -> int:
    """CLEVR: how far the closest object is."""
    depths = np.asarray(record["objects"]["pixel_coords"])[:, 2]
    return find_last_below(CLEVR_DISTANCES, float(depths.min()))


def bin_closest_vehicle(record: Record) -> int:
    """KITTI: how far the closest car, van or truck is, if there is one."""
    objects = record["objects"]
    depths = np.asarray(objects["location"]).reshape(-1, 3)[:, 2]
    near = depths[np.asarray(objects["type"]) < VEHICLES]
    return find_last_below(KITTI_DISTANCES, float(min([*near, NO_VEHICLE])))


def find_last_below(thresholds: tuple[float, ...], value: float) -> int:
    """The place of the last threshold (ascending) below a value; -1 for none."""
    return sum(threshold < value for threshold in thresholds) - 1


def make_binning(feature: str, values: int, bins: int) -> Callable[[Record], int]:
    """One of a feature's values, in bins of equal width."""
    return lambda record: int(record[feature] // (values / bins))


def make_reading(feature: str) -> Callable[[Record], int]:
    """Another feature as the label."""
    return lambda record: int(record[feature])


@dataclasses.dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
      group: "natural", "specialized" or "structured".
      dataset: TFDS's name, with the config where there are several.
      classes: how many.
      train: split of the 800 pictures, as an expression of TFDS's.
      validation: likewise of the 200.
      test: likewise.
      test_pictures: that the test must have.
      label: of a record.
      grey: brightness by which a picture of one channel is multiplied; 0 where the
        pictures have three and are kept as they are.
    """

    group: str
    dataset: str
    classes: int
    train: str
    validation: str
    test: str
    test_pictures: int
    label: Callable[[Record], int] = read_label
    grey: int = 0


FIRST, NEXT = "train[:800]", "validation[:200]"
DSPRITES = ("dsprites", 16, FIRST, "train[589824:590024]", "train[663552:]", 73_728)
CLEVR = (FIRST, "train[63000:63200]", "validation", 15_000)
SMALLNORB = (FIRST, "test[:200]", "test[12150:]", 12_150)

TASKS = {
    "caltech101": Task(
        "natural", "caltech101", 102, FIRST, "train[2754:2954]", "test", 6_084
    ),
    "cifar100": Task(
        "natural", "cifar100", 100, FIRST, "train[45000:45200]", "test", 10_000
    ),
    "dtd": Task("natural", "dtd", 47, FIRST, NEXT, "test", 1_880),
    "flowers": Task("natural", "oxford_flowers102", 102, FIRST, NEXT, "test", 6_149),
    "pets": Task(
        "natural", "oxford_iiit_pet", 37, FIRST, "train[2944:3144]", "test", 3_669
    ),
    "sun397": Task("natural", "sun397/tfds", 397, FIRST, NEXT, "test", 21_750),
    "svhn": Task(
        "natural", "svhn_cropped", 10, FIRST, "train[65931:66131]", "test", 26_032
    ),
    "patch_camelyon": Task(
        "specialized", "patch_camelyon", 2, FIRST, NEXT, "test", 32_768
    ),
    "eurosat": Task(
        "specialized",
        "eurosat/rgb",
        10,
        FIRST,
        "train[16200:16400]",
        "train[21600:]",
        5_400,
    ),
    "resisc45": Task(
        "specialized",
        "resisc45",
        45,
        FIRST,
        "train[18900:19100]",
        "train[25200:]",
        6_300,
    ),
    "retinopathy": Task(
        "specialized",
        "diabetic_retinopathy_detection/btgraham-300",
        5,
        FIRST,
        NEXT,
        "test",
        42_670,
    ),
    "clevr_count": Task("structured", "clevr", 8, *CLEVR, count_objects),
    "clevr_distance": Task("structured", "clevr", 6, *CLEVR, bin_closest_object),
    "dmlab": Task("structured", "dmlab", 6, FIRST, NEXT, "test", 22_735),
    "dsprites_location": Task(
        "structured",
        *DSPRITES,
        label=make_binning("label_x_position", 32, 16),
        grey=255,
    ),
    "dsprites_orientation": Task(
        "structured",
        *DSPRITES,
        label=make_binning("label_orientation", 40, 16),
        grey=255,
    ),
    "kitti_distance": Task(
        "structured", "kitti", 4, FIRST, NEXT, "test", 711, bin_closest_vehicle
    ),
    "smallnorb_azimuth": Task(
        "structured",
        "smallnorb",
        18,
        *SMALLNORB,
        label=make_reading("label_azimuth"),
        grey=1,
    ),
    "smallnorb_elevation": Task(
        "structured",
        "smallnorb",
        9,
        *SMALLNORB,
        label=make_reading("label_elevation"),
        grey=1,
    ),
}
