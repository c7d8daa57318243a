"""The 19 tasks of VTAB-1k (arXiv 1910.04867): their splits and their labels.

They follow https://github.com/google-research/task_adaptation. The first 800 pictures
of a training split are for training, the first 200 of a validation split for choosing
hyper-parameters. If TFDS lacks a split, a part of another split replaces it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Record = Mapping[str, Any]

# Bounds of distances; each interval between two of them is a class.
CLEVR_DISTANCES = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0)
KITTI_DISTANCES = (-100.0, 8.0, 20.0, 999.0)
NO_VEHICLE = 1000.0  # metres
VEHICLES = 3  # KITTI's object types below this are car, van and truck
FEWEST_OBJECTS = 3  # in a picture of CLEVR


def read_label(record: Record) -> int:
    """Returns the label of a record."""
    return int(record["label"])


def count_objects(record: Record) -> int:
    """Returns CLEVR's class of the number of objects: 0 for 3 objects, 7 for 10."""
    return len(record["objects"]["size"]) - FEWEST_OBJECTS


def bin_closest_object(record: Record) -> int:
    """Returns the class, 0 to 5, of the distance of CLEVR's closest object.

    Class i is the interval from CLEVR_DISTANCES[i] (excluded) to the next bound.
    """
    depths = np.asarray(record["objects"]["pixel_coords"])[:, 2]
    return find_last_below(CLEVR_DISTANCES, float(depths.min()))


def bin_closest_vehicle(record: Record) -> int:
    """Returns the class of the distance of KITTI's closest car, van or truck.

    The classes are 0 (up to 8 m), 1 (up to 20 m), 2 (farther) and 3 (no vehicle).
    """
    objects = record["objects"]
    depths = np.asarray(objects["location"]).reshape(-1, 3)[:, 2]
    near = depths[np.asarray(objects["type"]) < VEHICLES]
    return find_last_below(KITTI_DISTANCES, float(min([*near, NO_VEHICLE])))


def find_last_below(thresholds: tuple[float, ...], value: float) -> int:
    """Returns the index of the last of ascending thresholds below a value.

    The index is -1 if no threshold is below the value.
    """
    return sum(threshold < value for threshold in thresholds) - 1


def make_binning(feature: str, values: int, bins: int) -> Callable[[Record], int]:
    """Returns a function from a record to its label, a bin of an integer feature.

    Args:
      feature: name of the feature.
      values: number of values of the feature, which are 0 to `values` - 1.
      bins: number of bins of equal width.
    """
    return lambda record: int(record[feature] // (values / bins))


def make_reading(feature: str) -> Callable[[Record], int]:
    """Returns a function from a record to its label, an integer feature."""
    return lambda record: int(record[feature])


@dataclasses.dataclass(frozen=True)
class VtabTask:
    """One task of VTAB-1k.

    Attributes:
      dataset: name in TFDS, with the config if there are several.
      classes: number of classes.
      test_pictures: number of pictures that the test split must have.
      train: split of the 800 training pictures, in TFDS's syntax.
      validation: split of the 200 validation pictures, in TFDS's syntax.
      test: split of the test pictures, in TFDS's syntax.
      label: function from a record to its class.
      grey: factor for the pixels of pictures with one channel, which are encoded again
        as PNG; 0 if the pictures have three channels and are kept as they are.
    """

    dataset: str
    classes: int
    test_pictures: int
    train: str = "train[:800]"
    validation: str = "validation[:200]"
    test: str = "test"
    label: Callable[[Record], int] = read_label
    grey: int = 0


CLEVR_COUNT = VtabTask(
    "clevr",
    classes=8,
    test_pictures=15_000,
    validation="train[63000:63200]",
    test="validation",
    label=count_objects,
)
DSPRITES_LOCATION = VtabTask(
    "dsprites",
    classes=16,
    test_pictures=73_728,
    validation="train[589824:590024]",
    test="train[663552:]",
    label=make_binning("label_x_position", 32, 16),
    grey=255,
)
SMALLNORB_AZIMUTH = VtabTask(
    "smallnorb",
    classes=18,
    test_pictures=12_150,
    validation="test[:200]",
    test="test[12150:]",
    label=make_reading("label_azimuth"),
    grey=1,
)

TASKS = {
    "caltech101": VtabTask(
        "caltech101",
        classes=102,
        test_pictures=6_084,
        validation="train[2754:2954]",
    ),
    "cifar100": VtabTask(
        "cifar100",
        classes=100,
        test_pictures=10_000,
        validation="train[45000:45200]",
    ),
    "dtd": VtabTask("dtd", classes=47, test_pictures=1_880),
    "flowers": VtabTask("oxford_flowers102", classes=102, test_pictures=6_149),
    "pets": VtabTask(
        "oxford_iiit_pet",
        classes=37,
        test_pictures=3_669,
        validation="train[2944:3144]",
    ),
    "sun397": VtabTask("sun397/tfds", classes=397, test_pictures=21_750),
    "svhn": VtabTask(
        "svhn_cropped",
        classes=10,
        test_pictures=26_032,
        validation="train[65931:66131]",
    ),
    "patch_camelyon": VtabTask("patch_camelyon", classes=2, test_pictures=32_768),
    "eurosat": VtabTask(
        "eurosat/rgb",
        classes=10,
        test_pictures=5_400,
        validation="train[16200:16400]",
        test="train[21600:]",
    ),
    "resisc45": VtabTask(
        "resisc45",
        classes=45,
        test_pictures=6_300,
        validation="train[18900:19100]",
        test="train[25200:]",
    ),
    "retinopathy": VtabTask(
        "diabetic_retinopathy_detection/btgraham-300",
        classes=5,
        test_pictures=42_670,
    ),
    "clevr_count": CLEVR_COUNT,
    "clevr_distance": dataclasses.replace(
        CLEVR_COUNT, classes=6, label=bin_closest_object
    ),
    "dmlab": VtabTask("dmlab", classes=6, test_pictures=22_735),
    "dsprites_location": DSPRITES_LOCATION,
    "dsprites_orientation": dataclasses.replace(
        DSPRITES_LOCATION, label=make_binning("label_orientation", 40, 16)
    ),
    "kitti_distance": VtabTask(
        "kitti", classes=4, test_pictures=711, label=bin_closest_vehicle
    ),
    "smallnorb_azimuth": SMALLNORB_AZIMUTH,
    "smallnorb_elevation": dataclasses.replace(
        SMALLNORB_AZIMUTH, classes=9, label=make_reading("label_elevation")
    ),
}
