"""Our convolutions against the stock ones: values, gradients, and what each platform's program is made of."""

import pickle
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae import convolution
from jaxvae.convolution import LAYOUTS, Conv, ConvTranspose, conv, conv_transpose

ONE_BY_ONE = ((5, 5), (1, 1), (1, 1), 3, 2)
# Spatial sizes, window, strides, channels in, channels out.
CASES = [
    ((8, 8), (4, 4), (2, 2), 1, 8),  # phases, beside each other
    ((7, 5), (4, 4), (2, 2), 9, 2),  # phases, shifted and added
    ((7, 5), (3, 3), (2, 2), 2, 3),  # strides that do not divide the window
    ((7, 5), (3, 3), (1, 1), 6, 1),
    ((5, 7), (4, 3), (1, 1), 2, 2),
    ((7, 5), (3, 2), (2, 1), 4, 3),
    ((7, 8), (1, 2), (2, 3), 3, 2),  # windows smaller than the stride
    ONE_BY_ONE,
    ((9, 9), (6, 6), (3, 3), 2, 2),
    ((7,), (3,), (2,), 1, 3),
    ((11,), (5,), (1,), 2, 1),
    ((5, 4, 3), (2, 3, 2), (2, 2, 1), 2, 3),
]


def stock_conv(x, kernel, *, strides, padding):
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=LAYOUTS[x.ndim])


def stock_conv_transpose(x, kernel, *, strides, padding):
    return jax.lax.conv_transpose(x, kernel, strides, padding, dimension_numbers=LAYOUTS[x.ndim])


both = pytest.mark.parametrize(
    ("ours", "stock"), [(conv, stock_conv), (conv_transpose, stock_conv_transpose)], ids=["conv", "transpose"]
)


def draw(*shapes, dtype=np.float32):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def arguments(case, dtype=np.float32):
    spatial, window, _, inputs, outputs = case
    return draw((2, *spatial, inputs), (*window, inputs, outputs), dtype=dtype)


def values_and_gradients(operations, x, kernel, strides, padding):
    """For each operation its output, and the gradients of x and kernel for one fixed random cotangent."""

    def one(operation, x, kernel):
        y, pullback = jax.vjp(lambda x, k: operation(x, k, strides=strides, padding=padding), x, kernel)
        (cotangent,) = draw(y.shape, dtype=y.dtype)
        return y, *pullback(cotangent)

    return jax.jit(lambda x, kernel: [one(operation, x, kernel) for operation in operations])(x, kernel)


def assert_close(ours, stock, tolerance):
    for name, a, b in zip(("value", "x gradient", "kernel gradient"), ours, stock, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        np.testing.assert_allclose(
            np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=tolerance, atol=tolerance, err_msg=name
        )


@both
@pytest.mark.parametrize(
    ("padding", "shifted"),
    [("SAME", None), pytest.param("VALID", None, marks=pytest.mark.slow), ("SAME", 0), ("SAME", 1)],
)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_equal_the_stock_operation(ours, stock, case, padding, shifted, monkeypatch):
    if shifted is not None:  # in place of what is fastest for the sizes
        monkeypatch.setattr(convolution, "_shifted_axes", lambda shape: shifted)
    x, kernel = arguments(case)
    strides = case[2]
    if padding == "VALID" and ours is conv and any(n < w for n, w in zip(case[0], case[1], strict=True)):
        pytest.skip("the window does not fit")
    assert_close(*values_and_gradients((ours, stock), x, kernel, strides, padding), 1e-4)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("shifted", [0, 1, 2])
def test_dilated_windows_equal_the_stock_operation(padding, shifted, monkeypatch):
    monkeypatch.setattr(convolution, "_shifted_axes", lambda shape: min(shifted, len(shape) - 2))
    for spatial, window, dilation in (((9, 8), (2, 3), 3), ((11,), (4,), 2), ((3, 9), (1, 3), 4)):
        x, kernel = draw((2, *spatial, 3), (*window, 3, 2))

        def stock(x, kernel, *, strides, padding, by=dilation):
            options = {"rhs_dilation": (by,) * len(strides), "dimension_numbers": LAYOUTS[x.ndim]}
            return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)

        ours = partial(conv, dilation=dilation)
        assert_close(*values_and_gradients((ours, stock), x, kernel, (1,) * len(spatial), padding), 1e-4)
    layer = Conv(2, (2,), dilation=3, padding="VALID")
    x = jnp.arange(8.0).reshape(1, 8, 1)
    params = {"params": {"kernel": jnp.array([[[1.0, 0]], [[0, 1]]]), "bias": jnp.zeros(2)}}
    np.testing.assert_array_equal(layer.apply(params, x)[0, :, 1], [3, 4, 5, 6, 7])
    for strides, dilation in ((2, 2), (1, 0)):
        with pytest.raises(ValueError, match="dilation must be 1, or above 1 with strides of 1, got"):
            conv(x, jnp.ones((2, 1, 1)), strides=strides, dilation=dilation)
    for dilation in (2.0, (1, 2), True):
        with pytest.raises(TypeError, match="dilation must be one integer, for all axes, got"):
            conv(x, jnp.ones((2, 1, 1)), dilation=dilation)
    with pytest.raises(ValueError, match=r"needs x to cover the window \(10,\)"):
        conv(x, jnp.ones((4, 1, 1)), dilation=3, padding="VALID")


