"""What the benchmarks count and how they measure; not how fast anything is."""

import gzip
import json
import os
import resource
import subprocess
from functools import partial

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxvae
from benchmarks import ablation, fit, limits, scaling, timing
from benchmarks.training import on_device
from experiments import vae
from jaxvae.convolution import conv, conv_transpose


def quiet():
    return 0.0


@pytest.fixture
def clock(monkeypatch):
    """Turns read this time, which only `sleep` moves: how busy the machine is does not matter."""

    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

        def sleep(self, seconds):
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def others(*seconds):
    """CPU seconds of other processes, read before and after each turn, during which they use so many."""
    total, readings = 0.0, []
    for used in seconds:
        readings += [total, total + used]
        total += used
    return partial(next, iter(readings))


def dense_flops(*layers, samples=1, decoder=()):
    """Forward and two products backward for each layer, but no gradient for the x that the first one reads."""
    (inputs, outputs), *_ = layers
    products = sum(m * n for m, n in layers) + samples * sum(m * n for m, n in decoder)
    return 6 * products - 2 * inputs * outputs


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("VAE", dense_flops((784, 400), (400, 40), decoder=((20, 400), (400, 784)))),
        *(
            (
                f"IWAE, {samples} samples",
                dense_flops(
                    *((784, 200), (200, 200), (200, 100)),
                    decoder=((50, 200), (200, 200), (200, 784)),
                    samples=samples,
                ),
            )
            for samples in (1, 5, 50)
        ),
    ],
)
def test_flops_of_dense_workloads_are_those_by_hand(name, expected):
    assert limits.flops_per_example(name) == expected
    published = {"VAE": 3.28e6, "IWAE, 1 samples": 2.23e6, "IWAE, 5 samples": 7.19e6, "IWAE, 50 samples": 63.0e6}
    assert expected == pytest.approx(published[name], rel=2e-3)


@pytest.mark.slow
def test_flops_of_convolutional_workloads_are_those_by_hand():
    beta_vae = 2 * (32**2 * 16 * 32 + 16**2 * 16 * 32 * 32 + 8**2 * 16 * 32 * 64 + 4**2 * 16 * 64 * 64)
    beta_vae += 1024 * 256 + 256 * 20 + 10 * 256 + 256 * 1024
    assert limits.flops_per_example("β-VAE") == 6 * beta_vae - 2 * 32**2 * 16 * 32
    residual = 2 * 8**2 * (9 * 128 * 32 + 32 * 128)
    first = 16**2 * 16 * 3 * 64
    encoder = first + 8**2 * (16 * 64 * 128 + 9 * 128 * 128 + 128 * 64) + residual
    decoder = 8**2 * (9 * 64 * 128 + 16 * 128 * 64) + residual + 16**2 * 16 * 64 * 3
    distances = 2 * 8**2 * 512 * 64
    assert limits.flops_per_example("VQ-VAE") == 6 * (encoder + decoder) - 2 * first + distances


def test_matmul_flops_looks_inside_loops_and_conditions():
    x = jnp.ones((3, 5, 5))
    once = 2 * 3 * 5 * 5 * 5
    square = jax.jit(lambda x: x @ x)
    assert limits.matmul_flops(square, x) == once
    assert limits.matmul_flops(lambda x: jax.lax.fori_loop(0, 7, lambda _, x: square(x), x), x) == 7 * once
    assert limits.matmul_flops(lambda x: jax.lax.cond(x.sum() > 0, square, lambda x: square(square(x)), x), x) == once
    assert limits.matmul_flops(jax.grad(lambda x: square(x).sum()), x) == 3 * once
    with pytest.raises(ValueError, match="while_loop"):
        limits.matmul_flops(lambda x: jax.lax.while_loop(lambda x: x.sum() > 0, square, x), x)


