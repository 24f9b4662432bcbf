"""Training: one pure step, the programs it is compiled into, and the loop on the host (`jaxvae.fit`)."""

from jaxvae.training.adversarial import adversarial_optimizer
from jaxvae.training.epoch import make_evaluate, make_train_epoch
from jaxvae.training.fit import Earlier, FitResult, NonFiniteError, Progress
from jaxvae.training.mesh import data_mesh, replicated, split
from jaxvae.training.optimizers import evaluation_params, with_ema
from jaxvae.training.parallel import jit_train_step, pmap_train_step, shard_batch, shard_map_train_step
from jaxvae.training.state import TrainState, init_train_state
from jaxvae.training.step import make_eval_step, make_train_step
from jaxvae.training.sweep import SweepState, init_sweep_state, make_sweep_epoch, map_members

__all__ = [
    "Earlier",
    "FitResult",
    "NonFiniteError",
    "Progress",
    "SweepState",
    "TrainState",
    "adversarial_optimizer",
    "data_mesh",
    "evaluation_params",
    "init_sweep_state",
    "init_train_state",
    "jit_train_step",
    "make_eval_step",
    "make_evaluate",
    "make_sweep_epoch",
    "make_train_epoch",
    "make_train_step",
    "map_members",
    "pmap_train_step",
    "replicated",
    "shard_batch",
    "shard_map_train_step",
    "split",
    "with_ema",
]
