"""Tables from files and data frames: what columns become, back again, their nats, and a model of them."""

import re
from decimal import Decimal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from scipy import stats

import jaxvae
from jaxvae import data
from jaxvae.distributions import DiagGaussian, Masked
from jaxvae.models import table_vae
from jaxvae.networks import InUnits, TableEncoder
from jaxvae.types import Column

CSV = """species,island,mass,visits,ringed,sex
gentoo,Biscoe,5.1,3,0,f
adelie,Dream,,0,1,m
adelie,Biscoe,3.9,12,0,
gentoo,Dream,4.7,,1,f
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "birds.csv").write_text(CSV)
    return tmp_path / "birds.csv"


def test_a_file_becomes_columns_of_their_kinds_with_its_holes(path):
    birds = data.from_table(path, label="species")
    mass = np.array([5.1, 3.9, 4.7])
    assert birds.domain.columns == (
        Column("island", "categories", ("Biscoe", "Dream")),
        Column("mass", "real", (), pytest.approx(mass.mean()), pytest.approx(mass.std())),
        Column("visits", "counts"),
        Column("ringed", "categories", (0, 1)),
        Column("sex", "categories", ("f", "m")),
    )
    assert (birds.name, birds.x.dtype, birds.x.shape, birds.domain.kind) == ("birds", np.float32, (4, 5), "table")
    assert birds.label.tolist() == [1, 0, 0, 1]
    np.testing.assert_array_equal(birds.arrays["observed"], pd.read_csv(path).drop(columns="species").notna())
    standard = (5.1 - mass.mean()) / mass.std()
    np.testing.assert_allclose(birds.x, [[0, standard, 3, 0, 0], [1, 0, 0, 1, 1], [0, *birds.x[2, 1:2], 12, 0, 0],
                                         [1, *birds.x[3, 1:2], 0, 1, 0]], rtol=1e-6)  # fmt: skip


def test_it_goes_back_to_what_it_was(path):
    birds = data.from_table(path)
    x = np.where(birds.arrays["observed"], birds.x, np.nan)
    back = data.to_frame(x, birds.domain.columns)
    expected = pd.read_csv(path)
    for title in expected:
        for one, other in zip(back[title], expected[title], strict=True):
            assert (pd.isna(one) and pd.isna(other)) or one == pytest.approx(other)
    assert str(back["visits"].dtype) == "Int64"


def test_new_rows_are_read_as_the_old_ones_were(path, tmp_path):
    columns = data.from_table(path, label="species").domain.columns
    row = pd.DataFrame({"mass": [10.0], "ringed": [1], "visits": [1], "sex": ["m"], "island": ["Dream"], "new": ["x"]})
    again = data.from_table(row, columns=columns)
    assert again.domain.columns == columns
    np.testing.assert_allclose(again.x[0, [0, 2, 3, 4]], [1, 1, 1, 1])
    assert again.x[0, 1] * columns[1].scale + columns[1].location == pytest.approx(10, rel=1e-6)
    row.to_parquet(tmp_path / "row.parquet")
    np.testing.assert_array_equal(data.from_table(tmp_path / "row.parquet", columns=columns).x, again.x)
    with pytest.raises(ValueError, match="'island' has 'Atlantis' in row 0, which is none of its 2 categories"):
        data.from_table(row.assign(island="Atlantis"), columns=columns)
    with pytest.raises(ValueError, match="the table has no column 'mass'; it has 'ringed'"):
        data.from_table(row.drop(columns="mass"), columns=columns)


def test_kinds_may_be_said_and_numbers_left_as_they_are(path):
    columns = data.from_table(path, columns={"visits": "real", "mass": "categories"}, standardize=False).domain.columns
    kinds = {column.name: column for column in columns}
    assert kinds["visits"] == Column("visits", "real")
    assert kinds["mass"].categories == (3.9, 4.7, 5.1)


def frame(**columns):
    return pd.DataFrame({"a": [1.5, 2.5, 3.5], **columns})


REFUSED = {
    "no rows": (frame()[:0], {}, ValueError, "the table has no rows"),
    "nothing left": (frame(), {"drop": ["a"]}, ValueError, "the table has no columns left"),
    "twice": (pd.concat([frame(), frame()], axis=1), {}, ValueError, "several columns 'a': give each a title"),
    "no such label": (frame(), {"label": "b"}, ValueError, "the table has no column 'b'; it has 'a'"),
    "no such kind": (frame(), {"columns": {"a": "text"}}, ValueError, "column 'a' may be 'real', 'counts', 'categor"),
    "constant": (frame(b=[2, 2, 2]), {}, ValueError, "column 'b' has one value, .*2.* and says nothing: .*drop"),
    "empty": (frame(b=[np.nan] * 3), {}, ValueError, "column 'b' has no value and says nothing"),
    "dates": (frame(b=pd.date_range("2020", periods=3)), {}, TypeError, "column 'b' holds dates: make numbers of"),
    "infinite": (frame(b=[1.0, np.inf, 2.0]), {}, ValueError, "column 'b' has an infinite number in row 1"),
    "mixed": (frame(b=["x", 1, "y"]), {}, TypeError, "column 'b' holds values of several types, int and str"),
    "lists": (frame(b=[[1], [2], [3]]), {}, TypeError, "column 'b'|unhashable"),
    "text": (
        pd.DataFrame({"b": [f"row {i}" for i in range(50)]}),
        {},
        ValueError,
        "has 50 different values in 50 rows",
    ),
    "days": (frame(b=["2020-01-31", "2020-02-01", None]), {}, TypeError, "'b' holds dates or times, such as '2020-01"),
    "times": (frame(b=["12:30", "12:31", "12:30"]), {}, TypeError, "'b' holds dates or times, such as '12:30'"),
    "a sign": (frame(b=["1", "?", "2.5"]), {}, ValueError, r"'b' is text by '\?' in row 1, .* missing=\['\?'\]"),
    "numbers": (frame(b=["1,5", "2,5", "0,1"]), {}, ValueError, "'b' holds numbers as text, such as '1,5': .*decimal="),
    "Decimals": (frame(b=[Decimal("1"), Decimal("2"), None]), {}, TypeError, "'b' holds values of type Decimal, which"),
    "bytes": (frame(b=[b"x", b"y", b"x"]), {}, TypeError, "'b' holds values of type bytes, which are no categories"),
    "complex": (frame(b=[1j, 2, 3]), {}, TypeError, "'b' holds complex numbers"),
    "tiny": (frame(b=[1e-200, 2e-200, 0]), {}, ValueError, "'b' lies in .*, whose standard deviation is 0.0: rescale"),
    "huge": (frame(b=[1e200, 2e200, 0]), {}, ValueError, "'b' lies in .*, whose standard deviation is inf: rescale"),
    "large": (frame(b=[1e39, 2, 0]), {"standardize": False}, ValueError, "'b' has 1e.39 in row 0, too large for 32"),
    "row numbers": (pd.DataFrame({"b": range(5, 30)}), {}, ValueError, "'b' numbers the rows, from 5 to 29: leave it"),
    "titles": (pd.DataFrame({0: [1.5, 2.5]}), {}, TypeError, "titles must be text, got 0: frame.columns"),
    "one title": (frame(), {"drop": "a"}, TypeError, r"drop is a list of titles: pass drop=\['a'\]"),
    "columns' titles": (frame(), {"columns": ["a"]}, TypeError, r"or all Columns of another set, got \('a',\)"),
    "no columns": (frame(), {"columns": []}, TypeError, "or all Columns of another set"),
    "label and kind": (frame(b=[1, 2, 1]), {"label": "b", "columns": {"b": "real"}}, ValueError, "'b': a column is"),
    "names alone": (frame(), {"label_names": ["x"]}, ValueError, "label_names are of a column of labels: pass its"),
    "of a frame": (frame(), {"missing": ["?"]}, ValueError, "decimal and missing are for .csv files"),
    "no count": (frame(b=[-1, 0, 4]), {"columns": {"b": "counts"}}, ValueError, "has -1.0 in row 0, which is no count"),
    "no number": (frame(b=["x", "y", "x"]), {"columns": {"b": "real"}}, TypeError, "holds 'x', which is no number"),
    "holes in labels": (frame(b=["x", None, "y"]), {"label": "b"}, ValueError, "'b' has no value in row 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_table_is_refused_by_name(name):
    table, options, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        data.from_table(table, **options)


def test_files_that_cannot_be_read_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(f"no file {tmp_path / 'none.csv'}")):
        data.from_table(tmp_path / "none.csv")
    with pytest.raises(ValueError, match=r"expected a .csv or .parquet file or a pandas.DataFrame, got x.txt"):
        data.from_table("x.txt")
    (tmp_path / "twice.csv").write_text("a,b,a\n1,2,3\n")
    with pytest.raises(ValueError, match="has several columns 'a': give each a title of its own"):
        data.from_table(tmp_path / "twice.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match=r"empty.csv cannot be read as a table"):
        data.from_table(tmp_path / "empty.csv")


FILES = {
    "a field too many": ("a,b\n1.5,2.5\n3.5,4.5,5.5\n", "line 3 of .* has 3 fields, and there are 2 titles"),
    "in every line": ("a,b\n1.5,2.5,x\n3.5,4.5,y\n", "line 2 of .* has 3 fields, and there are 2 titles"),
    "a field too few": ("a;b\n1.5;2.5\n3.5\n", "line 3 of .* has 1 fields, and there are 2 titles, separated by ';'"),
    "no titles": ("5.1,3.5,setosa\n4.9,3.0,setosa\n", "first line of .* must be titles and holds '5.1': add a line"),
    "an empty line first": ("\na,b\n1,2\n", "its first line has no titles"),
    "bytes": (b"a,b\n\xff,\xfe\n", "cannot be read as a table: .*codec"),
    "a quote left open": ('a,b\n"1.5,2.5\n', "line 2 of .* has 1 fields|cannot be read as a table"),
}


@pytest.mark.parametrize("name", FILES)
def test_lines_that_are_no_table_are_refused(name, tmp_path):
    content, message = FILES[name]
    (tmp_path / "x.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        data.from_table(tmp_path / "x.csv")


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_found_and_signs_stand_for_what_is_missing(separator, tmp_path):
    lines = [["height", "pet, if any", "legs"], ["1,5", "cat", "2"], ["?", '"dog; old"', "-"], ["2,5", "cat", "4"]]
    if separator == ",":
        lines = [[f'"{field}"' if field[0] != '"' else field for field in line] for line in lines]
    (tmp_path / "x.csv").write_text("".join(separator.join(line) + "\n" for line in lines), encoding="utf-8-sig")
    read = data.from_table(tmp_path / "x.csv", decimal=",", missing=["?", "-"], standardize=False)
    titles = [(column.name, column.kind) for column in read.domain.columns]
    assert titles == [("height", "real"), ("pet, if any", "categories"), ("legs", "counts")]
    assert read.domain.columns[1].categories == ("cat", "dog; old")
    np.testing.assert_array_equal(read.x, [[1.5, 0, 2], [0, 1, 0], [2.5, 0, 4]])
    np.testing.assert_array_equal(read.arrays["observed"], [[True] * 3, [False, True, False], [True] * 3])


def test_what_looks_like_numbers_may_be_meant_as_categories(tmp_path):
    (tmp_path / "x.csv").write_text("day,grade\n2020-01-31,1\n2020-02-01,A\n2020-01-31,2\n")
    columns = data.from_table(tmp_path / "x.csv", columns={"day": "categories", "grade": "categories"}).domain.columns
    assert columns[1].categories == ("1", "2", "A")
    (tmp_path / "new.csv").write_text("day,grade\n2020-02-01,2\n2020-02-01,1\n")  # numbers, had they been read alone
    np.testing.assert_array_equal(data.from_table(tmp_path / "new.csv", columns=columns).x, [[1, 1], [1, 0]])


def test_numbers_that_begin_with_zero_are_codes_unless_someone_says_otherwise(tmp_path):
    path = tmp_path / "X.CSV"
    path.write_text("town,size,share\n01234,3,0.5\n1234,007,0\n01234,12,0.25\n")
    with pytest.raises(ValueError, match=r"'town' holds numbers that begin with 0, such as '01234', .*columns="):
        data.from_table(path)
    said = {"town": "categories", "size": "counts"}
    read = data.from_table(path, columns=said)
    assert read.domain.columns[0].categories == ("01234", "1234")
    np.testing.assert_array_equal(read.x[:, :2], [[0, 3], [1, 7], [0, 12]])
    assert read.domain.columns[2].kind == "real"
    again = data.from_table(path, columns=read.domain.columns)
    np.testing.assert_array_equal(again.x, read.x)
    labelled = data.from_table(path, label="town", columns={"size": "counts"})
    assert (labelled.label.tolist(), labelled.label_names) == ([0, 1, 0], ("01234", "1234"))


def test_a_long_column_is_read_as_a_whole(tmp_path):
    many = "".join(f"{i % 7}\n" for i in range(300_000))  # pandas reads these in parts, each with a type of its own
    (tmp_path / "x.csv").write_text(f"grade\n{many}?\n")
    with pytest.raises(ValueError, match=r"'grade' is text by '\?' in row 300000, and numbers otherwise"):
        data.from_table(tmp_path / "x.csv")
    read = data.from_table(tmp_path / "x.csv", columns={"grade": "categories"})
    assert read.domain.columns[0].categories == ("0", "1", "2", "3", "4", "5", "6", "?")


@pytest.mark.parametrize(
    ("values", "kind", "x"),
    [
        ([3, None, 5, 8], "counts", [3, 0, 5, 8]),
        ([1.5, pd.NA, 5, np.float32(8)], "real", [1.5, 0, 5, 8]),
        ([-3, 2, 1, np.int8(4)], "real", [-3, 2, 1, 4]),
        ([1, 0, None, 1], "categories", [1, 0, 0, 1]),
        ([True, False, None, True], "categories", [1, 0, 0, 1]),
    ],
)
def test_pythons_numbers_are_numbers(values, kind, x):
    table = pd.DataFrame({"a": [1.5, 2.5, 3.5, 4.5], "b": pd.Series(values, dtype=object)})
    table.index = pd.Index([0, 0, 1, 1])
    read = data.from_table(table, standardize=False)
    assert (read.domain.columns[1].kind, table["b"].dtype) == (kind, object)
    np.testing.assert_array_equal(read.x[:, 1], x)


def test_labels_of_new_rows_keep_their_numbers(path, tmp_path):
    birds = data.from_table(path, label="species")
    assert (birds.label_names, birds.num_classes) == (("adelie", "gentoo"), 2)
    lines = CSV.splitlines()
    (tmp_path / "new.csv").write_text(f"{lines[0]}\n{lines[1]}\n")
    known = {"label": "species", "columns": birds.domain.columns}
    new = data.from_table(tmp_path / "new.csv", label_names=birds.label_names, **known)
    assert (new.label.tolist(), new.label_names, new.num_classes) == ([1], birds.label_names, 2)
    with pytest.raises(ValueError, match="'species' has 'gentoo' in row 0, which is none of its 1 categories"):
        data.from_table(tmp_path / "new.csv", label_names=["adelie"], **known)
    (tmp_path / "years.csv").write_text("year,a\n2001,1.5\n2002,2.5\n")
    years = data.from_table(tmp_path / "years.csv", label="year")
    assert years.label_names == (2001, 2002)


def test_a_domain_of_columns_is_checked():
    columns = (Column("a", "real"), Column("b", "counts"), Column("c", "categories", ("x", "y")))
    domain = data.Domain("table", columns=columns)
    data.check_domain(np.float32([[-1.5, 3, 1]]), domain)
    for row, text in (([0, 1.5, 0], "1.5 in column 'b'"), ([0, 0, 2], r"2.0 in column 'c', of .* \[0, 1\]")):
        with pytest.raises(ValueError, match=rf"x\[1\] has {text}"):
            data.check_domain(np.float32([[0, 0, 0], row]), domain)
    with pytest.raises(ValueError, match=r"a table of 3 columns is x \(N, 3\), got \(1, 2\)"):
        data.check_domain(np.zeros((1, 2), np.float32), domain)
    with pytest.raises(ValueError, match="'table' needs columns"):
        data.Domain("table")
    with pytest.raises(ValueError, match="'real' has no columns"):
        data.Domain("real", columns=columns)


# Nats


def test_nats_are_those_of_the_columns_own_units():
    """In metres and in millimetres they differ by log 1000 for each value, and both are SciPy's on the raw column."""
    rng = np.random.default_rng(0)
    metres, mean, log_var = (rng.normal(size=(5, 2)) for _ in range(3))
    for unit in (1.0, 1000.0):
        scale = np.array([0.5, 3.0]) * unit
        record = InUnits(DiagGaussian(jnp.float32(mean), jnp.float32(log_var)), jnp.float32(np.log(scale))[None])
        standardised = metres * unit / scale
        expected = stats.norm.logpdf(metres * unit, mean * scale, np.exp(log_var / 2) * scale)
        np.testing.assert_allclose(record.log_prob(jnp.float32(standardised)), expected.sum(axis=1), rtol=1e-4)
        observed = rng.random((5, 2)) < 0.5
        of_those = Masked(record, jnp.asarray(observed)).log_prob(jnp.float32(standardised))
        np.testing.assert_allclose(of_those, np.where(observed, expected, 0).sum(axis=1), rtol=1e-4, atol=1e-5)


