"""The codebook of VQ-VAE as pure functions: nearest codes, moving averages, restarts, health.

A step reads the state and makes the next one:

    codes = vectors(state)
    indices = nearest(codes, encoded)
    quantized = straight_through(encoded, codes[indices])  # for the decoder; the losses take codes[indices] itself
    state = ema_update(state, encoded, indices, decay=0.99)
    state = restart_dead_codes(state, encoded, key=key)

Statistics are means over all positions of the batch, so that a batch twice over changes nothing, and so that a batch
split over devices needs one mean. Evaluation does not update. For a codebook learned by gradient (the paper's second
loss term) the codes are a parameter: `nearest`, `straight_through` and `losses.codebook_loss` serve it as they are.
For groups, `jax.vmap` every function.

References:
  van den Oord, Vinyals and Kavukcuoglu, Neural Discrete Representation Learning, 2017, with the moving averages in
  appendix A.1; Razavi, van den Oord and Vinyals, Generating Diverse High-Fidelity Images with VQ-VAE-2, 2019.
"""

from jaxvae.codebook._averages import (
    CodebookState,
    batch_means,
    dead_codes,
    ema_update,
    init_codebook,
    one_hot_means,
    restart_dead_codes,
    segment_means,
    vectors,
)
from jaxvae.codebook._gradients import rotation_trick, straight_through
from jaxvae.codebook._health import perplexity, usage
from jaxvae.codebook._nearest import code_costs, draw, nearest
from jaxvae.codebook._seeding import seed_codebook

__all__ = [
    "CodebookState",
    "batch_means",
    "code_costs",
    "dead_codes",
    "draw",
    "ema_update",
    "init_codebook",
    "nearest",
    "one_hot_means",
    "perplexity",
    "restart_dead_codes",
    "rotation_trick",
    "seed_codebook",
    "segment_means",
    "straight_through",
    "usage",
    "vectors",
]
