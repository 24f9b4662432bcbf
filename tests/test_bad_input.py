"""Bad input and the error it deserves: what it names, what it was given, and the way out.

What the tests of a module say already is not repeated here.
"""

import dataclasses
import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import run
from variants import SHAPE, VARIANTS, batch

import jaxvae
from experiments import beta_vae, cvae, modes, pixelcnn, rate_distortion, semi_supervised, vae, vae_gan, vq_vae
from jaxvae import codebook, data, evaluation, objectives
from jaxvae._host import host_integers
from jaxvae.distributions import Bernoulli, Categorical
from jaxvae.networks import logistic_image

KEY, B, NAN = jax.random.key(0), 6, float("nan")
MODEL = VARIANTS["bernoulli"].model
VQ_VAE = VARIANTS["vq-vae"].model
STATE = codebook.init_codebook(4, 3, key=KEY)
CODES = jnp.zeros((8, 4))
MAPS = jaxvae.PixelCNN(3, (2, 2), channels=4, layers=1)
CLASSES = jaxvae.PixelCNN(3, (2, 2), channels=4, layers=1, num_classes=3)
NOTHING = jnp.zeros((2, 2, 2), jnp.int32)
DATASET = data.from_arrays("six", np.full((B, *SHAPE), 0.5))


@cache
def init(name):
    return VARIANTS[name].init(key=KEY)


def loss(name, objective, change=None, **options):
    """The objective's value for a batch that differs from a good one by `change`; None takes a field away."""
    fields = {**batch(B), "condition": jnp.zeros(B, jnp.int32), **(change or {})}
    fields = {field: values for field, values in fields.items() if values is not None}
    if name != "conditional":
        fields.pop("condition")
    of = partial(objective, VARIANTS[name].model, **({"key": KEY, "step": 0} | options))
    return jax.eval_shape(of, *shapes(name), fields)  # these errors come while a program is traced


vae_loss = partial(loss, "bernoulli", jaxvae.vae_loss)
tc_vae_loss = partial(loss, "total correlation", jaxvae.tc_vae_loss, num_examples=100)
vq_vae_loss = partial(loss, "vq-vae", jaxvae.vq_vae_loss)
cvae_loss = partial(loss, "conditional", jaxvae.cvae_loss)


@cache
def shapes(name):
    return jax.eval_shape(lambda: VARIANTS[name].init(key=KEY))


@cache
def params_of(model):
    return jax.jit(model.init)(KEY, NOTHING[:1], None if model.num_classes is None else jnp.zeros(1, jnp.int32))


def sample(model=MAPS, num=2, **options):
    return model.sample(params_of(model), num, **({"key": KEY} | options))


def complete(values=NOTHING, known=NOTHING > 0, **options):
    return MAPS.complete(params_of(MAPS), values, known, **({"key": KEY} | options))


def nll_of_maps(label):
    fields = {"code": NOTHING, "label": jnp.array(label)}
    return jaxvae.pixel_cnn_loss(CLASSES, params_of(CLASSES), (), fields, key=KEY, step=0)


def made(module, shape=(1, *SHAPE)):
    return module.init(KEY, jnp.zeros(shape))


