"""What every contestant in JAX shares; needs neither flax nor jaxvae."""

from importlib.metadata import version

import jax

from benchmarks.contestants import serve

jax.config.update("jax_enable_compilation_cache", False)  # compilations are timed


def serve_jax(train, rows, packages=(), **counts):
    """`serve` from the default device; the counts get the compilations from here on."""
    counts["compilations"] = 0

    def count(event, duration, **_):
        counts["compilations"] += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(count)
    serve(
        train,
        rows,
        device=jax.devices()[0].device_kind,
        versions={name: version(name) for name in ("jax", "jaxlib", *packages)},
        counts=lambda: counts,
    )
