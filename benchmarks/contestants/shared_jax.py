"""What every contestant in JAX shares; needs neither flax nor jaxvae."""

from importlib.metadata import version

import jax

from benchmarks.contestants import serve

jax.config.update("jax_enable_compilation_cache", False)  # compilations are timed


def stepwise(step, state, inputs_of):
    """The `train` of `serve` by a jitted `step(state, *inputs) -> (state, ..., loss)`; losses are fetched at the end.

    `inputs_of` gives a step's inputs, a tuple, of its indices [B].
    """

    def train(indices):
        nonlocal state
        losses = []
        for each in indices:
            state, *_, loss = step(state, *inputs_of(each))
            losses.append(loss)
        return [float(loss) for loss in jax.device_get(losses)]

    return train


def serve_jax(train, indices, packages=(), **counts):
    """`serve` from the default device; the counts get the compilations from here on."""
    counts["compilations"] = 0

    def count(event, duration, **_):
        counts["compilations"] += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(count)
    serve(
        train,
        indices,
        device=jax.devices()[0].device_kind,
        versions={name: version(name) for name in ("jax", "jaxlib", *packages)},
        counts=lambda: counts,
    )