LIBRARY = [
    # x
    (
        lambda: vae_loss({"x": jnp.zeros((B, *SHAPE), bool)}),
        TypeError,
        "x must be floating, got bool",
    ),
    (lambda: vae_loss({"x": jnp.zeros((0, *SHAPE)), "index": jnp.zeros(0, int)}), ValueError, "got (0, 8, 8, 1)"),
    (
        lambda: vq_vae_loss({"x": jnp.zeros(SHAPE), "index": jnp.arange(8)}),
        ValueError,
        "x (8, 8, 1) is not (batch",
    ),
    (
        lambda: vq_vae_loss({"x": jnp.zeros((B, 8, 8, 3))}),
        ValueError,
        "x (6, 8, 8, 3) is not (batch, ...) as the model's",
    ),
    (
        lambda: vq_vae_loss({"x": jnp.zeros((B, 7, 7, 1))}),
        ValueError,
        "x is (6, 7, 7, 1), and the decoder returns (6, 8, 8, 1): where the encoder rounds a size up, tell the decoder "
        "the true one, ResidualDecoder(..., spatial=(7, 7))",
    ),
    (
        lambda: cvae_loss({"x": jnp.zeros((B, 7, 7, 1))}),
        ValueError,
        "expected x (batch, 8, 8, 1), got (6, 7, 7, 1)",
    ),
    *(
        (
            lambda name=name, more=more: VARIANTS[name].model.apply(
                init(name)[0], jnp.zeros((B, *SHAPE), jnp.uint8), *more, method="encode"
            ),
            TypeError,
            "x must be floating, got uint8; scale it first (jaxvae.data.make_prepare)",
        )
        for name, more in (
            *(("bernoulli", ()), ("autoencoder", ()), ("vq-vae", ())),
            ("conditional", (jnp.zeros(B, jnp.int32),)),
        )
    ),
    # what else a batch holds
    (lambda: vae_loss({"x": None}), TypeError, "batch must be a dictionary that has 'x' and 'index', got ['index'"),
    (
        lambda: jaxvae.vae_loss(VARIANTS["bernoulli"].model, {}, (), NOTHING, key=KEY, step=0),
        TypeError,
        "batch must be a dictionary that has 'x' and 'index', got ArrayImpl",
    ),
    (
        lambda: vae_loss({"index": None}),
        ValueError,
        "batch['index'] must be integers (6,), one for each of x (6, 8",
    ),
    (lambda: vae_loss({"index": jnp.arange(5)}), ValueError, "batch['index'] must be integers (6,)"),
    (lambda: vae_loss({"index": jnp.arange(6.0)}), ValueError, "got float32[6]"),
    (lambda: cvae_loss({"condition": jnp.zeros(5, int)}), ValueError, "expected 6 conditions (6, ...), got (5,)"),
    # keys
    (lambda: vae_loss(key=0), TypeError, "key must come from jax.random.key, got 0"),
    (lambda: vq_vae_loss(key=0), TypeError, "key must come from jax.random.key, got 0"),
    (
        lambda: MODEL.apply(init("bernoulli")[0], 2, key=0, method="sample"),
        TypeError,
        "key must come from jax.random.key",
    ),
    (
        lambda: jaxvae.init_train_state(VARIANTS["bernoulli"].init, None, key=0),
        TypeError,
        "key must come from jax.random",
    ),
    (lambda: sample(key=0), TypeError, "key must come from jax.random.key, got 0"),
    (lambda: codebook.init_codebook(4, 3, key=jax.random.PRNGKey(0)), TypeError, "jax.random.key, got uint32[2]"),
    # weights and numbers of samples
    *(
        (partial(vae_loss, beta=beta), ValueError, "beta must be a finite number, zero or more, got -1.0")
        for beta in (np.float32(-1), jnp.float32(-1), lambda step: -1.0)
    ),
    (lambda: vae_loss(num_samples=0), ValueError, "num_samples must be at least 1, got 0"),
    (lambda: cvae_loss(beta=NAN), ValueError, "beta must be a finite number, zero or more, got nan"),
    (lambda: cvae_loss(num_samples=0), ValueError, "num_samples must be at least 1, got 0"),
    *(
        (
            lambda name=name, value=value: tc_vae_loss(**{name: value}),
            ValueError,
            f"{name} must be a finite number, zero or more, got {value}",
        )
        for name, value in (("beta", -1.0), ("information_weight", NAN), ("dimension_weight", -1.0))
    ),
    (
        lambda: objectives.cyclical_schedule(-1.0, period=2, num_cycles=1),
        ValueError,
        "peak must be a finite number, zero or",
    ),
    (
        lambda: MODEL.apply(init("bernoulli")[0], 0, key=KEY, method="sample"),
        ValueError,
        "num must be at least 1, got 0",
    ),
    (
        lambda: VARIANTS["hierarchical"].model.apply(init("hierarchical")[0], -1, key=KEY, method="sample"),
        ValueError,
        "num must be at least 1, got -1",
    ),
    # codebooks
    (lambda: jaxvae.EMACodebook(8, decay=NAN), ValueError, "decay must lie between 0 and 1, got nan"),
    (
        lambda: jaxvae.EMACodebook(8, restart_threshold=1.0),
        ValueError,
        "restart_threshold must lie in [0, 1), a fraction of the uniform share",
    ),
    (lambda: vq_vae_loss(variance=-1.0), ValueError, "variance must be positive, got -1.0"),
    (
        lambda: codebook.ema_update(STATE, jnp.ones((2, 3)), jnp.zeros(2, int), decay=np.float32(2)),
        ValueError,
        "got 2.0",
    ),
    (lambda: codebook.code_costs(STATE, -1.0), ValueError, "weight must be a finite number, zero or more, got -1.0"),
    (
        lambda: codebook.nearest(CODES, CODES, jnp.zeros(1)),
        ValueError,
        "cost must be (8,), one for each code, got (1,)",
    ),
    (
        lambda: codebook.perplexity(jnp.ones((2, 4))),
        ValueError,
        "usage must be [K], got (2, 4); take groups by jax.vmap",
    ),
    (lambda: codebook.seed_codebook(CODES[:0], 4, key=KEY), ValueError, "got (0, 4); N must be at least 1"),
    (
        lambda: VQ_VAE.codes({}, ()),
        ValueError,
        "EMACodebook has no codes without its state",
    ),
    *(
        (
            lambda index=index: VQ_VAE.decode_indices(*init("vq-vae"), jnp.full((1, 4, 4), index)),
            ValueError,
            f"{index} at index 0, 0, 0 is outside 0 .. 7",
        )
        for index in (8, -1)
    ),
    # maps
    (lambda: sample(temperature=-1.0), ValueError, "temperature must be a finite number, zero or more, got -1.0"),
    (lambda: sample(temperature=NAN), ValueError, "temperature must be a finite number, zero or more, got nan"),
    (lambda: sample(num=0), ValueError, "num must be at least 1, got 0"),
    (lambda: sample(CLASSES, label=jnp.array([0, 7])), ValueError, "label 7 at index 1 is outside 0 .. 2"),
    (lambda: sample(CLASSES), ValueError, "the model has 3 classes: pass label [B]"),
    (lambda: nll_of_maps([0, -1]), ValueError, "label -1 at index 1 is outside 0 .. 2"),
    (lambda: complete(NOTHING.astype(float)), TypeError, "values must be integers, got float32"),
    (lambda: complete(NOTHING[..., :1]), ValueError, "expected values (batch, 2, 2), at least one, got (2, 2, 1)"),
    (lambda: complete(known=NOTHING[:1] > 0), ValueError, "known must be (2, 2, 2), as the values are, got (1, 2, 2)"),
    (lambda: complete(NOTHING + 3, NOTHING == 0), ValueError, "value 3 at index 0, 0, 0 is outside 0 .. 2"),
    *(
        (lambda change=change: jaxvae.PixelCNN(**{"num_values": 3, "shape": (2, 2)} | change), ValueError, message)
        for change, message in (
            ({"num_values": 1}, "num_values must be at least 2, got 1"),
            ({"channels": 0}, "channels must be at least 1, got 0"),
            ({"layers": 0}, "layers must be at least 1, got 0"),
        )
    ),
    # networks
    (lambda: made(jaxvae.MLPEncoder(3, (8, 0))), ValueError, "hidden must be at least 1, got (8, 0)"),
    (lambda: made(jaxvae.MLPDecoder((8, 0), (8,))), ValueError, "output_shape must be at least 1, got (8, 0)"),
    (lambda: made(jaxvae.ConvEncoder(3, (-1,))), ValueError, "channels must be at least 1, got (-1,)"),
    (lambda: made(jaxvae.ConvDecoder(SHAPE, (4,), hidden=0), (1, 3)), ValueError, "hidden must be at least 1, got 0"),
    (lambda: made(jaxvae.ResidualEncoder(0, (4,))), ValueError, "features must be at least 1, got 0"),
    (
        lambda: made(jaxvae.ResidualDecoder(1, (4,), residual=0), (1, 2, 2, 3)),
        ValueError,
        "residual must be at least 1",
    ),
    (lambda: made(jaxvae.models.linear_vae(SHAPE, 0)), ValueError, "latent_dim must be at least 1, got 0"),
    (
        lambda: jaxvae.LabelEmbedding(3, 0).init(KEY, jnp.zeros(1, int)),
        ValueError,
        "features must be at least 1, got 0",
    ),
    (
        lambda: jaxvae.LabelEmbedding(0).init(KEY, jnp.zeros(1, int)),
        ValueError,
        "num_classes must be at least 1, got 0",
    ),
    # the host's
    (lambda: jaxvae.fit(None, None, None, evaluate_every=0), ValueError, "evaluate_every must be at least 1, got 0"),
    (lambda: jaxvae.fit(None, None, None, patience=-1), ValueError, "patience must be at least 1, got -1"),
    (lambda: data.evaluation_feed(DATASET, 0), ValueError, "batch_size must be at least 1, got 0"),
    (lambda: data.evaluation_feed(DATASET, 2.5), TypeError, "batch_size must be an integer, got 2.5"),
    (lambda: data.evaluation_feed(DATASET.take(slice(0)), 5), ValueError, "'six' has no examples"),
    (lambda: data.make_prepare(1), ValueError, "levels must be at least 2, got 1"),
    (lambda: data.make_prepare(17.0), TypeError, "levels must be an integer, got 17.0"),
    (lambda: data.Order(6.0, 2, 1, 0), TypeError, "num_examples must be an integer, got 6.0"),
    (lambda: data.Order(0, 1, 1, 0), ValueError, "num_examples must be at least 1, got 0"),
    (lambda: data.Order(B, True, 1, 0), TypeError, "batch_size must be an integer, got True"),
    (lambda: data.Order(B, 2, 1, 0).indices(-1, 2), ValueError, "start must be at least 0, got -1"),
    (lambda: data.Order(B, 2.5, 1, 0), TypeError, "batch_size must be an integer, got 2.5"),
    (lambda: data.Order(B, 2, 1.5, 0), TypeError, "epochs must be an integer, got 1.5"),
    *(
        (
            lambda feed=feed, chunk=chunk: feed(DATASET, data.Order(B, 2, 1, 0), chunk=chunk),
            error,
            f"chunk must be {said}",
        )
        for feed in (data.Resident, data.Streamed)
        for chunk, error, said in (
            (0, ValueError, "at least 1, got 0"),
            (-1, ValueError, "at least 1, got -1"),
            (2.5, TypeError, "an integer, got 2.5"),
        )
    ),
    (lambda: data.split_validation(DATASET, 2, seed=-1), ValueError, "seed must lie in 0 .. 2**32 - 1, got -1"),
    (
        lambda: evaluation.active_units([[0.0, 1.0], [NAN, 1.0]]),
        ValueError,
        "codes must be finite: example 1 has nan",
    ),
    (
        lambda: jaxvae.log_likelihood(None, {}, (), {}, [], key=KEY, num_samples=1, samples_per_pass=0),
        ValueError,
        "samples_per_pass must be at least 1, got 0",
    ),
    # records
    (
        lambda: Bernoulli(jnp.zeros((4, 3))).log_prob(jnp.zeros((5, 3))),
        ValueError,
        "targets must broadcast to logits (4, 3)",
    ),
    (
        lambda: Bernoulli(jnp.zeros((4, 3))).log_prob(jnp.zeros((4, 3), np.uint8)),
        TypeError,
        "targets must be floating, got uint8",
    ),
    (
        lambda: Categorical(jnp.zeros((4, 3))).log_prob(jnp.zeros(4, bool)),
        TypeError,
        "targets must be integers, got bool",
    ),
    (lambda: Categorical(jnp.zeros((4, 3))).log_prob(jnp.zeros((4, 1), int)), ValueError, "got (4, 3) and (4, 1)"),
    (
        lambda: logistic_image(CODES, CODES).log_prob(CODES.astype(np.uint8)),
        TypeError,
        "targets must be floating",
    ),
]


