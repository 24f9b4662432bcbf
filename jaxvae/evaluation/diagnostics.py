"""The three ways a VAE fails, as numbers: posterior collapse, holes in the prior, blur.

Functions of arrays on the host, NumPy's or JAX's, in float64. `active_units` counts the latents that have not
collapsed, `active_latents` names them; `kl_per_dimension` says how much each of them carries.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxvae._checks import at_least
from jaxvae._host import host_array, host_reals
from jaxvae.keys import noise
from jaxvae.losses import LOG_2PI
from jaxvae.types import PRNGKey

TABLE = 2_000_000  # entries of the tables [rows, N] that are held at once: sets the memory and nothing else
REACH = 8  # standard deviations to each side of a Gaussian: what lies beyond is below rounding
NARROWEST_JOINT = 1e-4  # of a latent's largest code: posteriors below are widened to this standard deviation
NARROWEST_MARGINAL = 1 / 2000  # the same, of a latent's range
LAST = 2**32 - 1  # of what a key can be folded with


class AggregatePosterior(NamedTuple):
    """How far the codes of all data together lie from the prior: rate = mutual_information + kl, in nats.

    Attributes:
      kl: KL(q(z) || N(0, I)), the holes: 0 where all codes together fill the prior. At least rate - log N.
      mutual_information: I(x; z) of the N examples and their codes. At most log N.
      standard_error: the Monte Carlo error of both, as of independent draws: the draws are stratified, so the true
        one is rather smaller.
      marginal_kl: [D], KL(q(z_j) || N(0, 1)): the mismatch that a histogram of each latent shows. No Monte Carlo.
    """

    kl: float
    mutual_information: float
    standard_error: float
    marginal_kl: np.ndarray


def active_latents(codes: ArrayLike, *, threshold: float = 0.01) -> np.ndarray:
    r"""Which latents the posterior means use: [D] bool, what the whole library calls active.

    .. math:: \mathrm{Var}_x\left(E_{q(z_j | x)}[z_j]\right) > \text{threshold}

    Args:
      codes: [N, D], the posterior means of N examples, 2 or more.
      threshold: of the variance over the examples, which divides by N.

    Raises:
      TypeError: the codes are masked or no real numbers.
      ValueError: they are not [N, D] with N of 2 or more, a code is not finite, or the threshold is negative or NaN.

    References:
      Burda, Grosse and Salakhutdinov, Importance Weighted Autoencoders, 2016, section 2.

    >>> active_latents([[0.0, 1.0, 3.0], [0.1, 1.0, 5.0]])
    array([False, False,  True])
    """
    codes = host_reals(codes, "codes")
    if codes.ndim != 2 or len(codes) < 2 or not codes.size:
        raise ValueError(f"codes must be [N, D] with N of 2 or more, got {codes.shape}")
    if not threshold >= 0:
        raise ValueError(f"threshold must be a variance, zero or more, got {threshold}")
    _check_finite(codes=codes)
    return codes.var(axis=0) > threshold


def active_units(codes: ArrayLike, *, threshold: float = 0.01) -> int:
    """How many latents are active: the sum of `active_latents`, whose arguments and errors it shares."""
    return int(active_latents(codes, threshold=threshold).sum())


def kl_per_dimension(mean: ArrayLike, log_var: ArrayLike) -> np.ndarray:
    r"""KL(q(z_j|x) || N(0, 1)) of every latent, the mean over the data; the sum over j is the rate.

    .. math:: \frac{1}{2N} \sum_i \left(\sigma_{ij}^2 - 1 - \log \sigma_{ij}^2 + \mu_{ij}^2\right)

    A collapsed latent has 0: its posterior is the prior, whatever the example.

    Args:
      mean: [N, D], of the posteriors.
      log_var: [N, D], log σ².

    Returns:
      [D] nats.

    Raises:
      TypeError: an argument is masked or no real numbers.
      ValueError: the shapes are not [N, D], a value is not finite, or the KL is too large for float64, as it is from a
        log σ² of 709 on.

    References:
      Bowman et al., Generating Sentences from a Continuous Space, 2016; Lucas, Tucker, Grosse and Norouzi, Don't Blame
      the ELBO! A Linear VAE Perspective on Posterior Collapse, 2019.

    >>> kl_per_dimension([[1.0, 0.0], [-1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]])
    array([0.5, 0. ])
    """
    mean, log_var = _check_posteriors(mean, log_var)
    with np.errstate(over="ignore"):
        kl = 0.5 * (np.expm1(log_var) - log_var + np.square(mean)).mean(axis=0)
    if not np.isfinite(kl).all():
        j = int(np.isfinite(kl).argmin())
        largest = f"log_var reaches {log_var[:, j].max():g} and mean {np.abs(mean[:, j]).max():g}"
        raise ValueError(f"the KL of latent z{j + 1} is too large for float64: its {largest}")
    return kl


def aggregate_posterior(
    mean: ArrayLike, log_var: ArrayLike, *, key: PRNGKey, num_samples: int = 10_000
) -> AggregatePosterior:
    r"""Split the rate into what the codes say about x and how far all codes together miss the prior N(0, I).

    .. math:: \frac1N \sum_i \mathrm{KL}(q(z|x_i) \,\|\, p(z)) = I(x; z) + \mathrm{KL}(q(z) \,\|\, p(z)),
              \quad q(z) = \frac1N \sum_i q(z|x_i)

    I(x; z) is the mean of log q(z|x_i) - log q(z) over draws from q, spread evenly over the examples: each gives ⌊M/N⌋
    of them or one more, and the key decides which give more. The rate is exact, and `kl` is what remains. Each
    marginal is integrated on a grid. Extremely narrow posteriors are widened, to 1e-4 of the largest code of their
    latent for I(x; z) and to 1/2000 of its range for the marginals.

    Both terms belong to the N examples, not to what these were drawn from: I(x; z) cannot exceed log N, so `kl` is at
    least rate - log N, however well the codes of endless data would fill the prior. Of 10,000 examples log N is 9.2
    nats: where the rate is larger, compare only figures of equal N. The marginals need no more examples than a smooth
    histogram.

    Args:
      mean: [N, D], of the posteriors.
      log_var: [N, D], log σ².
      key: of the draws.
      num_samples: M draws from q(z), each compared with all N posteriors: time grows as M · N · D.

    Raises:
      TypeError: the key is not typed, or an argument is masked or no real numbers.
      ValueError: as for `kl_per_dimension`, or `num_samples` is below 2.

    References:
      Hoffman and Johnson, ELBO Surgery: Yet Another Way to Carve Up the Variational Evidence Lower Bound, 2016;
      Makhzani et al., Adversarial Autoencoders, 2015, for the aggregated posterior.
    """
    mean, log_var = _check_posteriors(mean, log_var)
    at_least(2, num_samples=num_samples)
    rate = float(kl_per_dimension(mean, log_var).sum())
    std = np.exp(0.5 * log_var)
    mutual_information, standard_error = _mutual_information(mean, std, key, int(num_samples))
    return AggregatePosterior(
        kl=rate - mutual_information,
        mutual_information=mutual_information,
        standard_error=standard_error,
        marginal_kl=np.array([_marginal_kl(m, s) for m, s in zip(mean.T, std.T, strict=True)]),
    )


def sharpness_ratio(images: ArrayLike, reconstructions: ArrayLike) -> float:
    r"""Sharpness of reconstructions, or of samples, as a fraction of that of images.

    .. math:: \frac{\overline{\mathrm{Var}(\Delta \hat x)}}{\overline{\mathrm{Var}(\Delta x)}}, \quad
              \Delta = \begin{pmatrix} 0 & 1 & 0 \\ 1 & -4 & 1 \\ 0 & 1 & 0 \end{pmatrix}

    The variance is over the inner pixels of one channel, its mean over channels and images. 1 is as sharp as the
    images, below 1 blurred, above 1 noisy.

    Args:
      images: [N, H, W, C] floating.
      reconstructions: [M, H, W, C] floating, on the same scale; M may differ from N.

    Raises:
      TypeError: an argument is not floating, or masked.
      ValueError: the shapes are wrong or do not match, a value is not finite, an image is smaller than 4×4, or no image
        has an edge.

    References:
      Pech-Pacheco et al., Diatom Autofocusing in Brightfield Microscopy, 2000, for the measure; Tolstikhin et al.,
      Wasserstein Auto-Encoders, 2018, for the blur of VAEs.
    """
    images, reconstructions = _check_pictures(images, "images"), _check_pictures(reconstructions, "reconstructions")
    if images.shape[1:] != reconstructions.shape[1:]:
        shapes = f"{images.shape} and {reconstructions.shape}"
        raise ValueError(f"images and reconstructions must have the same H, W and C, got {shapes}")
    sharpness = _laplacian_variance(images)
    if sharpness == 0:
        raise ValueError("images must have edges: the Laplacian of each of them is constant")
    return _laplacian_variance(reconstructions) / sharpness


def _check_posteriors(mean: ArrayLike, log_var: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Raise `ValueError` unless both are finite and [N, D]; return them as float64."""
    mean, log_var = host_reals(mean, "mean"), host_reals(log_var, "log_var")
    if mean.ndim != 2 or not mean.size or log_var.shape != mean.shape:
        raise ValueError(f"mean and log_var must both be [N, D], got {mean.shape} and {log_var.shape}")
    _check_finite(mean=mean, log_var=log_var)
    return mean, log_var


