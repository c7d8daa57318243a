"""Linear classifiers fitted on features: logistic regression and ridge regression.

Neither has a learning rate or a seed.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize
from jax import lax
from jax.sharding import Mesh

from align_jax.devices.mesh import batch_split, place_array, replicated
from align_jax.evaluation.ranking import check_finite

MAX_STEPS = 1000  # CLIP's; the three below are scikit-learn's
TOLERANCE = 1e-4  # a fit ends if no value of the gradient is larger
DECREASE = 64 * np.finfo(float).eps  # a smaller relative decrease ends a fit
LINE_SEARCH_STEPS = 50  # largest number of evaluations in a step
BIAS = 100.0  # value of the constant feature in `fit_ridge`


ArrayT = TypeVar("ArrayT", np.ndarray, jax.Array)


class Linear(NamedTuple, Generic[ArrayT]):
    """A linear classifier: the class of features x (D,) is the argmax of x W + b.

    Attributes:
      weights: W (D, K), float32.
      bias: b (K,), float32.
    """

    weights: ArrayT
    bias: ArrayT


class Weighted(NamedTuple):
    """Features with labels and weights, split over the devices.

    Attributes:
      rows: X (N, D), float32.
      labels: y (N,), int32.
      weights: (N,) float32 weights of the rows' losses; 0 for padding.
    """

    rows: jax.Array
    labels: jax.Array
    weights: jax.Array


class LogisticRegression:
    """Multinomial logistic regressions of one set of features, on all devices.

    For N features x_n (D,) of labels y_n among K classes, it minimises, over W (D, K)
    and b (K,),

        1/N (sum_n -log softmax(x_n W + b)[y_n] + penalty / 2 |W|^2)

    by L-BFGS. Two classes have one column: the first column of W and b is 0.

    Published probes use scikit-learn with C = 1 / penalty. Where the penalty is small,
    a step of the search changes the objective little but the accuracy by points, so the
    classifier depends on where the search begins and ends. Therefore, objective, start
    (zeros), features (neither centred nor scaled) and stopping rules are
    scikit-learn's. Only the rounding differs: losses and gradients are float32.
    """

    def __init__(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        classes: int,
        mesh: Mesh,
    ) -> None:
        """Puts the features on the devices.

        Args:
          features: (N, D) float32 features.
          labels: (N,) integers from 0 to below `classes`.
          classes: number K of classes.
          mesh: the devices; each holds a part of the features.

        Raises:
          FloatingPointError: a feature is not finite.
        """
        check_finite(features, "picture")
        self._mesh, self._classes = mesh, classes
        self._count, width = features.shape
        self._shape = (width + 1, 1 if classes == 2 else classes)  # weights, then bias
        self._part = _split_rows(features, labels, 1.0 / self._count, mesh)
        self._fitted: dict[float, Linear[np.ndarray]] = {}  # penalty -> classifier

    def fit(self, penalty: float) -> Linear[np.ndarray]:
        """Returns the classifier for a penalty above 0; fits each penalty once."""
        if penalty not in self._fitted:
            self._fitted[penalty] = self._fit(penalty)
        return self._fitted[penalty]

    def _fit(self, penalty: float) -> Linear[np.ndarray]:
        """Fits a classifier, from zeros."""
        evaluate, whole = _make_objective(self._mesh), replicated(self._mesh)
        share = np.float32(penalty / self._count)

        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            unknowns = flat.reshape(self._shape).astype(np.float32)
            found = evaluate(place_array(unknowns, whole), self._part, share)
            value, gradient = (np.asarray(x, np.float64) for x in found)
            return float(value), gradient.ravel()

        found = scipy.optimize.minimize(
            objective,
            np.zeros(self._shape).ravel(),
            method="L-BFGS-B",
            jac=True,
            options={
                "maxiter": MAX_STEPS,
                "maxls": LINE_SEARCH_STEPS,
                "gtol": TOLERANCE,
                "ftol": DECREASE,
            },
        )
        unknowns = found.x.reshape(self._shape).astype(np.float32)
        if self._classes == 2:
            unknowns = np.pad(unknowns, [(0, 0), (1, 0)])
        return Linear(unknowns[:-1], unknowns[-1])


@lru_cache(maxsize=8)  # so that the function is compiled once
def _make_objective(mesh: Mesh) -> jax.stages.Wrapped:
    """Makes the function that returns the objective () and its gradient.

    Its arguments are the unknowns (D + 1, K), whose last row is b and which have one
    column for two classes, the features with weights 1/N, and penalty / N.
    """

    def objective(unknowns: jax.Array, part: Weighted, penalty: jax.Array) -> jax.Array:
        weights, bias = unknowns[:-1], unknowns[-1:]
        logits = jnp.matmul(part.rows, weights, precision=lax.Precision.HIGHEST) + bias
        if logits.shape[1] == 1:
            logits = jnp.pad(logits, [(0, 0), (1, 0)])  # (N, 2)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, part.labels)
        decay = 0.5 * penalty * jnp.sum(jnp.square(weights))
        return jnp.sum(part.weights * losses) + decay

    return jax.jit(jax.value_and_grad(objective), out_shardings=replicated(mesh))


def _split_rows(
    rows: np.ndarray, labels: np.ndarray, weight: float, mesh: Mesh
) -> Weighted:
    """Splits rows (N, D) and labels (N,) over the devices.

    Every row's loss has the weight `weight`; rows of padding have the weight 0.
    """
    padding, split = -len(rows) % mesh.size, batch_split(mesh)
    weights = np.pad(np.full(len(rows), weight, np.float32), (0, padding))
    labels = np.pad(labels.astype(np.int32), (0, padding))
    rows = np.pad(rows, [(0, padding), (0, 0)])
    return Weighted(*(place_array(array, split) for array in (rows, labels, weights)))


def search_penalty(
    score: Callable[[float], float],
    lowest: float = -6.0,
    highest: float = 6.0,
    gap: float = 2.0,
    finest: float = 0.125,
) -> float:
    """Searches powers of ten for the penalty with the highest score.

    First, exponents `gap` apart are tried. Then the two neighbours of the best exponent
    are tried, at half the distance each time, down to `finest`. This is the search of
    CLIP's linear probes (arXiv 2103.00020, appendix A.3). The larger penalty wins a
    tie.

    Args:
      score: function from a penalty to its score; the highest is the best.
      lowest: smallest exponent.
      highest: largest exponent.
      gap: distance of the first exponents.
      finest: distance at which the search ends.

    Returns:
      The penalty, not its exponent.
    """
    found: dict[float, float] = {}
    for exponent in np.arange(highest, lowest - gap / 2, -gap).tolist():
        found[exponent] = score(10.0**exponent)
    while gap > finest:
        gap /= 2
        best = max(found, key=lambda e: (found[e], e))
        for exponent in (best + gap, best - gap):
            if lowest <= exponent <= highest and exponent not in found:
                found[exponent] = score(10.0**exponent)
    return 10.0 ** max(found, key=lambda e: (found[e], e))


def fit_ridge(
    features: np.ndarray, labels: np.ndarray, classes: int, penalty: float
) -> Linear[np.ndarray]:
    """Fits targets of 1 and -1 by penalised least squares, in closed form.

    The features are standardised to mean 0 and deviation 1. The bias comes from a
    constant feature of value `BIAS`, whose weight is penalised like the others. This is
    the few-shot probe of vision transformers (arXiv 2010.11929, section 4.1).

    Args:
      features: (N, D) features.
      labels: (N,) integers from 0 to below `classes`.
      classes: number K of classes.
      penalty: factor of the squared weights in the objective.

    Returns:
      A classifier of features as they are given, not standardised.

    Raises:
      FloatingPointError: a feature is not finite.
    """
    check_finite(features, "picture")
    mean = features.mean(0, dtype=np.float64)
    deviation = features.std(0, dtype=np.float64) + 1e-5
    scaled = np.pad((features - mean) / deviation, [(0, 0), (0, 1)])
    scaled[:, -1] = BIAS
    targets = 2.0 * np.eye(classes)[labels] - 1.0  # (N, K)
    many = len(features) > scaled.shape[1]
    products = scaled.T @ scaled if many else scaled @ scaled.T
    products[np.diag_indices_from(products)] += penalty
    if many:
        weights = np.linalg.solve(products, scaled.T @ targets)
    else:
        weights = scaled.T @ np.linalg.solve(products, targets)
    bias = BIAS * weights[-1] - (mean / deviation) @ weights[:-1]
    weights = weights[:-1] / deviation[:, None]
    return Linear(weights.astype(np.float32), bias.astype(np.float32))


def classify(classifier: Linear[np.ndarray], features: np.ndarray) -> np.ndarray:
    """Returns the scores x W + b, (N, K), of features x (N, D).

    Raises:
      FloatingPointError: a feature is not finite.
    """
    check_finite(features, "picture")
    return features @ classifier.weights + classifier.bias