# A model


def weather(num=400, holes=0.0, seed=0):
    """A category, a count and two reals that hang together."""
    rng = np.random.default_rng(seed)
    hot = rng.random(num) < 0.5
    table = pd.DataFrame(
        {
            "sky": np.where(hot, "clear", np.where(rng.random(num) < 0.5, "cloud", "rain")),
            "visitors": rng.poisson(np.where(hot, 30, 3)),
            "degrees": np.where(hot, 25, 8) + rng.normal(size=num),
            "pressure": 1013 + np.where(hot, 5, -5) + 2 * rng.normal(size=num),
        }
    )
    return table.mask(rng.random(table.shape) < holes)


@pytest.fixture(scope="module")
def trained():
    columns = {"visitors": "counts"}  # with holes pandas makes them floating
    training = data.from_table(weather(holes=0.1), columns=columns)
    model = table_vae(training.domain.columns, latent_dim=2, hidden=(32,))
    return jaxvae.train(model, training, epochs=60, batch_size=40, optimizer=optax.adam(4e-3), seed=0, progress=False)


def test_a_table_is_learned_sampled_and_saved(trained, tmp_path):
    columns = trained.dataset.domain.columns
    held = data.from_table(weather(seed=1), columns=columns)
    nll = trained.evaluate(held, num_samples=20)["nll"]
    raw = weather(seed=1)
    # What columns that know nothing of each other cost: frequencies, and the best Gaussian or geometric-like count.
    apart = -np.log([0.5, 0.25, 0.25]) @ [0.5, 0.25, 0.25]
    for title in ("degrees", "pressure"):
        apart += 0.5 * np.log(2 * np.pi * np.e * raw[title].var(ddof=0))
    mean, variance = raw["visitors"].mean(), raw["visitors"].var()
    size = mean**2 / (variance - mean)
    apart -= stats.nbinom.logpmf(raw["visitors"], size, size / (size + mean)).mean()
    assert nll < apart - 1.5  # nats
    drawn = trained.model.apply(trained.variables, 500, key=jax.random.key(0), method="sample").sample(
        key=jax.random.key(1)
    )
    table = data.to_frame(drawn, columns)
    assert set(table["sky"]) == {"clear", "cloud", "rain"}
    assert (table["visitors"] >= 0).all()
    warm = table["degrees"] > 16
    assert table["visitors"][warm].mean() > 4 * table["visitors"][~warm].mean()
    assert (table["sky"][warm] == "clear").mean() > 0.8
    again = jaxvae.load(trained.save(tmp_path / "run"))
    assert again.evaluate(held, num_samples=20)["nll"] == nll
    assert again.dataset.domain.columns == columns


