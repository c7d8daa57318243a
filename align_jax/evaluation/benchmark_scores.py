"""Scores of CLIP_benchmark's and DataComp's sets, from predictions and similarities."""

import numpy as np

from align_jax.evaluation.ranking import ROUNDING


def macro_f1(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Returns the unweighted mean F1 of the classes that have pictures, as WILDS.

    A class that is predicted but has no picture is left out. scikit-learn's macro F1
    without `labels` would count it as 0.

    Args:
      predicted: (N,) predicted class of each picture.
      truth: (N,) class of each picture.
    """
    size = 1 + int(max(predicted.max(), truth.max()))
    hits = np.bincount(truth[predicted == truth], minlength=size)
    sums = np.bincount(truth, minlength=size) + np.bincount(predicted, minlength=size)
    classes = np.unique(truth)
    return float(np.mean(2 * hits[classes] / sums[classes]))


def average_precisions(
    scores: np.ndarray, positives: np.ndarray, in_order: bool = False
) -> np.ndarray:
    """Returns the average precision of each class (K,).

    The pictures are sorted by the class's score, the highest first. The average
    precision is the mean, over the positive pictures, of the share of positives among
    the pictures up to this one. A class without positives has 0.

    Args:
      scores: (N, K) similarity of each picture and each class.
      positives: (N, K) bools, whether a picture shows the class.
      in_order: whether pictures of equal scores stay in their order, as a stable sort
        leaves them. Else those without the class come first.
    """
    rounded = np.round(scores / ROUNDING)
    found = np.zeros(scores.shape[1])
    for k, truth in enumerate(positives.T):
        ties = np.zeros(len(truth)) if in_order else truth
        sorted_truth = truth[np.lexsort((ties, -rounded[:, k]))]
        ranks = 1 + np.flatnonzero(sorted_truth)
        if len(ranks):
            found[k] = np.mean(np.arange(1, 1 + len(ranks)) / ranks)
    return found


def group_means(values: np.ndarray, groups: np.ndarray) -> dict[int, float]:
    """Returns the mean value of each group that has a member, by ascending group.

    Args:
      values: (N,) values, such as bools that say whether a prediction is right.
      groups: (N,) whole number of each value's group.
    """
    names, rows = np.unique(groups.astype(np.int64), return_inverse=True)
    means = np.bincount(rows, values) / np.bincount(rows)
    return dict(zip(names.tolist(), means.tolist(), strict=True))


def association_score(
    scores: np.ndarray, right: np.ndarray, in_order: bool = False
) -> float:
    """Returns the Jaccard index of the chosen and the right candidates of a cue.

    As many candidates are chosen as are right, those of the highest scores
    (WinoGAViL, arXiv 2207.12576).

    Args:
      scores: (C,) similarity of each candidate and the cue.
      right: (C,) bools, whether a candidate is right; one or more are.
      in_order: whether later candidates win ties, as in DataComp's code. Else wrong
        ones do.
    """
    rounded = np.round(scores / ROUNDING)
    ties = np.arange(len(scores)) if in_order else ~right
    chosen = np.lexsort((ties, rounded))[-int(right.sum()) :]
    hits = int(right[chosen].sum())
    return hits / (2 * int(right.sum()) - hits)


def selection_hits(
    scores: np.ndarray, in_order: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Returns which instances have all captions right, and which all pictures.

    Picture i of an instance belongs to caption i, for i below n = min(I, C). The
    captions are right if each of the first n pictures is closest to its caption, and
    the pictures are if each of the first n captions is closest to its picture
    (CLIP_benchmark's image_caption_selection; Winoground, arXiv 2204.03162).

    Args:
      scores: (N, I, C) similarity of each picture and each caption of an instance.
      in_order: whether the first of several equal candidates is chosen, as argmax does
        in CLIP_benchmark's code. Else a wrong one is.

    Returns:
      (N,) bools of the captions, and (N,) bools of the pictures.
    """
    count = min(scores.shape[1:])
    own = np.arange(count)
    right = scores[:, own, own]  # (N, n)
    if in_order:
        best = [
            (scores >= scores.max(axis, keepdims=True) - ROUNDING).argmax(axis)
            for axis in (2, 1)
        ]  # (N, I) and (N, C)
        captions, pictures = ((chosen[:, :count] == own).all(1) for chosen in best)
        return captions, pictures
    floor = right - ROUNDING
    captions = (scores[:, :count] >= floor[:, :, None]).sum(2) == 1  # itself alone
    pictures = (scores[:, :, :count] >= floor[:, None]).sum(1) == 1
    return captions.all(1), pictures.all(1)