@pytest.mark.parametrize(("function", "positions"), [(conv, 4 * 4), (conv_transpose, 8 * 8)])
def test_matmul_flops_of_a_strided_convolution_and_its_gradients_meet_no_zeros_between(function, positions):
    x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((4, 4, 3, 5))
    once = 2 * 2 * positions * 4 * 4 * 3 * 5
    run = partial(function, strides=2)
    assert limits.matmul_flops(run, x, kernel) == once
    for argument in (0, 1):
        gradient = jax.grad(lambda x, kernel: jnp.square(run(x, kernel)).sum(), argument)
        assert limits.matmul_flops(gradient, x, kernel) == 2 * once


def test_fractions_are_of_the_peak_of_the_type():
    rows = {"ours": {"median": 1000.0}, "ours, 8 devices": {"median": 8000.0}}
    tables = {"VAE, random": {"rows": rows}, "VQ-VAE, random, bfloat16": {"rows": rows}, "Codebook": {"rows": rows}}
    shares = limits.fractions(tables, {"float32": 8.2e9, "bfloat16": 1e12})
    assert shares["VAE, random"] == pytest.approx({"ours": 0.4})
    assert shares["VQ-VAE, random, bfloat16"] == {"ours": limits.flops_per_example("VQ-VAE") / 1e9}
    assert len(shares) == 2


def test_turns_alternate_in_a_changing_order_and_a_first_one_does_not_count(clock):
    taken = []
    pauses = {"slow": iter([0.8, 0.2, 0.1, 0.3]), "fast": iter([0.1, 0.01, 0.01, 0.01])}

    def turn(name):
        taken.append(name)
        clock.sleep(next(pauses[name]))

    medians = timing.take_turns({name: partial(turn, name) for name in pauses}, 3, foreign=quiet)
    assert [sorted(taken[i : i + 2]) for i in (0, 2, 4, 6)] == [["fast", "slow"]] * 4
    assert len({tuple(taken[i : i + 2]) for i in (2, 4, 6)}) == 2
    assert medians == pytest.approx({"slow": 0.2, "fast": 0.01})  # the middle one of .1, .2, .3


def test_a_disturbed_turn_is_taken_again_and_the_rest_is_confessed(clock, capsys):
    cores = len(timing.own_cores())
    share = 0.1 * cores  # seconds of others that are half of a turn of 0.2 s
    count = 0

    def turn():
        nonlocal count
        count += 1
        clock.sleep(0.2)

    timing.take_turns({"a": turn}, 1, foreign=others(2 * share, share, 0.0))
    assert count == 1 + 3
    assert "disturbed" not in capsys.readouterr().out
    timing.take_turns({"a": turn}, 1, foreign=others(2 * share, share, *[2 * share] * 3))
    assert count == 4 + 1 + timing.ATTEMPTS
    said = " ".join(capsys.readouterr().out.split())
    assert "1 of 1 turns stayed disturbed: others used up to" in said
    best = (share - timing.RESOLUTION * cores) / (0.2 * cores)  # the second attempt, of five
    assert int(said.split("up to ")[1].split(" %")[0]) == pytest.approx(100 * best, abs=1)


def test_foreign_seconds_are_neither_ones_own_nor_ones_childrens(monkeypatch):
    busy = timing.busy_seconds(timing.own_cores())
    busy_so_far = timing.busy_seconds
    monkeypatch.setattr(timing, "busy_seconds", lambda cores: busy)  # others go on meanwhile

    def readings():
        own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        spent = sum(usage.ru_utime + usage.ru_stime for usage in own)
        return spent, busy - timing.foreign_seconds()

    before = readings()
    child = subprocess.Popen(["sh", "-c", "while :; do :; done"])
    while timing.spent_seconds(lambda pid, parent, session: pid == str(child.pid)) < 0.3:
        pass  # by now both have had their share of the cores, however busy these are
    alive = busy - timing.foreign_seconds()
    assert busy_so_far(timing.own_cores()) - busy > 0.2
    child.kill()
    child.wait()
    after = readings()
    spent, subtracted = (new - old for new, old in zip(after, before, strict=True))
    assert spent > 0.3
    assert subtracted == pytest.approx(spent, abs=0.1)
    assert alive - before[1] == pytest.approx(spent, abs=0.1)


