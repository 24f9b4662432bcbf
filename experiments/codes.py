"""The codes of a VQ-VAE: what quantises, by the options of a run, and the indices of a whole set."""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

import jaxvae
from experiments.report import over_set
from jaxvae import codebook, data
from jaxvae.quantizers import FiniteScalar, Grouped, GumbelCodebook, LookupFree, Projected, Residual, SimVQ
from jaxvae.types import Array, Batch, PRNGKey, PyTree, Quantizer


def make_quantizer(config: Any) -> Quantizer:
    """What quantises: levels inside groups, around what `codes` says."""
    quantizer = _quantizer(config)
    if config.depth > 1 or config.level_dropout:
        quantizer = Residual(quantizer, config.depth, config.level_dropout)
    return quantizer if config.groups == 1 else Grouped(quantizer, config.groups)


def _quantizer(config: Any) -> Quantizer:
    """One quantiser of `num_codes` codes."""
    num_codes: int = config.num_codes
    how: dict[str, Any] = {"estimator": config.estimator, "temperature": config.code_temperature}
    if config.codes in ("finite-scalar", "lookup-free", "spherical"):
        bits = num_codes.bit_length() - 1
        if 2**bits != num_codes:
            raise ValueError(f"{config.codes} needs num_codes that is a power of two, got {num_codes}")
        if config.codes == "finite-scalar":
            levels = finite_scalar_levels(bits)
            return Projected(FiniteScalar(levels, **how), len(levels))
        return Projected(LookupFree(bits, spherical=config.codes == "spherical", **how), bits)
    quantizer: Quantizer
    if config.codes == "gumbel":
        falling = optax.cosine_decay_schedule(1.0, config.total_steps, config.gumbel_temperature)
        quantizer = GumbelCodebook(num_codes, falling, kl_weight=config.kl_weight)
    elif config.codes == "sim":
        quantizer = SimVQ(num_codes, **how)
    elif config.codes == "gradient":
        quantizer = jaxvae.GradientCodebook(num_codes, **how)
    else:
        averages = (config.decay, config.restart_threshold, config.entropy_weight)
        quantizer = jaxvae.EMACodebook(num_codes, *averages, cosine=config.codes == "cosine", **how)
    return Projected(quantizer, config.project) if config.project else quantizer


def finite_scalar_levels(bits: int) -> tuple[int, ...]:
    """Levels of eight, and one or two of four, that make 2^bits codes."""
    if bits < 2:
        raise ValueError(f"finite-scalar needs num_codes of at least 4, got {2**bits}")
    fours = {0: 0, 1: 2, 2: 1}[bits % 3]
    return (8,) * ((bits - 2 * fours) // 3) + (4,) * fours


def parts_of(config: Any) -> int:
    """How many indices a position has."""
    return int(config.groups * config.depth)


def indices_of(model: jaxvae.VQVAE, state: Any, dataset: data.Dataset) -> np.ndarray:
    """The indices of all images of a set, [N, *positions], or [N, *positions, G]."""
    return over_set(partial(choose_indices, model), state, dataset)


def choose_indices(model: jaxvae.VQVAE, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey) -> Array:
    """The indices of a batch, [B, *positions], or [B, *positions, G]."""
    del key
    return model.encode_indices(params, model_state, batch["x"])


def codebook_health(indices: np.ndarray, num_codes: int, parts: int) -> dict[str, float]:
    """Perplexity and codes in use over a whole set; the mean over groups and levels."""
    usage = usage_of(indices, num_codes, parts)
    perplexity = [float(codebook.perplexity(jnp.asarray(each, jnp.float32))) for each in usage]
    return {"perplexity": float(np.mean(perplexity)), "codes_used": float((usage > 0).sum(axis=1).mean())}


def usage_of(indices: np.ndarray, num_codes: int, parts: int) -> np.ndarray:
    """The share of each code, [P, K], of indices [N, *positions], or [N, *positions, P]."""
    by_part = indices.reshape(-1, parts).T
    return np.stack([np.bincount(each, minlength=num_codes) for each in by_part]) / by_part.shape[1]
