"""The choice of the pairs that a step trains on (JEST, arXiv 2406.17711, section 3).

A step reads a super-batch of N pairs and trains on b of them. The pairs are not chosen
one by one: a pair's loss depends on the others in its batch, so the batch is drawn in
chunks, and each chunk depends on those before it (blocked Gibbs sampling). The chance
of pair i, after the set S of pairs is drawn, is

    p_i ~ exp( gain s_i(S) ),    s_i(S) = sum_m weight_m l_i(S; m)

The sum is over models: the learner with weight 1 and a reference with weight -1 for the
"learnability", learner loss minus reference loss. With images x_i, texts y_j and logits
z_ij = x_i . y_j / temperature of a model, the loss l_i(S) of a pair given S is

    softmax    -z_ii + 1/2 log sum_{j in S} exp z_ij + 1/2 log sum_{j in S} exp z_ji
    sigmoid    softplus(-z_ii) + sum_{j in S} ( softplus(z_ij) + softplus(z_ji) )

where the sigmoid's logits include its bias. The terms of S are absent while S is empty.
They grow by one chunk at a time, so only the products of all pairs with one chunk are
needed, N x b / chunks, and a device computes them for its rows, a few at a time.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from align_jax.devices.mesh import BATCH_AXES, replicated
from align_jax.losses.chosen_rows import largest_divisor, own_part
from align_jax.losses.tiles import BLOCK_BYTES, EXCLUDED, ROWS, WHOLE

Terms = tuple[jax.Array, jax.Array]  # (N,) each: terms of S by images, and by texts


class Judge(NamedTuple):
    """A model whose losses decide on the choice.

    Attributes:
      images: (N, D) unit vectors, split over the mesh by rows.
      texts: (N, D) unit vectors, split in the same way.
      temperature: () positive divisor of the cosine similarities.
      bias: () bias that is added to the logits; 0 for the softmax.
      weight: weight of the model's loss in a pair's score, 1 or -1.
    """

    images: jax.Array
    texts: jax.Array
    temperature: jax.Array
    bias: jax.Array
    weight: float


@dataclasses.dataclass(frozen=True)
class Choice:
    """The options of a choice, fixed when a step is compiled.

    Attributes:
      count: number b of pairs to choose.
      chunks: number of chunks, which divides b.
      loss: kind of the loss, a key of `PAIR_LOSSES`.
      gain: factor of the scores; larger ones make the choice less random.
      mesh: mesh of the devices.
      precision: precision of the matrix products, a name of `jax.lax.Precision`.
    """

    count: int
    chunks: int
    loss: str
    gain: float
    mesh: Mesh
    precision: str = "highest"


def choose_pairs(
    judges: Sequence[Judge], key: jax.Array, choice: Choice
) -> tuple[jax.Array, jax.Array]:
    """Draws the pairs of a step from a super-batch, see this module.

    A chunk is drawn without replacement, by the largest sums of score and Gumbel noise.
    The noise depends only on the key, the chunk and the pair's row.

    Args:
      judges: models that score the pairs, one or more.
      key: random key of the choice.
      choice: number of pairs and the other options.

    Returns:
      The rows of the chosen pairs, (b,), ascending, and the scores of all pairs while
      nothing is chosen, (N,). Both are whole on every device.
    """
    loss, pairs = PAIR_LOSSES[choice.loss], len(judges[0].images)
    size = choice.count // choice.chunks

    def total(losses: Sequence[jax.Array]) -> jax.Array:
        weighed = (j.weight * x for j, x in zip(judges, losses, strict=True))
        return sum(weighed, start=jnp.zeros(pairs))

    def draw(
        scores: jax.Array, taken: jax.Array, chunk: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        noise = jax.random.gumbel(jax.random.fold_in(key, chunk), (pairs,))
        noisy = jnp.where(taken, -jnp.inf, choice.gain * scores + noise)
        drawn = lax.top_k(noisy, size)[1]  # (size,)
        return drawn, taken.at[drawn].set(True)

    def follow(
        carry: tuple[jax.Array, jax.Array, list[Terms]], chunk: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array, list[Terms]], None]:
        drawn, taken, terms = carry
        new = [_chunk_terms(judge, drawn, choice) for judge in judges]
        terms = [
            (loss.join(old[0], add[0]), loss.join(old[1], add[1]))
            for old, add in zip(terms, new, strict=True)
        ]
        scores = own + total([loss.share * (a + b) for a, b in terms])
        return (*draw(scores, taken, chunk), terms), None

    own = total([_own_losses(judge, choice) for judge in judges])
    drawn, taken = draw(own, jnp.zeros(pairs, bool), jnp.asarray(0))
    empty = jnp.full(pairs, loss.empty)
    carry = (drawn, taken, [(empty, empty) for _ in judges])
    (_, taken, _), _ = lax.scan(follow, carry, jnp.arange(1, choice.chunks))
    return jnp.flatnonzero(taken, size=choice.count), own


def _own_losses(judge: Judge, choice: Choice) -> jax.Array:
    """Returns the loss (N,) of every pair while nothing is chosen."""
    logits = (judge.images * judge.texts).sum(1) / judge.temperature + judge.bias
    losses = PAIR_LOSSES[choice.loss].own(logits)
    return lax.with_sharding_constraint(losses, replicated(choice.mesh))


def _chunk_terms(judge: Judge, drawn: jax.Array, choice: Choice) -> Terms:
    """Returns the terms of all pairs with the pairs of one chunk, by its rows `drawn`.

    Each device receives the chunk's embeddings, 2 D numbers a pair, and returns two
    numbers for each of its rows.
    """
    share = jax.shard_map(
        partial(_share_of_terms, choice=choice),
        mesh=choice.mesh,
        in_specs=(ROWS, ROWS, WHOLE, WHOLE, WHOLE),
        out_specs=(ROWS, ROWS),
    )
    terms = share(judge.images, judge.texts, judge.temperature, judge.bias, drawn)
    return lax.with_sharding_constraint(terms, replicated(choice.mesh))


def _share_of_terms(
    images: jax.Array,
    texts: jax.Array,
    temperature: jax.Array,
    bias: jax.Array,
    drawn: jax.Array,
    choice: Choice,
) -> Terms:
    """Returns the terms (n,) of this device's pairs, from images and texts (n, D)."""
    reduce = PAIR_LOSSES[choice.loss].reduce

    def chunk(x: jax.Array) -> jax.Array:
        return lax.psum(own_part(x, drawn), BATCH_AXES) / temperature  # (c, D)

    chosen_images, chosen_texts = chunk(images), chunk(texts)

    def terms(row: tuple[jax.Array, jax.Array]) -> Terms:
        image, text = row  # (D,)
        product = partial(jnp.matmul, precision=choice.precision)
        by_image = product(chosen_texts, image) + bias  # (c,), the logits z_ij
        by_text = product(chosen_images, text) + bias  # (c,), the logits z_ji
        return reduce(by_image), reduce(by_text)

    most = BLOCK_BYTES // (8 * len(drawn))  # two logits of a pair, float32
    rows = largest_divisor(len(images), most)
    return lax.map(terms, (images, texts), batch_size=rows)


@dataclasses.dataclass(frozen=True)
class PairLoss:
    """A loss of a pair given a set of pairs, see this module.

    Attributes:
      own: function from logits of pairs to their losses given the empty set.
      reduce: function from the logits with a chunk to the chunk's term.
      join: function that adds the term of a chunk to that of the chunks before it.
      empty: term of the empty set.
      share: factor of the sum of both directions' terms.
    """

    own: Callable[[jax.Array], jax.Array]
    reduce: Callable[[jax.Array], jax.Array]
    join: Callable[[jax.Array, jax.Array], jax.Array]
    empty: float
    share: float


PAIR_LOSSES = {
    "softmax": PairLoss(
        own=jnp.negative,
        reduce=jax.nn.logsumexp,
        join=jnp.logaddexp,
        empty=EXCLUDED,
        share=0.5,
    ),
    "sigmoid": PairLoss(
        own=lambda logits: jax.nn.softplus(-logits),
        reduce=lambda logits: jax.nn.softplus(logits).sum(),
        join=jnp.add,
        empty=0.0,
        share=1.0,
    ),
}