def test_the_exponent_of_a_power_is_exact():
    assert scaling.exponent({size: 3 * size**1.5 for size in (10, 20, 40, 80)}) == pytest.approx(1.5, rel=1e-12)


def test_sizes_are_given_by_kind():
    assert scaling.of_a_kind("batch=128,1024") == ("batch", (128, 1024))
    with pytest.raises(ValueError, match="no kind 'beta' among batch, width"):
        scaling.of_a_kind("beta=1,2")


@pytest.mark.slow
def test_the_ablation_takes_away_no_more_than_it_says():
    count = 2 * 32
    source = on_device(np.random.default_rng(0).integers(0, 256, (count, 28, 28, 1), np.uint8))
    indices = source["index"].reshape(2, -1)
    variants = ablation.variants()
    reached = {}
    for name in ("the whole step", "NaN guard", "metrics", "a key for each example"):
        step, init, optimizer = variants[name]
        state = jaxvae.init_train_state(init, optimizer, key=jax.random.key(0))
        state, metrics = jaxvae.make_train_epoch(step)(state, source, indices)
        reached[name] = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.params)]), metrics
    whole, metrics = reached["the whole step"]
    np.testing.assert_allclose(reached["NaN guard"][0], whole, atol=1e-6)
    np.testing.assert_allclose(reached["metrics"][0], whole, atol=1e-6)
    for name, values in metrics.items():
        np.testing.assert_allclose(reached["NaN guard"][1][name], values, rtol=1e-5)
    assert reached["metrics"][1] == {}
    assert 1e-5 < np.abs(reached["a key for each example"][0] - whole).mean() < 2e-3  # two steps of 1e-3, other noise


def test_the_last_program_of_the_ablation_has_the_products_of_the_step():
    step, init, optimizer = list(ablation.variants().values())[-1]
    state = jax.eval_shape(partial(jaxvae.init_train_state, init, optimizer, key=jax.random.key(0)))
    expected = ablation.BATCH * limits.flops_per_example("VAE")
    assert limits.matmul_flops(lambda state: step(state, {})[0], state) == expected


@pytest.mark.slow
def test_a_profiled_run_leaves_a_trace_and_the_same_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(vae, "save_pictures", lambda *_: [])  # half of so small a run
    small = ("digits", "--smoke", "--network", "mlp", "--hidden", 16, "--latent-dim", 2, "--validation", 0)
    plain, _ = commands.result_of(vae.main, tmp_path / "plain", *small)
    profiled, said = commands.result_of(vae.main, tmp_path / "profiled", *small, "--profile")
    assert profiled["test"] == plain["test"]
    (trace,) = (tmp_path / "profiled" / "profile").rglob("perfetto_trace.json.gz")
    assert f"profile of 4 steps: open {trace} at" in said
    with gzip.open(trace) as file:
        names = {event.get("name", "") for event in json.load(file)["traceEvents"]}
    assert any(name.startswith("PjitFunction(epoch)") for name in names)
    assert not any("backend_compile" in name for name in names)  # the first program's business
    assert not (tmp_path / "plain" / "profile").exists()
    resumed, _ = commands.result_of(vae.main, tmp_path / "plain", *small, "--resume", "--profile")
    assert resumed["test"] == plain["test"]
    assert os.listdir(tmp_path / "plain").count("profile") == 0  # no step was left


@pytest.mark.slow
def test_fit_is_measured_with_and_without_an_evaluation(monkeypatch, tmp_path):
    file = tmp_path / "fit.json"
    monkeypatch.setattr(fit, "random_images", lambda count, make=fit.random_images: make(count // 100))
    monkeypatch.setattr(fit, "EPOCHS", 2)  # of which the second is followed by an evaluation
    monkeypatch.setattr(fit, "take_turns", partial(timing.take_turns, foreign=quiet))  # no turn is taken again
    monkeypatch.setattr(fit.console, "quiet", False)  # main sets it; this sets it back
    monkeypatch.setattr("sys.argv", ["fit", "--rounds", "1", "--json", str(file)])
    fit.main()
    assert set(json.loads(file.read_text())["results"]) == {"bare", "program", "fit", "fit, evaluating"}