@pytest.mark.parametrize(("call", "error", "said"), LIBRARY, ids=[f"{said[:40]}" for *_, said in LIBRARY])
def test_the_library_names_what_is_wrong(call, error, said):
    with pytest.raises(error, match=re.escape(said)):
        call()


def test_under_jit_what_cannot_be_an_error_is_not_a_number():
    log_prob = jax.jit(lambda label: CLASSES.apply(params_of(CLASSES), NOTHING, label, method="log_prob"))
    np.testing.assert_array_equal(np.isnan(log_prob(jnp.array([0, -1]))), [False, True])
    indices = jnp.zeros((3, 4, 4), jnp.int32).at[1, 0, 0].set(8).at[2, 3, 3].set(-1)
    mean = jax.jit(VQ_VAE.decode_indices)(*init("vq-vae"), indices).mean
    np.testing.assert_array_equal(np.isnan(mean).any(axis=(1, 2, 3)), [False, True, True])
    log_prob = Categorical(jnp.zeros((4, 3))).log_prob(jnp.array([0.5, NAN, 2.0, -1.0]))
    np.testing.assert_array_equal(np.isnan(log_prob), [False, True, True, True])


COUNTS = "must be at least 1, got 0"
FINITE = "must be a finite number, zero or more, got"
POSITIVE = "must be a positive number, got"
# Checked against the data, by the parser, by the part that takes them, or in the experiment's own tests.
ELSEWHERE = {"validation", "stochastic_layers", "visible", "num_codes", "devices", "level_dropout"}
# experiment: (a good configuration, options that count, numbers of zero or more, positive ones, and others)
OPTIONS = {
    "vae": (
        vae.PRESETS["digits"][1],
        ("latent_dim", "evaluate_every", "nll_samples", "num_samples"),
        ("beta",),
        ("learning_rate", "adam_epsilon"),
        {
            "hidden": ((8, 0), "hidden must be at least 1, got (8, 0)"),
            "beta_warmup": (-1, "beta_warmup must be zero or more, got -1"),
            "patience": (0, "patience must be at least 1, got 0"),
        },
    ),
    "beta_vae": (
        beta_vae.PRESETS["mnist"][1],
        ("latent_dim", "schedule_steps", "evaluate_every", "nll_samples", "score_points"),
        ("beta", "normalized_beta", "beta_start", "free_bits", "gamma", "capacity"),
        ("learning_rate",),
        {"channels": ((-1,), "channels must be at least 1, got (-1,)")},
    ),
    "rate_distortion": (
        rate_distortion.PRESETS["digits"][1],
        ("latent_dim", "num_seeds", "evaluate_every", "score_points"),
        (),
        ("learning_rate",),
        {
            "hidden": ((0,), "hidden must be at least 1, got (0,)"),
            "betas": ((1.0, NAN), "betas must be positive numbers, got (1.0, nan)"),
            "seed": (2**32 - 1, "seed must lie in 0 .. 2**32 - 1, got 4294967297"),  # of the last of three models
        },
    ),
    "vq_vae": (
        vq_vae.PRESETS["digits"][1],
        ("code_dim", "groups", "depth", "window", "residual", "evaluate_every"),
        ("commitment", "entropy_weight", "code_temperature", "kl_weight"),
        ("learning_rate",),
        {
            "gumbel_temperature": (0.0, "gumbel_temperature must lie in (0, 1], got 0.0"),
            "channels": ((0,), "channels must be at least 1, got (0,)"),
            "blocks": (-1, "blocks must be zero or more, got -1"),
            "project": (-1, "project must be zero or more, and 0 for ema, got -1"),
            "decay": (NAN, "decay must lie in (0, 1), got nan"),
            "restart_threshold": (1.0, "restart_threshold must lie in [0, 1), got 1.0"),
        },
    ),
    "pixelcnn": (
        pixelcnn.PRESETS["digits"][1],
        ("channels", "layers", "components"),
        ("weight_decay",),
        ("learning_rate", "temperature"),
        {
            "kernel": (4, "kernel must be odd and at least 3, got 4"),
            "dropout": (1.0, "dropout must lie in [0, 1), got 1.0"),
        },
    ),
    "cvae": (
        cvae.PRESETS["digits"][1],
        ("latent_dim", "label_features", "num_samples", "evaluate_every", "nll_samples"),
        ("beta",),
        ("learning_rate",),
        {"hidden": ((0,), "hidden must be at least 1, got (0,)")},
    ),
    "quadrants": (
        cvae.PRESETS["quadrants"][1],
        ("latent_dim", "baseline_epochs", "evaluate_every", "validation", "patience", "nll_samples"),
        (),
        ("learning_rate",),
        {"hidden": ((500, 0), "hidden must be at least 1, got (500, 0)")},
    ),
    "modes": (
        modes.PRESETS["ring"][1],
        ("latent_dim", "critic_steps"),
        ("penalty",),
        ("learning_rate",),
        {"hidden": ((0,), "hidden must be at least 1, got (0,)")},
    ),
    "vae_gan": (
        vae_gan.PRESETS["digits"][1],
        (
            *("hidden", "latent_dim", "num_codes", "code_dim", "first_epochs", "critic_steps"),
            *("evaluate_every", "classifier_steps", "samples"),
        ),
        ("penalty", "r1", "gamma", "beta", "feature_weight", "adversarial_weight"),
        ("learning_rate",),
        {
            "channels": ((8, 0), "channels must be at least 1, got (8, 0)"),
            "ema": (1.0, "ema must lie in (0, 1), got 1.0"),
            "class_conditional": (True, "class_conditional belongs to --model gan and wgan-gp, got vae-gan"),
        },
    ),
    "semi_supervised": (
        semi_supervised.PRESETS["digits"][1],
        (
            *("labels_per_class", "feature_epochs", "hidden", "latent_dim", "label_features"),
            *("labelled_batch_size", "evaluate_every"),
        ),
        ("classification_weight", "labelled_weight"),
        ("learning_rate",),
        {
            "feature_dim": (-1, "feature_dim must be zero or more, got -1"),
            "label_seed": (2**32, f"seed must lie in 0 .. 2**32 - 1, got {2**32}"),
        },
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_numeric_option_is_checked(name):
    good, counts, finite, positive, others = OPTIONS[name]
    wrong = [(option, 0, COUNTS) for option in ("epochs", "batch_size", *counts)]
    wrong += [(option, value, f"{FINITE} {value}") for option in finite for value in (-1.0, NAN, float("inf"))]
    wrong += [(option, value, f"{POSITIVE} {value}") for option in positive for value in (0.0, NAN, float("inf"))]
    wrong = [(option, value, f"{option} {said}") for option, value, said in wrong]
    wrong += [("seed", value, f"seed must lie in 0 .. 2**32 - 1, got {value}") for value in (-1, 2**32)]
    wrong += [(option, *rest) for option, rest in others.items()]
    for option, value, said in wrong:
        with pytest.raises(ValueError, match=re.escape(said)):
            dataclasses.replace(good, **{option: value})
    numeric = {name for name, value in vars(good).items() if isinstance(value, int | float) and type(value) is not bool}
    assert numeric - {option for option, *_ in wrong} <= ELSEWHERE


@pytest.mark.parametrize(
    ("main", "arguments", "said"),
    [
        (
            beta_vae.main,
            ("mnist", "--data", "digits", "--objective", "total-correlation", "--batch-size", 1),
            "the total correlation needs a batch of at least 2 examples, got 1",
        ),
        *(
            (main, (*preset, "--batch-size", 5000), "a batch of 5000 is larger than the split of")
            for main, preset in (
                (beta_vae.main, ("mnist", "--data", "digits")),
                (rate_distortion.main, ("digits",)),
                (vq_vae.main, ("digits",)),
                (pixelcnn.main, ("digits",)),
                (cvae.main, ("digits",)),
                (cvae.main, ("quadrants", "--data", "digits", "--validation", 200)),
            )
        ),
        *(
            (main, (preset, "--data", "digitz"), "did you mean 'digits'?")
            for main, preset in (
                *((beta_vae.main, "mnist"), (rate_distortion.main, "digits"), (vq_vae.main, "digits")),
                *((pixelcnn.main, "digits"), (cvae.main, "quadrants"), (semi_supervised.main, "digits")),
            )
        ),
        (cvae.main, ("digits", "--validation", 1437), "count must lie in 1 .. 1436 for 1437 examples, got 1437"),
        (cvae.main, ("quadrants", "--data", "digits"), "count must lie in 1 .. 1436 for 1437 examples, got 5000"),
    ],
)
def test_a_wrong_option_is_one_line_and_leaves_nothing_behind(main, arguments, said, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    done = run(main, *arguments, "--out", tmp_path / "run")
    assert done.code == 2
    assert said in done.said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("main", "presets"),
    [
        (vae.main, "digits, mnist, burda, linear, cifar10, illustration"),
        (beta_vae.main, "sprites, dsprites, mnist"),
        (rate_distortion.main, "mnist, digits, sprites"),
        (vq_vae.main, "digits, mnist, cifar10, speech, video"),
        (pixelcnn.main, "codes, digits, mnist, cifar10, digits-pixelrnn, mnist-pixelrnn"),
        (cvae.main, "digits, mnist, quadrants"),
        (semi_supervised.main, "digits, mnist, mnist-pixels"),
    ],
)
def test_an_unknown_preset_is_answered_by_the_known_ones(main, presets):
    first = presets.split(",")[0]
    for name, hint in (("nothing-like-it", ""), (first[1:], f"; did you mean {first!r}?")):
        done = run(main, name)
        assert done.code == 2
        assert done.said.strip() == f"error: there is no preset {name!r} among {presets}{hint}"


@pytest.mark.parametrize(
    ("main", "preset"),
    [
        (beta_vae.main, ("mnist", "--data", "digits")),
        *((main, ("digits",)) for main in (vae.main, rate_distortion.main, vq_vae.main, pixelcnn.main, cvae.main)),
        (cvae.main, ("quadrants", "--data", "digits", "--validation", 200)),
        (semi_supervised.main, ("digits",)),
    ],
)
def test_an_output_directory_that_is_a_file_is_refused_before_training(main, preset, tmp_path):
    (tmp_path / "file").write_text("")
    done = run(main, *preset, "--out", tmp_path / "file")
    assert done.code == 2
    assert f"--out {tmp_path / 'file'} is a file; choose a directory" in done.said


def test_an_integer_that_int64_would_make_negative_is_refused():
    large = np.array([[2**63 + 5], [7]], np.uint64)
    with pytest.raises(
        ValueError, match=r"factors must be below 2\*\*63, got 9223372036854775813: number what is there"
    ):
        host_integers(large, "factors")
    np.testing.assert_array_equal(host_integers(large - np.uint64(6), "factors")[0], [2**63 - 1])
