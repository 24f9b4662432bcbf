"""A VAE of a table's rows, whose columns are of several kinds."""

from collections.abc import Sequence

from jaxvae.models.vae import VAE
from jaxvae.networks import MLPDecoder, MLPEncoder, TableEncoder, TableLikelihood
from jaxvae.types import Column


def table_vae(columns: Sequence[Column], latent_dim: int, hidden: Sequence[int] = (128, 128)) -> VAE:
    """A `VAE` of rows [B, C] with dense networks: real, counted and categorical columns, each with its likelihood.

    Rows like those of the table are draws of the likelihood, which `jaxvae.data.to_frame` turns back: `likelihood =
    model.apply(variables, num, key=key, method="sample")`, then `likelihood.sample(key=other_key)`. A mean, such as
    `run.sample` gives, lies between categories.

    Args:
      columns: what they hold, `dataset.domain.columns` of a set of `jaxvae.data.from_table`.
      latent_dim: D.
      hidden: widths of the encoder's dense layers; the decoder's are the same the other way round.

    Raises:
      ValueError: there are no columns, or a size is below 1.

    References:
      Nazábal et al., Handling Incomplete Heterogeneous Data Using VAEs, 2020.
    """
    columns = tuple(columns)
    if not columns:
        raise ValueError("a table has columns: pass dataset.domain.columns of a set that data.from_table has made")
    likelihood = TableLikelihood(columns)
    encoder = TableEncoder(columns, MLPEncoder(latent_dim, hidden))
    decoder = MLPDecoder((likelihood.num_parameters,), tuple(hidden)[::-1])
    return VAE(encoder, decoder, likelihood, latent_dim=latent_dim)