@both
@pytest.mark.parametrize("case", CASES[1:3], ids=str)
def test_float64_stays_float64(ours, stock, case, x64):
    x, kernel = arguments(case, x64)
    got, expected = values_and_gradients((ours, stock), x, kernel, case[2], "SAME")
    assert got[0].dtype == x64
    assert_close(got, expected, 1e-12)


@both
def test_bfloat16_accumulates_in_float32(ours, stock):
    """Each output rounds once: it is within a rounding of the float32 result of the same inputs."""
    for case in ((8, 8), (4, 4), (2, 2), 64, 4), ONE_BY_ONE:
        x, kernel = arguments(case, jnp.bfloat16)
        got, expected = values_and_gradients((ours, stock), x, kernel, case[2], "SAME")
        assert [a.dtype for a in got] == [jnp.bfloat16] * 3
        wide = [a.astype(jnp.float32) for a in (x, kernel)]
        value = stock(*wide, strides=case[2], padding="SAME")
        np.testing.assert_allclose(np.float32(got[0]), value, rtol=2**-8, atol=1e-5)
        assert_close(got, expected, 0.05)


@both
@pytest.mark.parametrize("case", [*CASES[:6], CASES[-1]], ids=str)
def test_cpu_program_holds_no_convolution(ours, stock, case):
    """Forward or backward: the cliff of a convolution's gradient inside a scan cannot be met."""

    def loss(operation):
        return lambda x, k: jnp.sum(operation(x, k, strides=case[2], padding="SAME") ** 2)

    def lowered(operation, platform):
        step = jax.jit(jax.value_and_grad(loss(operation), (0, 1)))
        return step.trace(*arguments(case)).lower(lowering_platforms=(platform,)).as_text()

    assert "stablehlo.convolution" not in lowered(ours, "cpu")
    assert "stablehlo.dot_general" in lowered(ours, "cpu")
    assert "stablehlo.convolution" in lowered(ours, "cuda")
    assert "stablehlo.convolution" in lowered(ours, "tpu")
    assert "stablehlo.convolution" in lowered(stock, "cpu")  # or the first assertion could not fail


def test_maps_are_added_once(monkeypatch):
    """XLA would put the sum of the shifted maps into each that reads it, which would add them up again."""
    (x,), (kernel,) = draw((2, 8, 8, 16)), draw((3, 3, 16, 16))

    def adding():
        hlo = jax.jit(lambda x, kernel: jax.nn.silu(conv(x, kernel))).lower(x, kernel).compile().as_text()
        return [computation for computation in hlo.split("\n\n") if computation.count(" pad(") > 1]

    assert len(adding()) == 1
    assert " exponential(" not in adding()[0]
    monkeypatch.setattr(convolution, "_add_shifted", convolution._add_shifted.__wrapped__)
    assert " exponential(" in adding()[0]  # or the assertion above could not fail


