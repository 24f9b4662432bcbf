"""The command `jaxvae` on tables: from a CSV file to rows, codes and what is missing."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import jaxvae
from jaxvae.__main__ import main
from jaxvae._command import outputs
from tests import commands

TRAIN = (
    "--epochs",
    40,
    "--learning-rate",
    0.005,
    "--batch-size",
    50,
    "--hidden",
    32,
    "--latent-dim",
    2,
    "--num-samples",
    10,
    "--label",
    "id",
)
# Commas for points and signs for holes, as a run is told once.
WRITTEN = {"index": False, "sep": ";", "decimal": ",", "na_rep": "?"}
READ = {"sep": ";", "decimal": ",", "na_values": "?"}
OPTIONS = ("--decimal", ",", "--missing", "?")


def weather(num, seed):
    """A category, a count and a real that hang together, and a label that is no part of them."""
    rng = np.random.default_rng(seed)
    hot = rng.random(num) < 0.5
    sky = np.where(hot, "clear", np.where(rng.random(num) < 0.5, "cloud", "rain"))
    degrees = np.where(hot, 25, 8) + rng.normal(size=num)
    return pd.DataFrame({"id": "row", "sky": sky, "visitors": rng.poisson(np.where(hot, 30, 3)), "degrees": degrees})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    table = weather(300, seed=0)
    table["id"] = np.where(table["degrees"] > 16, "warm", "cold")
    hidden = np.random.default_rng(1).random((300, 3)) < 0.1
    table["visitors"] = table["visitors"].astype("Int64")
    for i, title in enumerate(("sky", "visitors", "degrees")):
        table[title] = table[title].mask(hidden[:, i])
    table.to_csv(folder / "weather.csv", **WRITTEN)
    said = commands.run(main, "train", folder / "weather.csv", "--out", folder / "run", *TRAIN, *OPTIONS)
    assert said.code == 0, said.said
    return SimpleNamespace(run=folder / "run", said=said.said, folder=folder)


def test_a_table_is_trained_on(trained):
    assert (
        "vae with a likelihood for each column on weather: 270 examples of (3,), table; 30 kept apart" in trained.said
    )
    assert "of the 900 entries of" in trained.said
    columns = jaxvae.load(trained.run).dataset.domain.columns
    assert [column.kind for column in columns] == ["categories", "counts", "real"]


def test_rows_are_drawn_in_the_units_of_the_table(trained):
    drawn = pd.read_csv(trained.run / "samples.csv")
    assert list(drawn) == ["sky", "visitors", "degrees"]
    assert set(drawn["sky"]) <= {"clear", "cloud", "rain"}
    warm = drawn["degrees"] > 16
    assert 0.2 < warm.mean() < 0.8
    assert drawn["visitors"][warm].mean() > 3 * drawn["visitors"][~warm].mean()


def test_holes_are_filled_in_and_new_rows_encoded_by_the_runs_own_columns(trained):
    truth = weather(50, seed=2)
    path, out, some = trained.folder / "new.csv", trained.folder / "filled.csv", truth.index < 10
    truth = truth.assign(id=[f"{row:03}" for row in truth.index])  # which a number would not be
    truth.assign(sky=None, degrees=truth["degrees"].where(some)).to_csv(path, **WRITTEN)
    done = commands.run(main, "impute", trained.run, path, "--out", out, "--num-samples", 100)
    assert done.code == 0, done.said
    filled = pd.read_csv(out, dtype={"id": str})
    assert list(filled) == list(truth)  # those too that are no part of x
    for title in ("id", "visitors"):
        assert (filled[title] == truth[title]).all()
    assert (filled["degrees"] == pd.read_csv(path, **READ)["degrees"])[some].all()  # to the last digit
    assert np.abs(filled["degrees"] - truth["degrees"]).mean() < 4  # of 8.5 around the mean
    clear = truth["sky"] == "clear"
    assert (filled["sky"] == "clear")[clear].mean() > 0.8
    done = commands.run(main, "encode", trained.run, path, "--out", trained.folder / "codes.csv")
    assert done.code == 0, done.said
    assert pd.read_csv(trained.folder / "codes.csv").shape == (50, 2)


def test_mistakes_are_one_line(trained):
    table = trained.folder / "weather.csv"
    truth = weather(5, seed=3)
    truth.assign(sky="snow").to_csv(trained.folder / "snow.csv", **WRITTEN)
    np.save(trained.folder / "x.npy", np.zeros((4, 3), np.float32))
    for arguments, text in (
        (("train", table, "--label", "no"), "the table has no column 'no'; it has 'id', 'sky'"),
        (("train", table, "--columns", "sky"), "--columns takes TITLE=KIND, with a kind such as real"),
        (("train", table), "column 'visitors' is text by '?' in row"),
        (
            ("train", table),
            "pass --missing '?' if that stands for a hole in a .csv file",
        ),
        (("train", table, *OPTIONS, "--columns", "sky=real"), "', which is no number, so it cannot be 'real'"),
        (
            ("train", table, *OPTIONS, "--model", "conv-vae"),
            "conv-vae is for pictures, sound or video, and 'weather' is a table",
        ),
        (("train", "digits", "--drop", "sky"), "--drop only for a .csv or .parquet file, which digits is not"),
        (("train", "digits", "--missing", "?"), "--missing only for a .csv file, which digits is not"),
        (("encode", trained.run, trained.folder / "snow.csv"), "'sky' has 'snow' in row 0, which is none of its 3"),
        (("encode", trained.run, "digits"), "the run was trained on x ('N', 3) of the columns sky, visitors, degrees"),
    ):
        done = commands.run(main, *arguments)
        assert done.code == 2, arguments
        assert text in done.said, (arguments, done.said)


@pytest.mark.parametrize("kind", ["array", "arrays", "table"])
def test_an_output_that_fails_leaves_the_one_before(kind, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("no space left on device")

    rows = np.arange(6.0).reshape(3, 2)
    path = tmp_path / {"array": "codes.npy", "arrays": "imputed.npz", "table": "codes.csv"}[kind]
    values = {"mean": rows} if kind == "arrays" else rows
    write = outputs.write_codes if kind == "table" else outputs.save_array
    write(path, values)
    known = path.read_bytes()
    if kind == "table":
        assert known == b"z1,z2\r\n0,1\r\n2,3\r\n4,5\r\n"
    else:
        np.testing.assert_array_equal(np.load(path)["mean"] if kind == "arrays" else np.load(path), rows)
        monkeypatch.setattr(np, "save" if kind == "array" else "savez", fail)
    monkeypatch.setattr(outputs, "csv", SimpleNamespace(writer=lambda file: SimpleNamespace(writerow=fail)))
    with pytest.raises(OSError, match="no space left"):
        write(path, values)
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (known, [path])
