"""Reference values to 50 digits, from the standard library: what float64 formulas lose in differences is kept."""

from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np

PI = Decimal("3.14159265358979323846264338327950288419716939937510582")
BERNOULLI_NUMBERS = "1/6 -1/30 1/42 -1/30 5/66 -691/2730 7/6 -3617/510 43867/798 -174611/330"
STIRLING = [Fraction(b) / (2 * k * (2 * k - 1)) for k, b in enumerate(BERNOULLI_NUMBERS.split(), start=1)]


def log_gamma(z):
    """log Γ(z), by Stirling's series above 40."""
    product = Decimal(1)
    while z < 40:
        product, z = product * z, z + 1
    series = sum(Decimal(c.numerator) / c.denominator / z ** (2 * k + 1) for k, c in enumerate(STIRLING))
    return (z - Decimal("0.5")) * z.ln() - z + (2 * PI).ln() / 2 + series - product.ln()


def elementwise(function):
    """A function of decimals, over arrays of floating numbers; float64."""

    def over(*arrays):
        with localcontext() as context:
            context.prec = 50
            rows = zip(*(np.ravel(a) for a in np.broadcast_arrays(*arrays)), strict=True)
            values = [float(function(*(Decimal(float(v)) for v in row))) for row in rows]
        return np.array(values).reshape(np.broadcast_shapes(*map(np.shape, arrays)))

    return over


@elementwise
def poisson(log_rate, x):
    return log_rate.exp() - x * log_rate + log_gamma(x + 1)


@elementwise
def negative_binomial(log_mean, log_dispersion, x):
    mean, r = log_mean.exp(), log_dispersion.exp()
    arrangements = log_gamma(x + r) - log_gamma(r) - log_gamma(x + 1)
    return (r + x) * (mean + r).ln() - r * log_dispersion - x * log_mean - arrangements


@elementwise
def student_t(distance, log_degrees):
    """Of unit scale, so far from the centre."""
    nu = log_degrees.exp()
    constant = log_gamma(nu / 2) - log_gamma((nu + 1) / 2) + (PI * nu).ln() / 2
    return constant + (nu + 1) / 2 * (1 + distance**2 / nu).ln()


@elementwise
def continuous_bernoulli(logits, x):
    return ((logits.exp() - 1) / logits).ln() - x * logits if logits else Decimal(0)


@elementwise
def continuous_bernoulli_mean(logits):
    return 1 / (1 - (-logits).exp()) - 1 / logits if logits else Decimal("0.5")
