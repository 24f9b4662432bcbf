"""The command `jaxvae`: from data of many kinds to a run directory, and what a run is asked."""

import csv
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxvae
import jaxvae._command
from jaxvae import data
from jaxvae.__main__ import main
from jaxvae._command import models, outputs, train
from jaxvae._command.outputs import write_codes
from tests import commands

N, SHAPE = 40, (30, 45, 3)
RNG = np.random.default_rng(0)
SMALL = ("--epochs", "2", "--batch-size", "18", "--num-samples", "3", "--latent-dim", "2")
NETWORK = ("--channels", "4", "4", "4")


def write(folder, pictures, suffix=".png"):
    folder.mkdir()
    for i, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(folder / f"{i:02}{suffix}")
    return folder


def blobs(num, height=SHAPE[0], width=SHAPE[1]):
    y, x = np.mgrid[0:height, 0:width]
    centre, colour = RNG.uniform(0, (height, width), (num, 2)), RNG.integers(64, 256, (num, 1, 1, 3))
    distance = np.square(y - centre[:, 0, None, None]) + np.square(x - centre[:, 1, None, None])
    return (np.exp(-distance / 50)[..., None] * colour).astype(np.uint8)


@pytest.fixture
def command(capsys):
    """Run a command line in this process: its exit code, and what was printed."""

    def run(*arguments):
        capsys.readouterr()
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        said = capsys.readouterr()
        return SimpleNamespace(code=code, out=said.out, err=said.err)

    return run


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "pictures", blobs(N))


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    said = commands.run(main, "train", pictures, "--out", out, *SMALL, *NETWORK)
    assert said.code == 0, said.said
    (out / "said").write_text(said.said)
    return out


# Training


def test_a_folder_of_pictures_becomes_a_run_with_figures_and_pictures(pictures, trained):
    run = jaxvae.load(trained)
    assert type(run.model.encoder) is jaxvae.ConvEncoder
    assert run.model.decoder.output_shape == (*SHAPE, 2)
    assert [record["epoch"] for record in run.history] == [1, 2]
    _, held = data.split_validation(data.folder(pictures), 0.1, seed=0)
    measured = json.loads((trained / "result.json").read_text())
    assert measured == {"validation": run.evaluate(held, num_samples=3)}
    assert measured["validation"]["nll"] < math.prod(SHAPE) * math.log(256)  # fewer nats than without any model
    options = json.loads((trained / "options.json").read_text())
    assert (options["model"], options["likelihood"], options["fit"]) == ("conv-vae", "discretised logistic", None)
    for name, ratio in (("samples", 1.5), ("reconstructions", 3.0)):
        with Image.open(trained / f"{name}.png") as drawn:
            assert min(drawn.size) >= 100
            assert abs(drawn.size[0] / drawn.size[1] - ratio) < 1.6


def test_what_was_trained_and_measured_is_printed(trained):
    said = (trained / "said").read_text()
    assert "conv-vae with discretised logistic on pictures: 36 examples of (30, 45, 3), levels; 4 kept apart" in said
    assert "only 4 steps were taken, and the last epoch was the best" in said
    measured = json.loads((trained / "result.json").read_text())["validation"]
    assert f"-log p(x) (3 samples) {measured['nll']:.2f} ± {measured['nll_standard_error']:.2g} -ELBO" in said
    assert f"bits for each value {measured['nll'] / math.prod(SHAPE) / math.log(2):.3f}" in said
    assert f"samples: {trained / 'samples.png'}" in said