@pytest.mark.parametrize(
    ("shape", "shifted"),
    [
        ((3, 3, 24, 24), 1),  # 72 + 72 numbers a position, where windows beside each other are 216 + 24
        ((3, 3, 1, 24), 0),  # 9 + 24, not 3 + 72
        ((3, 3, 24, 1), 2),  # 24 and 9, not 72 + 3
        ((5, 4, 4), 1),  # 20, not 20 + 4
        ((3, 3, 3, 8, 8), 1),  # 72 + 24
        ((1, 1, 8, 8), 0),  # the product is all there is to write
    ],
)
def test_what_is_written_decides_which_axes_are_shifted(shape, shifted):
    assert convolution._shifted_axes(shape) == shifted


@both
@pytest.mark.parametrize("shifted", [0, 1, 2])
def test_transformations_change_nothing(ours, stock, shifted, monkeypatch):
    monkeypatch.setattr(convolution, "_shifted_axes", lambda shape: shifted)
    case = CASES[1]
    _, kernel = arguments(case)
    (xs,) = draw((3, 2, *case[0], case[3]))
    kernels = jnp.stack([kernel, 2 * kernel, kernel - 1])

    @jax.jit
    def one(x, kernel):
        return ours(x, kernel, strides=case[2], padding="SAME")

    expected = jnp.stack([stock(xs[i], kernels[i], strides=case[2], padding="SAME") for i in range(3)])
    np.testing.assert_allclose(jax.vmap(one)(xs, kernels), expected, atol=1e-4)
    scanned = jax.lax.scan(lambda _, pair: (None, one(*pair)), None, (xs, kernels))[1]
    np.testing.assert_allclose(scanned, expected, atol=1e-4)
    np.testing.assert_allclose(jax.vmap(one, in_axes=(0, None))(xs, kernel)[1], one(xs[1], kernel), atol=1e-5)
    # The operation is linear in x, so its derivative along x is itself.
    np.testing.assert_allclose(jax.jvp(lambda x: one(x, kernel), (xs[0],), (xs[1],))[1], one(xs[1], kernel), atol=1e-5)

    def curvature(operation):  # a derivative of a gradient
        gradient = jax.grad(lambda k: jnp.sin(operation(xs[0], k, strides=case[2], padding="SAME")).sum())
        return jax.jit(lambda k: jax.jvp(gradient, (k,), (kernels[2],))[1])(kernel)

    np.testing.assert_allclose(curvature(ours), curvature(stock), rtol=1e-4, atol=1e-3)


@both
def test_gradient_steps_in_a_scan_follow_the_stock_ones(ours, stock):
    case = CASES[1]
    x, kernel = arguments(case)

    def descend(operation):
        def step(kernel, _):
            loss, gradient = jax.value_and_grad(
                lambda k: jnp.mean((operation(x, k, strides=case[2], padding="SAME") - 1) ** 2)
            )(kernel)
            return kernel - 0.1 * gradient, loss

        return jax.jit(lambda k: jax.lax.scan(step, k, length=5))(kernel)

    (ours_kernel, ours_loss), (stock_kernel, stock_loss) = descend(ours), descend(stock)
    np.testing.assert_allclose(ours_kernel, stock_kernel, atol=1e-5)
    np.testing.assert_allclose(ours_loss, stock_loss, rtol=1e-5)
    assert ours_loss[-1] < ours_loss[0]


@both
def test_stock_branch_is_the_stock_operation(ours, stock, monkeypatch):
    """What accelerators run, run here."""
    monkeypatch.setattr(convolution.lax, "platform_dependent", lambda *args, cpu, default: default(*args))
    for case in CASES[0], CASES[3], CASES[-1]:
        for padding in "SAME", "VALID":
            x, kernel = arguments(case)
            got = ours(x, kernel, strides=case[2], padding=padding)
            np.testing.assert_array_equal(got, stock(x, kernel, strides=case[2], padding=padding))