def test_holes_are_filled_in(trained):
    columns = trained.dataset.domain.columns
    raw = weather(40, seed=2)
    holed = raw.assign(degrees=np.nan, sky=None)
    filled = trained.impute(data.from_table(holed, columns=columns), num_samples=200, num_draws=5)
    means = data.to_frame(filled.mean, columns)
    assert np.abs(means["degrees"] - raw["degrees"]).mean() < 2.5
    assert np.abs(means["degrees"] - raw["degrees"]).mean() < np.abs(raw["degrees"] - raw["degrees"].mean()).mean() / 3
    np.testing.assert_allclose(means["pressure"], raw["pressure"], rtol=1e-5)
    draws = data.to_frame(filled.draws[:, 0], columns)
    assert (draws["sky"] == raw["sky"]).mean() > 0.6


def as_it_is(x):
    return x


def test_an_encoder_sees_numbers_of_one_size_and_nothing_of_what_is_missing():
    """Not even the first category, whose place is the zero that stands for a hole."""
    columns = (Column("a", "categories", ("x", "y", "z")), Column("b", "counts"), Column("c", "real"))
    encoder = TableEncoder(columns, as_it_is)
    rows = jnp.float32([[2, 3, -1.5], [0, 0, 0]])
    seen = np.array([[0, 0, 1, np.log(4), -1.5], [1, 0, 0, 0, 0]])
    np.testing.assert_allclose(encoder.apply({}, rows), seen, rtol=1e-6)
    masked = encoder.apply({}, jnp.concatenate([rows, jnp.float32([[1, 1, 1], [0, 1, 0]])], axis=1))
    seen[1, 0] = 0
    np.testing.assert_allclose(masked, np.concatenate([seen, [[1, 1, 1], [0, 1, 0]]], axis=1), rtol=1e-6)
    for wrong in (np.nan, 3, -1):  # no category, where a NaN would be the first
        assert np.isnan(encoder.apply({}, rows.at[0, 0].set(wrong))[:, :3]).all(axis=1).tolist() == [True, False]
    with pytest.raises(ValueError, match=r"a table of 3 columns is x \(B, 3\), got \(2, 4\)"):
        encoder.apply({}, jnp.zeros((2, 4)))


def test_a_model_without_a_likelihood_for_it_is_refused():
    table = data.from_table(weather())
    model = jaxvae.VAE(jaxvae.MLPEncoder(2), jaxvae.MLPDecoder((4,)))
    with pytest.raises(ValueError, match=r"holds columns of several kinds.*likelihood=jaxvae.networks.TableLikelihood"):
        jaxvae.train(model, table)
    with pytest.raises(ValueError, match=r"a table has columns: pass dataset.domain.columns"):
        table_vae((), latent_dim=2)