@pytest.mark.parametrize(("num", "batch_size"), [(36, 32), (1000, 32), (2687, 128), (60_000, 128)])
def test_the_default_epochs_make_two_thousand_steps(num, batch_size):
    epochs = train._default_epochs(num, batch_size)
    assert epochs * (num // batch_size) >= 2000
    assert epochs == 20 or (epochs - 1) * (num // batch_size) < 2000


@pytest.mark.parametrize(
    ("stopped", "losses", "best", "said"),
    [
        (None, [5.0, 9.0, 4.0], 30, True),
        (None, [5.0, 4.0, 9.0], 20, False),
        ("SIGINT", [5.0, 4.0], 20, False),
        ("SIGINT", [], 0, False),
    ],
)
def test_a_short_training_is_called_short(stopped, losses, best, said, capsys):
    history = [{"step": 10 * i, "validation": {"loss": loss}} for i, loss in enumerate(losses, start=1)]
    train._say_if_short(SimpleNamespace(stopped=stopped, history=history, step=best))
    assert ("only 30 steps were taken" in capsys.readouterr().out) == said


@pytest.mark.slow
def test_an_interrupted_training_goes_on(command, pictures, trained, tmp_path):
    out = shutil.copytree(trained, tmp_path / "run")
    (out / "run.json").unlink()  # as if it had been killed before the end
    said = command("train", pictures, "--out", out, "--resume", *SMALL, *NETWORK, "--epochs", 3)
    assert (said.code, said.err) == (0, "")
    assert [line.split()[1] for line in said.out.splitlines() if line.startswith("epoch")] == ["3.0"]
    earlier, run = jaxvae.load(trained), jaxvae.load(out)
    assert run.history[:2] == earlier.history
    assert [record["epoch"] for record in run.history] == [1, 2, 3]


@pytest.mark.slow
def test_a_vq_vae_has_codes_and_no_samples(command, pictures, tmp_path):
    out = tmp_path / "run"
    options = ("--model", "vq-vae", "--channels", 8, 8, "--num-codes", 8, *SMALL, "--epochs", 1)
    said = command("train", pictures, "--out", out, *options)
    assert (said.code, said.err) == (0, "")
    assert (out / "reconstructions.png").exists()
    assert not (out / "samples.png").exists()
    said = command("sample", out)
    assert (said.code, said.out) == (2, "")
    assert said.err == "error: VQVAE has no prior to draw from: train a PixelCNN or a TransformerPrior on its codes\n"
    assert command("encode", out, pictures, "--out", out / "codes.csv").code == 0
    with (out / "codes.csv").open() as file:
        header, *rows = csv.reader(file)
    assert header[:3] == ["path", "code1", "code2"]
    assert [row[0] for row in rows] == sorted(path.name for path in pictures.iterdir())
    codes = np.array([row[1:] for row in rows], int)
    assert codes.shape == (N, 8 * 12)  # of 30×45, halved twice and rounded up
    np.testing.assert_array_equal(codes, jaxvae.load(out).encode(data.folder(pictures)).reshape(N, -1))


@pytest.mark.slow
def test_a_table_of_real_numbers_is_sampled_as_an_array(command, tmp_path):
    x = RNG.normal(3.0, 2.0, (50, 5))
    np.save(tmp_path / "table.npy", x)
    said = command("train", tmp_path / "table.npy", "--out", tmp_path / "run", *SMALL, "--hidden", 8, "--validation", 0)
    assert (said.code, said.err) == (0, "")
    assert "vae with Gaussian with a learned scale on table: 50 examples of (5,), real; none kept apart" in said.out
    assert set(json.loads((tmp_path / "run" / "result.json").read_text())) == {"training"}
    run = jaxvae.load(tmp_path / "run")
    assert np.load(tmp_path / "run" / "samples.npy").shape == (64, 5)
    assert np.load(tmp_path / "run" / "reconstructions.npy").shape == (40, 5)
    assert command("encode", tmp_path / "run", tmp_path / "table.npy").code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "run" / "codes.npy"), run.encode(x))
    np.save(tmp_path / "wide.npy", 100 * x)
    said = command("train", tmp_path / "wide.npy", "--out", tmp_path / "wide", *SMALL, "--hidden", 8, "--epochs", 1)
    assert said.code == 0
    assert said.err.startswith("warning: the standard deviations of x's values lie between 1")


