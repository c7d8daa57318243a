"""Times logistic regression on features beside scikit-learn's.

    python -m benchmarks.probe --pictures=50000 --classes=100

The features imitate those of a tower's last layer: hidden features, which are a class's
centre with noise, are mixed, passed through swish and averaged over positions. Our
regression and scikit-learn's use the same penalty and are compared by the objective
and by their accuracy on unseen features. scikit-learn runs with its default tolerance,
as ours does, and with a third of it.
"""

import argparse
import statistics
import time
from functools import partial

import numpy as np
from sklearn.linear_model import LogisticRegression as Sklearn

from align_jax.devices.mesh import make_mesh
from align_jax.evaluation.linear_classifier import Linear, LogisticRegression, classify
from benchmarks.comparisons import Comparison, add_record_flag, record

WIDTH = 640
HIDDEN, POSITIONS = 128, 16
PENALTY = 1 / 0.316  # from CLIP's example code


def draw(count: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws features (count, WIDTH) and labels (count,)."""
    fixed, random = np.random.default_rng(99), np.random.default_rng(seed)
    centres = fixed.standard_normal((classes, HIDDEN), np.float32)
    mixing = fixed.standard_normal((HIDDEN, WIDTH), np.float32) / HIDDEN**0.5
    labels = random.integers(classes, size=count)
    hidden = centres[labels] + 3.0 * random.standard_normal((count, HIDDEN), np.float32)
    features = np.zeros((count, WIDTH), np.float32)
    for _ in range(POSITIONS):
        noise = random.standard_normal((count, HIDDEN), np.float32)
        x = (0.5 * hidden + noise) @ mixing
        features += x / (1.0 + np.exp(-x)) / POSITIONS
    return features, labels


def objective(found: Linear, features: np.ndarray, labels: np.ndarray) -> float:
    """Returns the objective that both regressions minimise."""
    logits = classify(found, features).astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]
    return float(losses.sum() + PENALTY / 2 * np.square(found.weights).sum())


def main() -> None:
    """Fits each in turn and prints its times, objectives and accuracies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    add_record_flag(parser)
    flags = parser.parse_args()
    features, labels = draw(flags.pictures, flags.classes, 0)
    test_features, test_labels = draw(10_000, flags.classes, 1)
    mesh = make_mesh()

    def ours() -> Linear:
        return LogisticRegression(features, labels, flags.classes, mesh).fit(PENALTY)

    def theirs(tolerance: float) -> Linear:
        model = Sklearn(C=1 / PENALTY, max_iter=1000, tol=tolerance)
        model.fit(features, labels)
        return Linear(model.coef_.T, model.intercept_)

    fits = {"ours": ours}
    for tolerance in (1e-4, 3e-5):
        fits[f"scikit-learn at {tolerance}"] = partial(theirs, tolerance)
    seconds: dict[str, list[float]] = {name: [] for name in fits}
    ours()  # compile before the first round
    for _ in range(flags.rounds):
        for name, fit in fits.items():
            start = time.perf_counter()
            fitted = fit()
            seconds[name].append(time.perf_counter() - start)
            chosen = classify(fitted, test_features).argmax(1)
            accuracy = np.mean(chosen == test_labels)
            print(
                f"{name}: {seconds[name][-1]:.2f} s, objective"
                f" {objective(fitted, features, labels):.2f}, accuracy {accuracy:.4f}",
                flush=True,
            )
    own = seconds.pop("ours")
    size = f"{flags.pictures} x {WIDTH}, {flags.classes} classes"
    found = [
        Comparison(f"probe, {size}", name, "s", own, theirs_took)
        for name, theirs_took in seconds.items()
    ]
    for comparison in found:
        ratio = statistics.median(comparison.ratios)
        print(f"{size}: {comparison.reference} takes {ratio:.1f} times as long as ours")
    record(flags.record, found)


if __name__ == "__main__":
    main()