def _check_pictures(images: ArrayLike, name: str) -> np.ndarray:
    """Raise unless they are floating, finite, and of a size that has inner pixels; return them as they are."""
    pixels = host_array(images, name)
    if not jnp.issubdtype(pixels.dtype, jnp.floating):
        raise TypeError(f"{name} must be floating, got {pixels.dtype}; bring both to one scale first")
    if pixels.ndim != 4 or not pixels.size or min(pixels.shape[1:3]) < 4:
        raise ValueError(f"{name} must be [N, H, W, C] with H and W of 4 or more, got {pixels.shape}")
    _check_finite(**{name: pixels})
    return pixels


def _check_finite(**arrays: np.ndarray) -> None:
    """Raise `ValueError` unless all of the arrays [N, ...] are finite."""
    for name, values in arrays.items():
        finite = np.isfinite(values).reshape(len(values), -1)
        if not finite.all():
            row = int(finite.all(axis=1).argmin())
            raise ValueError(f"{name} must be finite: example {row} has {values[row].ravel()[~finite[row]][0]}")


def _mutual_information(mean: np.ndarray, std: np.ndarray, key: PRNGKey, num_samples: int) -> tuple[float, float]:
    """I(x; z) and its standard error, in nats, from draws that are spread evenly over the N examples."""
    # The square in the exponent is multiplied out below, which costs too many digits where std is tiny.
    std = np.maximum(std, NARROWEST_JOINT * np.hypot(mean, std).max(axis=0))
    epsilon = np.asarray(noise(jax.random.normal, key, (num_samples, mean.shape[1])), np.float64)
    # In the order of a permutation, since every k-th example may be of one kind. Its key is none of the bits above.
    order = np.asarray(jax.random.permutation(jax.random.fold_in(key, LAST), len(mean)))
    example = np.sort(order[np.arange(num_samples, dtype=np.int64) * len(mean) // num_samples])
    latent = mean[example] + std[example] * epsilon
    conditional = -0.5 * np.square(epsilon).sum(axis=1) - np.log(std[example]).sum(axis=1)
    information = conditional - _log_mixture(latent, mean, std)
    return float(information.mean()), float(information.std(ddof=1) / np.sqrt(num_samples))


def _log_mixture(latent: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """log q(z) of latents [M, D] up to the constant D/2 log 2π, [M] nats."""
    precision = 1 / np.square(std)
    factors = np.concatenate([mean * precision, -0.5 * precision], axis=1).T  # one matrix product serves all pairs
    offset = -0.5 * (np.square(mean) * precision).sum(axis=1) - np.log(std).sum(axis=1)
    log_mixture = np.empty(len(latent))
    rows = max(1, TABLE // len(mean))
    for start in range(0, len(latent), rows):
        z = latent[start : start + rows]
        log_prob = np.concatenate([z, np.square(z)], axis=1) @ factors
        log_prob += offset
        largest = log_prob.max(axis=1)
        log_mixture[start : start + rows] = largest + np.log(np.exp(log_prob - largest[:, None]).mean(axis=1))
    return log_mixture


def _marginal_kl(mean: np.ndarray, std: np.ndarray) -> float:
    """KL of the mixture of N(mean, std²), [N] each, from N(0, 1): the trapezoidal rule, to about 1e-6 nats."""
    low, high = (mean - REACH * std).min(), (mean + REACH * std).max()
    std = np.maximum(std, NARROWEST_MARGINAL * (high - low))
    low, high = (mean - REACH * std).min(), (mean + REACH * std).max()
    step = 0.5 * std.min()
    nodes = np.arange(low, high, step)
    density = np.empty(len(nodes))
    rows = max(1, TABLE // len(mean))
    for start in range(0, len(nodes), rows):
        part = nodes[start : start + rows]
        near = (mean - REACH * std < part[-1]) & (mean + REACH * std > part[0])
        scaled = (part[:, None] - mean[near]) / std[near]
        density[start : start + rows] = np.exp(-0.5 * np.square(scaled)) @ (1 / std[near])
    density /= np.sqrt(2 * np.pi) * len(mean)
    log_density = np.log(np.maximum(density, np.finfo(np.float64).tiny))  # 0 log 0 = 0 between posteriors
    return float(step * (density * (log_density + 0.5 * (LOG_2PI + np.square(nodes)))).sum())


def _laplacian_variance(images: np.ndarray) -> float:
    """The variance of the Laplacian over the inner pixels of [N, H, W, C], its mean over images and channels."""
    variances = []
    for image in images:
        x = image.astype(np.float64)
        centre = 2 * x[1:-1, 1:-1]
        rows = x[:-2, 1:-1] - centre + x[2:, 1:-1]
        columns = x[1:-1, :-2] - centre + x[1:-1, 2:]
        variances.append((rows + columns).var(axis=(0, 1)).mean())
    return float(np.mean(variances))