@pytest.mark.slow
def test_a_set_by_its_name_has_a_test_split(command, tmp_path):
    said = command("train", "digits", "--out", tmp_path / "run", *SMALL, "--batch-size", 128, "--channels", 8)
    assert (said.code, said.err) == (0, "")
    measured = json.loads((tmp_path / "run" / "result.json").read_text())
    assert set(measured) == {"validation", "test"}
    assert measured["test"]["nll"] < 64 * math.log(17)
    said = command("evaluate", tmp_path / "run", "digits", "--num-samples", 3)
    assert f"{measured['test']['nll']:.2f} ±" in said.out


# Models


LEVELS = RNG.integers(0, 256, (20, 6, 7, 3), dtype=np.uint8)
LEVELS[0, 0, 0] = 255
KINDS = [
    (LEVELS, {}, "conv-vae", "discretised logistic"),
    (LEVELS % 2, {"levels": 2}, "conv-vae", "Bernoulli"),
    (LEVELS % 17, {"levels": 17}, "conv-vae", "categorical over 17 values"),
    (LEVELS / 255, {}, "conv-vae", "Gaussian with a learned scale"),
    ((LEVELS % 2).astype(float)[..., 0], {}, "vae", "Bernoulli"),
    (LEVELS / 50 - 2, {"domain": "real"}, "vae", "Gaussian with a learned scale"),
    (LEVELS[:, 0, :, 0].astype(int) ** 2, {"domain": "counts"}, "vae", "negative binomial"),
    (LEVELS[:, 0, :, 0] % 5, {"domain": "categories", "levels": 5}, "vae", "categorical over 5 values"),
]


@pytest.mark.parametrize(
    ("x", "how", "name", "likelihood"),
    [
        pytest.param(*each, id=f"{each[2]}, {each[3]}", marks=[pytest.mark.slow] * (i in (1, 2, 5)))
        for i, each in enumerate(KINDS)
    ],
)
def test_the_data_choose_the_model_and_its_likelihood(key, x, how, name, likelihood):
    dataset = data.from_arrays("x", x, **how)
    assert models.default_name(dataset) == name
    model, said = models.make_model(name, dataset, latent_dim=2, channels=(), hidden=(), num_codes=None)
    assert said == likelihood
    batch = dataset.prepared(3, key=key)
    model = pickle.loads(pickle.dumps(model))
    params = jax.jit(model.init)(key, batch["x"])
    value = jax.jit(lambda params: jaxvae.vae_loss(model, params, (), batch, key=key, step=0)[0])(params)
    assert np.isfinite(value)
    sample = jax.eval_shape(lambda: model.apply(params, 2, key=key, method="sample").mean)
    assert sample.shape == (2, *dataset.shape)


def test_sizes_that_nobody_gave():
    assert [models.default_latent_dim(shape) for shape in ((2,), (10,), (8, 8, 1), (28, 28, 1), (64, 64, 3))] == [
        *(2, 4, 8, 32, 128),
    ]
    assert models.default_latent_dim((512, 512, 3)) == 128
    assert models.default_channels((8, 8, 1)) == (32,)
    assert models.default_channels(SHAPE) == (32, 64, 128)
    assert models.default_channels((64, 100, 3)) == (32, 64, 128, 256)
    assert models.default_channels((3, 3, 1)) == (32,)


