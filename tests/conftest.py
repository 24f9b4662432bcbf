"""Strict for every test: 4 CPU devices, no silent rank promotion; warnings are errors (pyproject.toml)."""

import ctypes
import gc
import math
import os
import shutil
import sys
import tempfile
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import pytest

# Programs that several tests, workers or subprocesses compile alike are compiled once; thrown away at the end. Small
# ones too: there are thousands, and reading one back takes a fifth of the time.
FIRST = "PYTEST_XDIST_WORKER" not in os.environ  # neither a worker nor started by a test in one
if FIRST:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxvae-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
if "JAX_NUM_CPU_DEVICES" not in os.environ:
    jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Where in Python an operation comes from need not be written into every program: an eighth of the suite's time.
jax.config.update("jax_include_full_tracebacks_in_locations", False)
jax.config.update("jax_traceback_in_locations_limit", 0)


def hashed_uniform(key, lower, upper, shape, dtype, out_sharding=None):
    """In place of `jax.random.truncated_normal`: of nearly the same variance, different for every key and element."""
    del lower, upper, out_sharding
    first, second = jax.random.key_data(key)[-2:]
    bits = (jnp.arange(math.prod(shape), dtype=jnp.uint32) + first) * jnp.uint32(2654435761) ^ second
    bits = (bits ^ bits >> 15) * jnp.uint32(2246822519)
    bits = (bits ^ bits >> 13) * jnp.uint32(3266489917)
    return (3 * (bits ^ bits >> 16).astype(dtype) / 2.0**32 - 1.5).reshape(shape)


# Compiling is most of the suite's time: no optimisations and, where XLA still has it, its older code generator, which
# needs a third of the time of the newer one. JAX_DISABLE_MOST_OPTIMIZATIONS=0 compiles as for users, and so do the
# processes that tests start.
# Every core has a worker, so none splits what it compiles among threads.
QUICK_COMPILATION = ""
if os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1":
    jax.config.update("jax_disable_most_optimizations", True)
    if jax.__version_info__ < (0, 11):  # later ones do not know the flag and would not start
        QUICK_COMPILATION = " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    # Networks start from a hash of the key: a third of what is compiled here is truncated normal noise for them.
    of_initializers = jax.nn.initializers.variance_scaling.__globals__
    of_initializers["random"] = SimpleNamespace(**{**vars(jax.random), "truncated_normal": hashed_uniform})
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + QUICK_COMPILATION


@pytest.fixture(scope="module")
def networks_start_as_for_users():
    """For tests that compare with what another process has trained, which knows nothing of the hash."""
    of_initializers = jax.nn.initializers.variance_scaling.__globals__
    hashed, of_initializers["random"] = of_initializers["random"], jax.random
    yield
    of_initializers["random"] = hashed


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def x64():
    """Float64 arithmetic, for references that must hold to rounding."""
    with jax.enable_x64(True):
        yield jnp.float64


def pytest_collection_finish():
    """What is there by now stays: no collection of garbage looks at it again, and tracing sets off many."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(autouse=True, scope="session")
def _processes_compile_as_for_users():
    jax.devices()  # XLA has read its flags by now
    os.environ["XLA_FLAGS"] = os.environ["XLA_FLAGS"].replace(QUICK_COMPILATION, "")


@pytest.fixture(autouse=True, scope="module")
def _forget_the_programs_of_a_module():
    """JAX keeps every program that it compiled; a worker would grow to gigabytes of them."""
    yield
    jax.clear_caches()
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # glibc would keep what was freed, module after module


@pytest.fixture(autouse=True)
def _count_traces_afresh():
    chex.clear_trace_counter()  # it counts by the function's name, across tests


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace):
    doctest_namespace.update(jax=jax, jnp=jnp)


def pytest_unconfigure():
    if FIRST:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
