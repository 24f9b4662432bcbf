"""All scores at once, and what they give codes that are known to be good or worthless."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike

from jaxvae._checks import at_least
from jaxvae.evaluation.disentanglement._information import mig
from jaxvae.evaluation.disentanglement._points import check_factors
from jaxvae.evaluation.disentanglement._prediction import DCI, dci, sap
from jaxvae.evaluation.disentanglement._still import beta_vae_score, factor_vae_score

Score = Callable[..., float | DCI]  # (codes, factors, *, seed)
# All but DCI, which takes minutes on dSprites.
CHEAP_SCORES: Mapping[str, Score] = {
    "mig": mig,
    "sap": sap,
    "factor_vae_score": factor_vae_score,
    "beta_vae_score": beta_vae_score,
}
SCORES: Mapping[str, Score] = {**CHEAP_SCORES, "dci": dci}  # all of them, by name


def disentanglement_scores(
    codes: ArrayLike, factors: ArrayLike, *, seed: int = 0, scores: Mapping[str, Score] = SCORES
) -> dict[str, float]:
    """All five scores by name, DCI as "dci_disentanglement", "dci_completeness" and "dci_informativeness".

    Args:
      codes: [N, D] finite, D of 2 or more.
      factors: [N, F] integers, F of 2 or more.
      seed: passed to each of them.
      scores: which ones, by name: `CHEAP_SCORES` leaves out DCI, which takes minutes on dSprites. For other settings
        use `functools.partial(mig, num_points=1000)`.
    """
    results: dict[str, float] = {}
    for name, score in scores.items():
        value = score(codes, factors, seed=seed)
        if isinstance(value, DCI):
            results |= {f"{name}_{part}": number for part, number in value._asdict().items()}
        else:
            results[name] = value
    return results


def fixed_points(
    factors: ArrayLike,
    *,
    latent_dim: int = 10,
    seed: int = 0,
    rotations: int = 20,
    scores: Mapping[str, Score] = SCORES,
    rotation_scores: Mapping[str, Score] = CHEAP_SCORES,
) -> dict[str, dict[str, float]]:
    """What the scores give codes that are known to be good, worthless and entangled: to print beside a model's.

    "true_factors" are the factors themselves, from 0 up and scaled to variance 1, and dead latents for the rest.
    "noise" is independent of the factors, N(0, I). "rotations" is the median over random rotations of the scaled
    factors into all latents: no latent stands for a factor, yet some scores come close to 1.

    Args:
      factors: [N, F] integers, F of 2 or more.
      latent_dim: D, at least F: the model's.
      seed: of the codes and of the scores.
      rotations: how many.
      scores: of the true factors and of noise, by name, as for `disentanglement_scores`.
      rotation_scores: of each rotation: all but DCI, of which 20 would take an hour on dSprites.

    Returns:
      The scores by the name of the codes, then by that of the score.

    Raises:
      TypeError: the factors are not integers, or an argument is masked.
      ValueError: they are not [N, F], a factor has one value only, or `latent_dim` or `rotations` is too small.

    References:
      Locatello et al., A Sober Look at the Unsupervised Learning of Disentangled Representations and their
      Evaluation, 2020, for how far the scores agree.
    """
    factors = check_factors(factors)
    num, num_factors = factors.shape
    if latent_dim < num_factors:
        raise ValueError(f"latent_dim must be at least the number of factors, {num_factors}, got {latent_dim}")
    at_least(1, rotations=rotations)
    rng = np.random.default_rng(seed)
    scaled = (factors - factors.min(axis=0)) / factors.std(axis=0)
    padded = np.pad(scaled, ((0, 0), (0, latent_dim - num_factors)))
    noise = rng.normal(size=(num, latent_dim))
    rotated = []
    for _ in range(rotations):
        orthonormal, _ = np.linalg.qr(rng.normal(size=(latent_dim, num_factors)))
        codes = scaled @ orthonormal.T
        rotated.append(disentanglement_scores(codes, factors, seed=seed, scores=rotation_scores))
    return {
        "true_factors": disentanglement_scores(padded, factors, seed=seed, scores=scores),
        "noise": disentanglement_scores(noise, factors, seed=seed, scores=scores),
        "rotations": {name: float(np.median([each[name] for each in rotated])) for name in rotated[0]},
    }
