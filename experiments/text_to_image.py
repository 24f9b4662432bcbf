"""Pictures from words: captions and picture codes in one transformer, at a scale where every word can be checked.

  python -m experiments.text_to_image sprites      squares, ellipses and hearts of 32×32 pixels; needs no data
  python -m experiments.text_to_image sprites --out RUN --resume --caption "a small heart at the top left"

Three models are trained in turn. A VQ-VAE makes pictures into 8×8 codes; a transformer learns the codes after the
words of a caption; and a classifier learns to read the five factors that a caption speaks of off real pictures, so that
it can say of generated ones whether they show what the caption asks for. A fifth of the combinations of factors is
never shown to the first two, though each two words are: what the transformer makes of those is its own.

A finished run draws other captions at once. What it costs and which numbers to expect: experiments/README.md.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxvae
from experiments import captions, classifier, vq_vae
from experiments.codes import indices_of
from experiments.command import RunConfig, check_guidance, console, file_errors, parse, user_errors
from experiments.maps import as_they_are
from experiments.report import as_pictures, evaluator
from experiments.run import Run, init_of, reached
from jaxvae import data, figures
from jaxvae._json import read_json_object
from jaxvae.data import sprites
from jaxvae.keys import seed_key
from jaxvae.losses import categorical_nll
from jaxvae.objectives import code_prior_loss
from jaxvae.types import Array, Batch, Metrics, PRNGKey, PyTree

SIZE = sprites.SIZE // 2
LEVELS = 5  # of a mean over 2×2 pixels that are black or white
# Which raw values of the sprites' factors a word stands for; those between two words are left out.
RAW = {
    "scale": ((0,), (2, 3), (5,)),
    "turn": ((9, 0, 1), (4, 5, 6)),  # in steps of 9 degrees, modulo a quarter
    "x": (tuple(range(9)), tuple(range(12, 20)), tuple(range(23, 32))),
    "y": (tuple(range(9)), tuple(range(12, 20)), tuple(range(23, 32))),
}
EXAMPLES = (
    "a small heart at the top left",
    "a large turned square at the bottom right",
    "an ellipse at the middle centre",
    "a big heart",
    "at the lower left a tilted oval",
    "something small at the top",
)


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """Options of this experiment."""

    data: str = "sprites"
    """There is one set: sprites."""
    caption: tuple[str, ...] = ()
    """Draw these captions too; of a finished run, with --resume, nothing else."""
    held_out: float = 0.2
    """Of the combinations of factors, kept from training."""
    images: int = 40_000
    """Pictures to train on."""
    tokenizer_epochs: int = 4
    """Of the VQ-VAE."""
    num_codes: int = 64
    """K of the VQ-VAE."""
    width: int = 128
    """Of the transformer."""
    layers: int = 4
    """Of the transformer."""
    heads: int = 4
    """Of its attention."""
    learning_rate: float = 2e-3
    """Of AdamW; it rises over the first twentieth and falls to 0 by a cosine."""
    condition_dropout: float = 0.1
    """How often the transformer is told no caption in training: what guidance needs."""
    guidance: float = 2.0
    """Weight of the caption in the pictures that are drawn; 1 is the model itself."""
    temperature: float = 0.9
    """Of the codes that are drawn."""
    reader_steps: int = 2000
    """Of the classifier that reads pictures."""
    samples: int = 1000
    """Pictures that it reads, of each kind of caption."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_numbers(
            counts=(
                *("images", "tokenizer_epochs", "num_codes", "width", "layers", "heads", "reader_steps", "samples"),
            ),
            weights=("guidance", "temperature"),
            positive=("learning_rate",),
        )
        if self.data != "sprites":
            raise ValueError(f"captions are of sprites alone, got data {self.data!r}")
        for name in ("held_out", "condition_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        check_guidance(self.guidance, self.condition_dropout)
        captions.tokens(self.caption)  # refuses unknown words


PRESETS = {"sprites": ("Sprites of 32×32 pixels in five factors.", Config("sprites", 8, 64))}


def main(argv: Sequence[str] | None = None) -> None:
    """Train the three, measure, draw; or draw captions of a finished run."""
    config = parse(PRESETS, __doc__, argv)
    if config.smoke:
        few = {"images": 512, "tokenizer_epochs": 1, "epochs": 1, "reader_steps": 4, "samples": 16}
        config = dataclasses.replace(config, **few, width=32, layers=1)
    with user_errors():
        model = make_model(config)
        unseen = captions.held_out(config.held_out, config.seed)
        train = pictures(config.images, ~unseen, seed=config.seed, left_out=captions.LEFT_OUT)
        derived = {"vocabulary": captions.VOCABULARY, "decay_epochs": config.epochs}
        run = Run("text_to_image", dataclasses.replace(config, caption=()), **derived)
        finished = run.directory / "result.json"
        already = read_json_object(finished) if config.resume and finished.exists() else None

    vq, tokenizer = train_tokenizer(run, config, train)
    state = train_transformer(run, config, model, coded(train, vq, tokenizer), vq, tokenizer, unseen)
    draw = partial(drawn, config, model, state.params, vq, tokenizer)
    if already is not None and config.caption:
        with file_errors():
            console.print(str(save_captions(run.picture("yours"), draw, config.caption)), highlight=False)
        return
    result = measure(config, model, state, vq, tokenizer, draw, unseen)
    run.finish({"test": result, **reached(state)}, partial(save_pictures, run, config, draw))


def make_model(config: Any) -> jaxvae.TransformerPrior:
    """The transformer of a run, from its config.json."""
    return jaxvae.TransformerPrior(
        config.num_codes,
        (SIZE // 4, SIZE // 4),
        width=config.width,
        layers=config.layers,
        heads=config.heads,
        prefix=(captions.LENGTH, len(captions.VOCABULARY)),
    )


def pictures(num: int, combinations: np.ndarray, *, seed: int, left_out: float = 0.0) -> data.Dataset:
    """Sprites of combinations that are allowed, evenly drawn: "named" [N, 5] factors, "prefix" [N, LENGTH] captions."""
    rng = np.random.default_rng(seed)
    chosen = np.argwhere(combinations)[rng.integers(combinations.sum(), size=num)]
    x = np.concatenate([_rendered(raw) for raw in np.array_split(raw_factors(chosen, rng), -(-num // 1000))])
    dataset = data.from_arrays("sprites", x, domain="levels", levels=LEVELS)
    words = captions.tokens(captions.captions(chosen, seed, left_out))
    return dataclasses.replace(dataset, arrays={**dataset.arrays, "named": chosen.astype(np.int32), "prefix": words})


def raw_factors(chosen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What sprites are drawn from, [N, 5], of the factors that captions name, [N, 5]: any value that fits the word."""
    shape, *rest = chosen.T
    named = dict(zip(("scale", "turn", "x", "y"), rest, strict=True))
    values = {name: np.array([rng.choice(RAW[name][value]) for value in of_each]) for name, of_each in named.items()}
    orientation = values["turn"] + 10 * rng.integers(4, size=len(chosen))
    return np.stack([shape, values["scale"], orientation, values["x"], values["y"]], axis=1).astype(np.int32)


@jax.jit
def _halved(raw: Array) -> Array:
    """Sums over 2×2 pixels, 0 to 4."""
    images = sprites.render(raw)
    return images.reshape(len(raw), SIZE, 2, SIZE, 2, 1).sum(axis=(2, 4))


def _rendered(raw: np.ndarray) -> np.ndarray:
    return np.asarray(_halved(jnp.asarray(raw))).astype(np.uint8)


def train_tokenizer(run: Run, config: Config, train: data.Dataset) -> tuple[jaxvae.VQVAE, jaxvae.TrainState]:
    """The VQ-VAE, in a directory of its own within the run's."""
    console.print("training the tokenizer", highlight=False)
    own = vq_vae.Config(
        *("tokenizer", config.tokenizer_epochs, config.batch_size),
        out=run.directory / "tokenizer",
        seed=config.seed,
        resume=config.resume,
        data="sprites",
        num_codes=config.num_codes,
        code_dim=16,
        channels=(32, 64),
        blocks=1,
        likelihood="categorical",
        learning_rate=1e-3,
        schedule="cosine",
    )
    with user_errors():
        inner = Run("text_to_image", own, image_shape=train.shape, levels=LEVELS, decay_epochs=own.epochs)
    model = vq_vae.make_model(SimpleNamespace(**inner.settings))
    order = data.Order(len(train), own.batch_size, own.epochs, own.seed)
    images = data.from_arrays("sprites", train.x, domain="levels", levels=LEVELS)
    test = data.from_arrays("sprites", train.x[:256], domain="levels", levels=LEVELS)
    splits = SimpleNamespace(train=images, test=test)
    state, measured, _ = vq_vae.train_model(inner, own, model, splits, order)
    inner.finish({"test": measured} | reached(state), lambda: [])
    return model, state


def coded(dataset: data.Dataset, vq: jaxvae.VQVAE, tokenizer: jaxvae.TrainState) -> data.Dataset:
    """The codes of pictures in their place, the captions beside them."""
    indices = indices_of(vq, tokenizer, dataset)
    domain = data.Domain("categories", vq.quantizer.num_codes)
    codes = dataclasses.replace(
        dataset.with_prepare(as_they_are), arrays={**dataset.arrays, "x": indices}, domain=domain
    )
    return codes


def train_transformer(
    run: Run,
    config: Config,
    model: jaxvae.TransformerPrior,
    train: data.Dataset,
    vq: jaxvae.VQVAE,
    tokenizer: jaxvae.TrainState,
    unseen: np.ndarray,
) -> jaxvae.TrainState:
    """The transformer over words and codes, watched on other pictures of the combinations that it is shown."""
    console.print("training the transformer", highlight=False)
    test = coded(pictures(max(64, config.samples), ~unseen, seed=config.seed + 1), vq, tokenizer)
    order = data.Order(len(train), config.batch_size, config.epochs, config.seed)
    rate = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, -(-order.total_steps // 20), order.total_steps)
    loss_fn = partial(code_prior_loss, model, field="x")
    return run.train(
        init_of(model, jnp.zeros((1, *model.shape), jnp.int32), None, jnp.zeros((1, captions.LENGTH), jnp.int32)),
        partial(loss_fn, condition_dropout=config.condition_dropout),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.05)),
        *(train, order),
        evaluate=evaluator(loss_fn, test),
        evaluate_every=order.steps_per_epoch,
        split="test",
    )


def drawn(
    config: Config,
    model: jaxvae.TransformerPrior,
    params: PyTree,
    vq: jaxvae.VQVAE,
    tokenizer: jaxvae.TrainState,
    words: np.ndarray,
    seed: int,
) -> np.ndarray:
    """Pictures [N, 32, 32, 1] of captions as tokens [N, LENGTH]."""
    how = {"guidance": config.guidance, "temperature": config.temperature}
    codes = model.sample(params, len(words), key=seed_key(seed), prefix=jnp.asarray(words), **how)
    return as_pictures(np.asarray(vq.decode_indices(tokenizer.params, tokenizer.model_state, codes).mean))


Draw = Callable[[np.ndarray, int], np.ndarray]


def measure(
    config: Config,
    model: jaxvae.TransformerPrior,
    state: jaxvae.TrainState,
    vq: jaxvae.VQVAE,
    tokenizer: jaxvae.TrainState,
    draw: Draw,
    unseen: np.ndarray,
) -> dict[str, float]:
    """How often the factors that are read off pictures are those of their caption: real, decoded and generated ones."""
    console.print("training the reader, drawing and reading pictures", highlight=False)
    every = np.ones_like(unseen)
    shown = pictures(max(64, config.images // 2), every, seed=config.seed + 2)
    reader = classifier.train(
        shown, num_classes=sum(captions.SIZES), steps=config.reader_steps, seed=config.seed, loss=reading_loss
    )
    result: dict[str, float] = {}
    for name, combinations in {"seen": ~unseen, "held_out": unseen}.items():
        if not combinations.any():
            continue
        asked = pictures(config.samples, combinations, seed=config.seed + 3)
        real = asked.x / np.float32(LEVELS - 1)
        codes = coded(asked, vq, tokenizer)
        result[f"nats_per_code_{name}"] = evaluator(partial(code_prior_loss, model, field="x"), codes)(state)[
            "nats_per_value"
        ]
        decoded = vq.decode_indices(tokenizer.params, tokenizer.model_state, jnp.asarray(codes.x)).mean
        kinds = {"real": real, "decoded": as_pictures(np.asarray(decoded)), "drawn": draw(asked.arrays["prefix"], 5)}
        for kind, images in kinds.items():
            right = read(*reader, images) == asked.arrays["named"]
            result[f"{kind}_right_{name}"] = float(right.mean())
            if kind == "drawn":
                result |= {f"{factor}_{name}": float(right[:, i].mean()) for i, factor in enumerate(captions.WORDS)}
                result[f"all_right_{name}"] = float(right.all(axis=1).mean())
    return result


def reading_loss(
    classify: Callable[..., Array], params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey, step: Array
) -> tuple[Array, tuple[PyTree, Metrics]]:
    """The sum over the factors of -log q(factor | x)."""
    del key, step
    logits = jnp.split(classify(params, batch["x"]), np.cumsum(captions.SIZES)[:-1], axis=-1)
    losses = [categorical_nll(each, batch["named"][:, i]) for i, each in enumerate(logits)]
    loss = jnp.stack(losses).sum(axis=0).mean()
    return loss, (model_state, {"loss": loss})


def read(model: classifier.Classifier, params: PyTree, images: np.ndarray) -> np.ndarray:
    """The factors [N, 5] that are read off images."""
    logits = np.asarray(jax.jit(model.apply)(params, jnp.asarray(images, jnp.float32)))
    return np.stack(
        [each.argmax(axis=-1) for each in np.split(logits, np.cumsum(captions.SIZES)[:-1], axis=-1)], axis=1
    )


def save_captions(path: Path, draw: Draw, sentences: Sequence[str], title: str | None = None) -> Path:
    """Draw captions."""
    images = draw(captions.tokens(sentences), 7)
    return figures.captioned(path, images, sentences, title=title)


@file_errors()
def save_pictures(run: Run, config: Config, draw: Draw) -> list[Path]:
    """Draw captions of seen and of held-out combinations, and the user's."""
    unseen = captions.held_out(config.held_out, config.seed)
    chosen = np.argwhere(unseen)[np.random.default_rng(0).permutation(int(unseen.sum()))[:6]]
    sentences = [*EXAMPLES, *captions.captions(chosen, seed=1)]
    title = "captions" + (f"; the last {len(chosen)} are of combinations that were never shown" if len(chosen) else "")
    paths = [save_captions(run.picture("captions"), draw, sentences, title)]
    if config.caption:
        paths.append(save_captions(run.picture("yours"), draw, config.caption))
    paths.append(figures.learning_curves(run.picture("learning_curves"), run.records()))
    return paths


if __name__ == "__main__":
    main()