def test_models_that_cannot_be():
    make = partial(models.make_model, latent_dim=2, channels=(), hidden=(), num_codes=None)
    table = data.from_arrays("x", LEVELS[:, 0, 0] / 255)
    with pytest.raises(ValueError, match=r"conv-vae is for x \[N, H, W, C\], got \('N', 3\): pass --model vae"):
        make("conv-vae", table)
    with pytest.raises(ValueError, match=r"vq-vae is for x \[N, ..., C\] with 1 to 3 axes in between, got \('N', 3\)"):
        make("vq-vae", table)
    with pytest.raises(ValueError, match="squared error, which does not fit counts"):
        make("vq-vae", data.from_arrays("x", LEVELS, domain="counts"))
    with pytest.raises(ValueError, match="--hidden, --num-codes has no meaning for conv-vae, which takes --channels"):
        make("conv-vae", data.from_arrays("x", LEVELS), hidden=(3,), num_codes=4)
    with pytest.raises(ValueError, match="x of 65536 levels has no likelihood here beyond 1024: scale it to 256"):
        make("vae", data.from_arrays("x", LEVELS, levels=65536))


# What a run is asked


def test_names_that_are_no_text_stay_the_bytes_that_they_are(tmp_path):
    names = (os.fsdecode(b"caf\xe9.png"), 'a,"b".png')
    write_codes(tmp_path / "codes.csv", np.float32([[1], [2]]), names)
    lines = (tmp_path / "codes.csv").read_bytes().splitlines()
    assert lines[1:] == [b"caf\xe9.png,1", b'"a,""b"".png",2']


def test_new_pictures_of_another_size_are_encoded(command, trained, tmp_path):
    new = write(tmp_path / "new", blobs(3, 64, 90))
    expected = jaxvae.load(trained).encode(data.folder(new, size=SHAPE[:2]))
    for name in ("codes.npy", "codes.csv"):
        said = command("encode", trained, new, "--out", tmp_path / "made" / name)
        assert (said.code, said.err) == (0, "")
        assert "3 codes of (2,)" in said.out
    np.testing.assert_array_equal(np.load(tmp_path / "made" / "codes.npy"), expected)
    made = tmp_path / "made" / "codes.csv"
    table = np.loadtxt(made, delimiter=",", skiprows=1, usecols=(1, 2))
    np.testing.assert_array_equal(table.astype(np.float32), expected)
    assert made.read_text().startswith("path,z1,z2\n00.png,")


def test_a_broken_picture_is_named_a_grey_one_and_cmyk_are_converted(command, trained, tmp_path):
    mixed = write(tmp_path / "mixed", blobs(2))
    Image.fromarray(blobs(1)[0]).convert("L").save(mixed / "grey.png")
    Image.fromarray(blobs(1)[0]).convert("CMYK").save(mixed / "print.jpg")
    (mixed / "broken.png").write_bytes((mixed / "00.png").read_bytes()[:60])
    for arguments in (("encode", trained, mixed), ("train", mixed, "--out", tmp_path / "run")):
        said = command(*arguments)
        assert said.code == 2
        assert said.err.startswith(f"error: 1 of 5 files in {mixed} cannot be read as pictures: broken.png; mend them")
        assert "or pass --skip-unreadable to leave them out" in said.err
        assert said.err.count("\n") == 1
    assert command("encode", trained, mixed, "--skip-unreadable", "--out", tmp_path / "codes.npy").code == 0
    expected = jaxvae.load(trained).encode(data.folder(mixed, size=SHAPE[:2], colour="rgb", skip_unreadable=True))
    assert expected.shape == (4, 2)
    np.testing.assert_array_equal(np.load(tmp_path / "codes.npy"), expected)


@pytest.mark.slow
def test_pictures_are_brought_to_size_as_for_training(command, tmp_path):
    wide = write(tmp_path / "wide", blobs(20, 16, 32))
    out = tmp_path / "run"
    options = ("--size", 16, "--fit", "pad", "--colour", "grey", *SMALL, "--batch-size", 9, *NETWORK)
    assert command("train", wide, "--out", out, *options).code == 0
    assert command("encode", out, wide).code == 0
    run = jaxvae.load(out)
    padded, cropped = (data.folder(wide, size=16, fit=fit, colour="grey") for fit in ("pad", "crop"))
    np.testing.assert_array_equal(np.load(out / "codes.npy"), run.encode(padded))
    assert np.abs(run.encode(padded) - run.encode(cropped)).max() > 1e-4


