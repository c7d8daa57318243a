"""Computes objectives and ranks in float64 numpy, with whole matrices, by equations."""

import numpy as np


def embeddings(n, d=24, seed=0):
    """Draws unit embeddings of images and texts (2, n, d); pairs are somewhat alike."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, n, d))
    x[1] += 0.5 * x[0]
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def contrastive_reference(ximg, ytxt, temperature, smoothing, groups=1):
    """Returns L_i2t, L_t2i (arXiv 2102.05918, section 4.1) and their sum's gradients.

    The n pairs are cut into groups of consecutive pairs; a pair's candidates are the
    pairs of its group.
    """
    n = len(ximg)
    z = ximg @ ytxt.T / temperature
    group = np.arange(n) * groups // n
    candidate = group[:, None] == group
    target = (1 - smoothing) * np.eye(n) + smoothing * candidate * groups / n

    def direction(z):
        shifted = np.where(candidate, z - z.max(1, keepdims=True), -np.inf)
        p = np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        cross_entropy = -(target * np.where(candidate, log_p, 0.0)).sum(1)
        return cross_entropy.mean(), (p - target) / n

    i2t, to_rows = direction(z)
    t2i, to_columns = direction(z.T)
    to_z = to_rows + to_columns.T
    gradients = (
        to_z @ ytxt / temperature,
        to_z.T @ ximg / temperature,
        -(to_z * z).sum() / temperature,
    )
    return i2t, t2i, gradients


def sigmoid_reference(ximg, ytxt, temperature, bias):
    """Returns the loss (arXiv 2303.15343) and its gradients by all four arguments."""
    n = len(ximg)
    z = ximg @ ytxt.T / temperature + bias
    sign = 2 * np.eye(n) - 1
    loss = np.logaddexp(0.0, -sign * z).sum() / n
    to_z = -sign / (1 + np.exp(sign * z)) / n
    gradients = (
        to_z @ ytxt / temperature,
        to_z.T @ ximg / temperature,
        -(to_z * (z - bias)).sum() / temperature,
        to_z.sum(),
    )
    return loss, gradients


def positive_ranks(scores, positives):
    """Counts the wrong candidates that score no lower than the best right one, (Q,).

    `scores` and `positives`, which marks right candidates, are (Q, C). Every query has
    a right candidate.
    """
    best = np.where(positives, scores, -np.inf).max(1, keepdims=True)
    return np.count_nonzero(~positives & (scores >= best), axis=1)
