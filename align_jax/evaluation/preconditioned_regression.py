"""Logistic regression that comes closer to the optimum than scikit-learn, and sooner.

The accuracy of `linear_classifier.LogisticRegression` is the one that compares with
published probes. This one is for features whose directions differ much in spread, and
for many pictures.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh

from align_jax.devices.mesh import place_array, replicated
from align_jax.evaluation.linear_classifier import Linear, Weighted, split_rows
from align_jax.evaluation.ranking import check_finite

MAX_STEPS = 1000
TOLERANCE = 1e-4  # norm of the gradient that ends a fit, relative to its norm at 0
ROUGH = 3e-2  # the same for the rough fit of a part of the pictures
PATIENCE = 10  # steps without a relative decrease of `DECREASE` that end a fit
DECREASE = 1e-4
FLAT = 1e-7  # smallest curvature used, relative to the largest
MEMORY = 10  # steps that L-BFGS remembers
STRIDE = 8  # distance between the pictures of the rough fit
ENOUGH = 8  # pictures for each feature that a rough fit needs


class PreconditionedRegression:
    """Multinomial logistic regressions of one set of features, on all devices.

    For N features x_n (D,) of labels y_n among K classes, it minimises, over W (D, K)
    and b (K,),

        sum_n -log softmax(x_n W + b)[y_n] + penalty / 2 |W|^2,

    which is scikit-learn's objective with C = 1 / penalty, by L-BFGS. A tower's
    features vary thousands of times more in some directions than in others, so L-BFGS
    would need hundreds of steps. Therefore, the features X (N, D) are centred, and the
    unknowns are V and c in

        W = P V,  b = (N / K)^(-1/2) c,  (P P^T)^(-1) = X^T X / K + penalty.

    The second derivative of the objective at 0 is then about the identity. With at
    least `STRIDE * ENOUGH` pictures per feature, a rough fit of every `STRIDE`-th
    picture comes first, since its steps are cheap.
    """

    def __init__(
        self, features: np.ndarray, labels: np.ndarray, classes: int, mesh: Mesh
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
        self._mean = features.mean(0, dtype=np.float64).astype(np.float32)
        self._mesh, self._classes, self._count = mesh, classes, len(features)
        centred = features - self._mean
        few = len(features) < STRIDE * ENOUGH * features.shape[1]
        strides = [1] if few else [STRIDE, 1]
        self._parts = [  # fitted one after the other
            split_rows(centred[::stride], labels[::stride], float(stride), mesh)
            for stride in strides
        ]
        square = jax.jit(lambda x: _multiply(x.T, x), out_shardings=replicated(mesh))
        products = np.asarray(square(self._parts[0][0]), np.float64)
        values, self._axes = np.linalg.eigh(products * strides[0] / classes)
        least = FLAT * max(values[-1], 1e-30)  # smaller values are rounding errors
        self._values = np.maximum(values, least)  # (D,)
        self._fitted: dict[
            float, Linear[np.ndarray]
        ] = {}  # penalty -> classifier of the centred features

    def fit(self, penalty: float) -> Linear[np.ndarray]:
        """Returns the classifier, of the given features, for a penalty above 0.

        The fit starts from the earlier fit whose penalty is nearest in logarithm, or
        from zeros. A penalty that was fitted before is not fitted again.
        """
        if penalty not in self._fitted:
            self._fitted[penalty] = self._fit(penalty)
        weights, bias = self._fitted[penalty]
        return Linear(weights, bias - self._mean @ weights)

    def _fit(self, penalty: float) -> Linear[np.ndarray]:
        """Fits a classifier of the centred features; starts as `fit` describes."""
        if self._fitted:
            nearest = min(self._fitted, key=lambda p: abs(np.log(p / penalty)))
            return self._descend(self._fitted[nearest], self._parts[-1], penalty)
        width = len(self._mean)
        found = Linear(
            np.zeros((width, self._classes), np.float32),
            np.zeros(self._classes, np.float32),
        )
        for part in self._parts:
            found = self._descend(found, part, penalty)
        return found

    def _descend(
        self, start: Linear[np.ndarray], part: Weighted, penalty: float
    ) -> Linear[np.ndarray]:
        """Minimises the objective on one of `self._parts`, starting from `start`.

        Both `start` and the result are classifiers of the centred features. All parts
        but the last are fitted roughly.
        """
        roots = (self._values + penalty) ** 0.5
        scale = (self._count / self._classes) ** 0.5
        own = (self._axes * roots).T @ start.weights
        unknowns = Linear(own, scale * start.bias)
        whole = replicated(self._mesh)
        unknowns, maps = (
            jax.tree.map(lambda x: place_array(np.asarray(x, np.float32), whole), tree)
            for tree in (unknowns, (self._axes / roots, 1.0 / scale))
        )
        tolerance = TOLERANCE if part is self._parts[-1] else ROUGH
        found = _minimise(
            unknowns, maps, part, np.float32(penalty), np.float32(tolerance)
        )
        return jax.tree.map(
            np.asarray, jax.jit(_classifier, out_shardings=whole)(found, maps)
        )


# Unknowns, state of the optimizer, the smallest loss, steps without a decrease, all
# steps, and whether the search ends; see `_minimise`.
FitState = tuple[
    Linear[jax.Array], optax.OptState, jax.Array, jax.Array, jax.Array, jax.Array
]

_multiply = partial(jnp.matmul, precision=lax.Precision.HIGHEST)


def _classifier(
    unknowns: Linear[jax.Array], maps: tuple[jax.Array, jax.Array]
) -> Linear[jax.Array]:
    """Returns W = P V and b = s c, see `PreconditionedRegression`.

    Args:
      unknowns: V (D, K) and c (K,), the variables of L-BFGS.
      maps: P (D, D) and the scale s = (N / K)^(-1/2), ().
    """
    to_weights, bias_scale = maps
    return Linear(_multiply(to_weights, unknowns.weights), bias_scale * unknowns.bias)


@jax.jit
def _minimise(
    start: Linear[jax.Array],
    maps: tuple[jax.Array, jax.Array],
    part: Weighted,
    penalty: jax.Array,
    tolerance: jax.Array,
) -> Linear[jax.Array]:
    """Returns the unknowns V and c that L-BFGS reaches from `start`.

    Args:
      start: first values of the unknowns.
      maps: the two factors of `_classifier`.
      part: centred features, labels and weights of the losses.
      penalty: factor of |W|^2 / 2 in the objective, ().
      tolerance: norm of the gradient that ends the search, relative to its norm at 0.
        `PATIENCE` steps without progress or `MAX_STEPS` steps end the search, too.
    """
    rows, labels, weights = part

    def objective(unknowns: Linear[jax.Array]) -> jax.Array:
        own = _classifier(unknowns, maps)
        losses = optax.softmax_cross_entropy_with_integer_labels(
            _multiply(rows, own.weights) + own.bias[None], labels
        )
        decay = 0.5 * penalty * jnp.sum(jnp.square(own.weights))
        return jnp.sum(weights * losses) + decay

    zero = jax.tree.map(jnp.zeros_like, start)
    small = tolerance * optax.tree.norm(jax.grad(objective)(zero))
    optimizer = optax.lbfgs(memory_size=MEMORY, scale_init_precond=False)
    evaluate = optax.value_and_grad_from_state(objective)

    def step(carry: FitState) -> FitState:
        unknowns, state, best, idle, taken, _ = carry
        value, gradient = evaluate(unknowns, state=state)
        updates, state = optimizer.update(
            gradient,
            state,
            unknowns,
            value=value,
            grad=gradient,
            value_fn=objective,
        )
        unknowns = optax.apply_updates(unknowns, updates)
        better = value < (1.0 - DECREASE) * best
        best, idle = jnp.where(better, value, best), jnp.where(better, 0, idle + 1)
        ends = (idle >= PATIENCE) | (optax.tree.norm(gradient) <= small)
        return unknowns, state, best, idle, taken + 1, ends

    def goes_on(carry: FitState) -> jax.Array:
        *_, taken, ends = carry
        return (taken < MAX_STEPS) & ~ends

    carry: tuple = (start, optimizer.init(start), jnp.inf, 0, 0, False)
    return lax.while_loop(goes_on, step, carry)[0]
