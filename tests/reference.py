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


def distillation_reference(student, teacher, groups=1):
    """Returns both divergences (arXiv 2311.17049) and the gradients of their sum.

    `student` and `teacher` are (images, texts, temperature).
    """
    (ximg, ytxt, temperature), n = student, len(student[0])
    group = np.arange(n) * groups // n
    candidate = group[:, None] == group

    def log_shares(x, y, temperature):
        z = np.where(candidate, x @ y.T / temperature, -np.inf)
        z -= z.max(1, keepdims=True)
        return z - np.log(np.exp(z).sum(1, keepdims=True))

    def direction(swap):
        order = (1, 0, 2) if swap else (0, 1, 2)
        log_p = log_shares(*(student[i] for i in order))
        log_q = log_shares(*(teacher[i] for i in order))
        p, q = np.exp(log_p), np.exp(log_q)
        ratio = np.where(candidate, log_q, 0.0) - np.where(candidate, log_p, 0.0)
        return (q * ratio).sum(1).mean(), (p - q) / n

    (i2t, by_rows), (t2i, by_columns) = direction(False), direction(True)
    to_z = by_rows + by_columns.T
    gradients = (
        to_z @ ytxt / temperature,
        to_z.T @ ximg / temperature,
        -(to_z * (ximg @ ytxt.T)).sum() / temperature**2,
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


def choose_pairs_reference(judges, noise, count, loss, gain):
    """Returns ascending rows of the chosen pairs (arXiv 2406.17711, section 3).

    Judges are (images, texts, temperature, bias, weight); noise is (chunks, n).
    """
    chunks, n = noise.shape
    chosen = []
    for drawn in noise:
        scores = np.zeros(n)
        for ximg, ytxt, temperature, bias, weight in judges:
            z = ximg @ ytxt.T / temperature + bias
            if loss == "softmax":
                total = -np.diag(z)
                if chosen:
                    total += 0.5 * np.log(np.exp(z[:, chosen]).sum(1))
                    total += 0.5 * np.log(np.exp(z[chosen]).sum(0))
            else:
                total = np.logaddexp(0, -np.diag(z))
                total += np.logaddexp(0, z[:, chosen]).sum(1)
                total += np.logaddexp(0, z[chosen]).sum(0)
            scores += weight * total
        noisy = gain * scores + drawn
        noisy[chosen] = -np.inf
        chosen += [*np.argsort(-noisy)[: count // chunks]]
    return np.sort(chosen)
