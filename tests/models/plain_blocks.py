"""Pre-layer-norm blocks in float64 numpy, one head and one query at a time."""

import math

import numpy as np

ACTIVATIONS = {
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: (
        x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
    ),
    "quick_gelu": lambda x: x / (1 + math.exp(-1.702 * x)),
}


def draw(shapes, seed=0):
    """Draws parameters, none of them 0, for a nested dict of shapes."""
    random = np.random.default_rng(seed)

    def leaf(like):
        spread = 1 / np.sqrt(like.shape[0]) if like.ndim > 1 else 0.3
        return random.normal(0, spread, like.shape).astype(np.float32)

    def below(node):
        if isinstance(node, dict):
            return {name: below(value) for name, value in node.items()}
        return leaf(node)

    return below(shapes)


def norm(p, x, epsilon):
    centred = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    return centred / deviation * p["scale"] + p["bias"]


def attend(p, queries, x, config, allowed=None, turn=None):
    """Returns the attention's output (Q, W) for one example's x (L, W).

    allowed: (Q, L) bools; turn: function of (token, vector of a head).
    """
    last = p["attention_output"]
    out = np.zeros((len(queries), x.shape[1])) + last["bias"]
    for head in range(config.heads):

        def project(name, tokens, head=head):
            kernel, bias = p[name]["kernel"], p[name]["bias"]
            return tokens @ kernel[:, head] + bias[head]

        q, k, v = (
            project(name, tokens)
            for name, tokens in (("query", queries), ("key", x), ("value", x))
        )
        if "query_norm" in p:
            q = norm(p["query_norm"], q, config.norm_epsilon)
            k = norm(p["key_norm"], k, config.norm_epsilon)
        if turn:
            q, k = (np.stack([turn(i, t) for i, t in enumerate(z)]) for z in (q, k))
        for i, query in enumerate(q):
            logits = k @ query / np.sqrt(len(query))
            shares = np.exp(logits - logits.max())
            if allowed is not None:
                shares = np.where(allowed[i], shares, 0.0)
            out[i] += (shares / shares.sum()) @ v @ last["kernel"][head]
    return out


def feed_forward(p, x, config):
    hidden = x @ p["intermediate"]["kernel"] + p["intermediate"]["bias"]
    hidden = np.vectorize(ACTIVATIONS[config.activation])(hidden)
    return hidden @ p["output"]["kernel"] + p["output"]["bias"]


def block(p, x, config, **attention):
    """Returns a block's output (L, W) for one example's x (L, W)."""
    normed = norm(p["attention_norm"], x, config.norm_epsilon)
    attended = attend(p, normed, normed, config, **attention)
    x = x + attended * p.get("layer_scale_1", 1.0)
    normed = norm(p["mlp_norm"], x, config.norm_epsilon)
    return x + feed_forward(p, normed, config) * p.get("layer_scale_2", 1.0)