layers = pytest.mark.parametrize(
    ("ours", "flax"), [(Conv, nn.Conv), (ConvTranspose, nn.ConvTranspose)], ids=["conv", "transpose"]
)


@layers
@pytest.mark.parametrize(("padding", "dtype"), [("SAME", None), ("VALID", None), ("SAME", jnp.bfloat16)])
def test_layers_compute_with_the_parameters_of_flax(ours, flax, padding, dtype):
    x, kernel, bias = draw((2, 7, 6, 3), (4, 4, 3, 5), (5,))
    params = {"params": {"kernel": kernel, "bias": bias}}
    got = ours(5, (4, 4), 2, padding=padding, dtype=dtype).apply(params, x)
    expected = flax(5, (4, 4), (2, 2), padding=padding, dtype=dtype).apply(params, x)
    assert got.dtype == expected.dtype == (dtype or jnp.float32)
    tolerance = 0.05 if dtype else 1e-4
    np.testing.assert_allclose(np.float32(got), np.float32(expected), rtol=tolerance, atol=tolerance)


@layers
def test_layers_initialise_as_flax_does(ours, flax, key):
    (x,) = draw((2, 7, 6, 3))
    params = ours(5, (4, 4), 2, dtype=jnp.bfloat16).init(key, x)
    jax.tree.map(np.testing.assert_array_equal, params, flax(5, (4, 4), (2, 2)).init(key, x))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    bare = jax.eval_shape(ours(5, (4, 4), use_bias=False).init, key, x)
    assert set(bare["params"]) == {"kernel"}


@layers
def test_layers_pickle_and_take_lists(ours, flax):
    layer = ours(5, [4, 4], [2, 2])
    assert layer == ours(5, (4, 4), (2, 2))
    assert hash(layer) == hash(pickle.loads(pickle.dumps(layer))) == hash(ours(5, (4, 4), (2, 2)))


@both
@pytest.mark.parametrize(
    ("x_shape", "kernel_shape", "options", "message"),
    [
        ((28, 28), (3, 3), {}, r"x must be \[B, \*spatial, C\].*\(28, 28\)"),
        ((1, 8, 8, 3), (3, 3, 4), {}, r"kernel must be .* 2 spatial axes and C = 3.*got \(3, 3, 4\)"),
        ((1, 8, 8, 3), (3, 3, 1, 4), {}, r"kernel must be .*C = 3.*got \(3, 3, 1, 4\)"),
        ((1, 8, 8, 3), (3, 3, 3, 4), {"strides": (2,)}, r"strides must be 2 positive numbers.*got \(2,\)"),
        ((1, 8, 8, 3), (3, 3, 3, 4), {"strides": 0}, r"strides must be 2 positive numbers.*got 0"),
        ((1, 8, 8, 3), (3, 3, 3, 4), {"padding": "same"}, "padding must be .*got 'same'"),
    ],
)
def test_shapes_that_do_not_fit_are_named(ours, stock, x_shape, kernel_shape, options, message):
    with pytest.raises(ValueError, match=message):
        ours(jnp.zeros(x_shape), jnp.zeros(kernel_shape), **options)


@both
def test_types_that_do_not_fit_are_named(ours, stock):
    with pytest.raises(TypeError, match="x must be floating, got uint8"):
        ours(jnp.zeros((1, 8, 1), jnp.uint8), jnp.zeros((3, 1, 1)))
    with pytest.raises(TypeError, match="kernel must have the type of x, bfloat16, got float32"):
        ours(jnp.zeros((1, 8, 1), jnp.bfloat16), jnp.zeros((3, 1, 1)))


def test_window_larger_than_the_image_is_named():
    with pytest.raises(ValueError, match=r'padding "VALID" .*window \(4, 4\).*got \(1, 3, 8, 1\)'):
        conv(jnp.zeros((1, 3, 8, 1)), jnp.zeros((4, 4, 1, 1)), padding="VALID")