def test_samples_and_reconstructions_as_arrays_and_pictures(command, trained, pictures, tmp_path):
    run = jaxvae.load(trained)
    assert command("sample", trained, "--num", 5, "--seed", 3, "--out", tmp_path / "samples.npy").code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "samples.npy"), run.sample(5, seed=3))
    said = command("sample", trained, "--num", 5, "--out", tmp_path / "samples.png")
    assert said.out == f"samples: {tmp_path / 'samples.png'}\n"
    assert command("reconstruct", trained, pictures, "--out", tmp_path / "x.npy").code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), run.reconstruct(data.folder(pictures)))
    assert command("reconstruct", trained, pictures, "--num", 3, "--out", tmp_path / "x.png").code == 0
    assert command("sample", trained, "--num", 5, "--out", tmp_path / "samples.svg").code == 0
    assert (tmp_path / "samples.svg").read_bytes().startswith(b"<?xml")
    for name in ("samples.png", "x.png"):
        with Image.open(tmp_path / name) as drawn:
            assert len(np.unique(np.asarray(drawn))) > 10


def test_figures_as_a_table_and_as_json(command, trained, pictures, tmp_path):
    said = command("evaluate", trained, pictures, "--num-samples", 4, "--json", tmp_path / "figures.json")
    measured = jaxvae.load(trained).evaluate(data.folder(pictures), num_samples=4)
    written = json.loads((tmp_path / "figures.json").read_text())
    assert written == {"data": str(pictures), "examples": N, "num_samples": 4, **measured}
    assert f"-log p(x) (4 samples)  {measured['nll']:.2f} ± {measured['nll_standard_error']:.2g}" in said.out
    assert f"{measured['negative_elbo']:.2f}" in said.out


# Mistakes


def test_every_mistake_is_one_line_and_exit_code_2(command, trained, pictures, tmp_path):
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_bytes(b"no JSON")
    (tmp_path / "no.npy").write_bytes(b"")
    np.save(tmp_path / "small.npy", LEVELS)
    np.save(tmp_path / "few.npy", LEVELS % 7)
    for arguments, said in (
        (("train", pictures, "--model", "gan"), "invalid choice 'gan' for argument '--model'. Expected one of"),
        (("train", pictures, "--epochs", "many"), "Error parsing --epochs"),
        (("train",), "Missing from jaxvae train: DATA"),
        (("tran", pictures), "Unrecognized options: tran"),
        ((), "Expected one of {train, sample, encode, reconstruct, evaluate, impute, compress, decompress, doctor}"),
        (
            ("train", tmp_path / "none"),
            f"no folder {tmp_path / 'none'}, no .npy, .npz, .csv or .parquet file of that name, and the set",
        ),
        (("train", tmp_path / "none.npz"), "[Errno 2] No such file or directory"),
        (("train", tmp_path / "no.npy"), "cannot be read as .npy: "),
        (("train", tmp_path / "few.npy"), "the largest value of x is 6: pass --levels 7"),
        (("train", tmp_path / "small.npy", "--size", 8), "--size only for a folder of pictures, which"),
        (("train", "digits", "--fit", "pad"), "--fit only for a folder of pictures, which digits is not"),
        (("encode", trained, pictures, "--split", "train"), "--split only for the name of a set, which"),
        (("encode", trained, "digits", "--skip-unreadable"), "--skip-unreadable only for a folder of pictures, which"),
        (("encode", trained, "digits"), "30, 45, 3) of 256 levels, and digits has (360, 8, 8, 1) of 17 levels"),
        (("train", pictures, "--levels", 8), "--levels only for a .npy or .npz file, which"),
        (("train", pictures, "--size", 8, 8, 8), "--size takes a height and a width, or one number for both, got 3"),
        (("train", pictures, "--out", trained), "holds something already: continue it by --resume, or choose"),
        (("train", pictures, "--resume"), "--resume needs the directory of the run that goes on: pass --out"),
        (
            ("train", pictures, "--out", trained, "--resume", *SMALL, *NETWORK, "--seed", 1),
            "settings differ from those of the saved run (saved -> current): seed: 0 -> 1",
        ),
        (("train", pictures, "--epochs", 0), "epochs must be at least 1, got 0"),
        (("train", pictures, "--channels", 0), "channels must be at least 1, got (0,)"),
        (("train", pictures, "--learning-rate", -1), "learning_rate must be a positive number, got -1.0"),
        (("train", pictures, "--validation", 2), "validation must be a share of the examples, in [0, 1), got 2.0"),
        (("train", pictures, "--batch-size", 99), "a batch of 99 is larger than the split of 36"),
        (("sample", tmp_path), f"no run in {tmp_path}"),
        (("sample", tmp_path / "damaged"), "is damaged (JSONDecodeError: "),
        (("sample", trained, "--num", 0), "num must be at least 1, got 0"),
        (("sample", trained, "--out", "x.gif"), "--out must end in .png or .svg or .pdf or .npy, got x.gif"),
        (("encode", trained, tmp_path / "none"), "no folder"),
        (("encode", trained, pictures, "--out", "x.txt"), "--out must end in .npy or .csv, got x.txt"),
        (("reconstruct", trained, pictures, "--num", 0), "--num must be at least 1, got 0"),
        (("evaluate", trained, tmp_path / "small.npy"), "the run was trained on x ('N', 30, 45, 3) of 256 levels, and"),
        (("evaluate", trained, pictures, "--num-samples", 0), "num_samples must be at least 1, got 0"),
    ):
        done = command(*arguments)
        assert done.code == 2, arguments
        assert done.err.startswith("error: "), arguments
        assert said in done.err
        assert done.err.count("\n") == 1, done.err


def test_help_explains_itself(command):
    said = command("--help")
    assert (said.code, said.err) == (0, "")
    assert "Train a variational autoencoder on your data, and use it." in said.out
    for name in ("train", "sample", "encode", "reconstruct", "evaluate"):
        assert f"• {name} " in said.out
        assert command(name, "--help").code == 0
    said = command("train", "--help")
    assert "{auto,vae,conv-vae,vq-vae}" in said.out


def test_a_run_that_is_not_finite_is_no_mistake_of_the_user(command, tmp_path):
    np.save(tmp_path / "x.npy", np.where(jnp.arange(60).reshape(20, 3) == 7, 3e38, 1.0).astype(np.float32))
    said = command("train", tmp_path / "x.npy", "--out", tmp_path / "run", *SMALL, "--validation", 0, "--batch-size", 9)
    assert said.code == 1
    assert "error: " in said.err
    assert "not finite" in said.err
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.slow
def test_the_command_as_a_person_types_it(trained, pictures, tmp_path):
    import os

    done = subprocess.run(
        [sys.executable, "-m", "jaxvae", "encode", trained, pictures, "--out", tmp_path / "codes.npy"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | commands.QUICK,
    )
    assert (done.returncode, done.stderr) == (0, "")
    np.testing.assert_allclose(
        np.load(tmp_path / "codes.npy"), jaxvae.load(trained).encode(data.folder(pictures)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
def test_a_table_with_holes_is_trained_on_and_filled_in(command, tmp_path):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 1)) + 0.1 * rng.normal(size=(60, 4)) + 3
    holed = np.where(rng.random(x.shape) < 0.2, np.nan, x)
    np.save(tmp_path / "holed.npy", holed)
    np.save(tmp_path / "whole.npy", x)
    done = command("train", tmp_path / "holed.npy", "--out", tmp_path / "run", *SMALL)
    assert done.code == 0, done.err
    missing = int(np.isnan(holed).sum())
    assert f"warning: {missing} of the 240 entries of x are NaN and count as missing" in " ".join(done.err.split())
    for suffix in (".npz", ".npy", ".csv"):
        out = tmp_path / f"filled{suffix}"
        done = command("impute", tmp_path / "run", tmp_path / "holed.npy", "--num-draws", 3, "--out", out)
        assert done.code == 0, done.err
        assert f"{missing} entries filled in" in done.out
    with np.load(tmp_path / "filled.npz") as filled:
        assert filled["draws"].shape == (60, 3, 4)
        mean = filled["mean"]
        np.testing.assert_allclose(mean[~np.isnan(holed)], holed[~np.isnan(holed)], rtol=1e-6)
    np.testing.assert_array_equal(np.load(tmp_path / "filled.npy"), mean)
    with (tmp_path / "filled.csv").open() as file:
        names, *rows = csv.reader(file)
    assert names == ["x1", "x2", "x3", "x4"]
    np.testing.assert_allclose(np.array(rows, float), mean, rtol=1e-6)
    done = command("impute", tmp_path / "run", tmp_path / "whole.npy")
    assert done.code == 2
    assert "does not say which entries are observed" in done.err
    assert command("encode", tmp_path / "run", tmp_path / "whole.npy", "--out", tmp_path / "codes.npy").code == 0
    (tmp_path / "WHOLE.NPY").write_bytes((tmp_path / "whole.npy").read_bytes())
    assert command("encode", tmp_path / "run", tmp_path / "WHOLE.NPY", "--out", tmp_path / "again.npy").code == 0
    assert (tmp_path / "again.npy").read_bytes() == (tmp_path / "codes.npy").read_bytes()
    # What a command would write over what it was given, or needs.
    kept = {path.name for path in (tmp_path / "run").iterdir() if path.suffix in (".json", ".jsonl", ".safetensors")}
    assert "weights.safetensors" in kept <= {*outputs.PARTS}
    (tmp_path / "link.npy").symlink_to(tmp_path / "holed.npy")
    for name, option, lost in (
        ("encode", "--out", "whole.npy"),
        ("reconstruct", "--out", "whole.npy"),
        ("impute", "--out", "link.npy"),
        ("evaluate", "--json", "whole.npy"),
        ("evaluate", "--json", "run/run.json"),
        ("evaluate", "--json", "run/metrics.jsonl"),
    ):
        given = "holed.npy" if name == "impute" else "whole.npy"
        before = (tmp_path / lost).read_bytes()
        done = command(name, tmp_path / "run", tmp_path / given, option, tmp_path / lost)
        assert (done.code, (tmp_path / lost).read_bytes()) == (2, before)
        assert "itself, which would be lost: choose another file to write to" in " ".join(done.err.split())


def test_zeros_and_ones_are_compressed_and_come_back(command, tmp_path):
    x = np.random.default_rng(0).integers(0, 2, (40, 8), dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)
    command("train", tmp_path / "x.npy", "--levels", 2, "--epochs", 1, "--hidden", 8, "--out", tmp_path / "run")
    said = command("compress", tmp_path / "run", tmp_path / "x.npy", "--out", tmp_path / "x.bits")
    size = (tmp_path / "x.bits").stat().st_size
    assert f"{size:,} bytes, {8 * size / x.size:.4f} bits for each value" in said.out
    command("decompress", tmp_path / "run", tmp_path / "x.bits", "--out", tmp_path / "again.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "again.npy"), x)
    (tmp_path / "x.bits").write_bytes(b"something else")
    done = commands.run(main, "decompress", tmp_path / "run", tmp_path / "x.bits")
    assert done.code == 2
    assert "these bytes are not of jaxvae.evaluation.compress" in done.said


def test_an_interrupt_is_one_line(monkeypatch, capsys):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(jaxvae._command.Doctor, "__call__", interrupted)
    with pytest.raises(SystemExit) as stop:
        jaxvae._command.run(["doctor"])
    assert stop.value.code == 130
    assert capsys.readouterr().err == "stopped: by Ctrl-C\n"
