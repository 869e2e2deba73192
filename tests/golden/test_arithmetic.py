"""Arrays with another arithmetic: loops to the bit, in the functions of the layers too, and rounded products."""

import numpy as np
import pytest

import npgemma
from npgemma.golden.arithmetic import Bfloat16Operations, InEightSums, InOneSum, Looped, computing_as, looped, modelled
from npgemma.layers.attention import attend
from npgemma.layers.bits import round_to_bfloat16
from npgemma.layers.linear import linear
from npgemma.layers.norms import LayerNorm, RMSNorm, layer_norm, rms_norm
from npgemma.layers.taps import Recorder

RNG = np.random.default_rng(0)
ORDERS = pytest.mark.parametrize("order", [InOneSum, InEightSums])


def numbers(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32)


def looped_sum(terms: np.ndarray, parts: int) -> np.float32:
    """A running sum over each of `parts` parts of one row, and one over these."""
    result = None
    for part in np.array_split(terms, min(parts, len(terms))):
        running = part[0]
        for term in part[1:]:
            running = np.float32(running + term)
        result = running if result is None else np.float32(result + running)
    return result


def looped_product(x: np.ndarray, w: np.ndarray, parts: int) -> np.ndarray:
    return np.array([[looped_sum(row * other, parts) for other in w] for row in x])


@ORDERS
@pytest.mark.parametrize("width", [1, 7, 8, 33])
def test_a_sum_is_a_loop(order: type[Looped], width: int) -> None:
    x = numbers(3, width)
    expected = np.array([looped_sum(row, order.running_sums) for row in x])
    np.testing.assert_array_equal(x.view(order).sum(-1), expected)
    np.testing.assert_array_equal(x.view(order).sum(-1, keepdims=True), expected[:, None])
    np.testing.assert_array_equal(x.T.view(order).sum(0), expected)
    np.testing.assert_array_equal(x.view(order).mean(-1), expected / np.float32(width))


@ORDERS
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16 bits"])
def test_a_linear_layer_is_a_loop(order: type[Looped], rows: int, dtype: str) -> None:
    """Few rows of bfloat16 bits are multiplied in two halves, which are two loops."""
    x, w = numbers(rows, 21), numbers(5, 21)
    stored = w
    if dtype != "float32":
        stored = (w.view(np.uint32) >> 16).astype(np.uint16)
        w = (stored.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(linear(x.view(order), stored), looped_product(x, w, order.running_sums))


@ORDERS
def test_products_of_stacks_are_loops(order: type[Looped]) -> None:
    a, b = numbers(2, 1, 3, 9), numbers(4, 9, 2)
    y = a.view(order) @ b
    assert y.shape == (2, 4, 3, 2)
    for i, j in np.ndindex(2, 4):
        np.testing.assert_array_equal(y[i, j], looped_product(a[i, 0], b[j].T, order.running_sums))


@ORDERS
def test_norms_and_attention_sum_in_loops(order: type[Looped]) -> None:
    x, p = numbers(3, 40), RMSNorm(numbers(40), 1e-6)
    squares = np.array([looped_sum(row * row, order.running_sums) for row in x])[:, None] / np.float32(40)
    expected = x / np.sqrt(squares + np.float32(p.eps)) * (1 + p.weight)
    np.testing.assert_array_equal(rms_norm(p, x.view(order)), expected)
    q, keys, values = numbers(2, 2, 9), numbers(70, 1, 9), numbers(70, 1, 9)
    taps = Recorder()
    heads = attend(q.view(order), keys, values, np.ones((2, 70), bool), computing_as(taps, order))
    scores = looped_product(q[:, 1], keys[:, 0], order.running_sums)
    np.testing.assert_array_equal(taps["dots"][1], scores)
    np.testing.assert_array_equal(heads[:, 1], looped_product(taps["probs"][1], values[:, 0].T, order.running_sums))
    total = np.array([looped_sum(row, order.running_sums) for row in taps["exp"][1]])
    np.testing.assert_array_equal(taps["probs"][1], taps["exp"][1] / total[:, None])


@pytest.mark.parametrize(("sums", "tolerance"), [(1, 0.1), (8, 0.35)])
def test_a_model_of_loops_has_errors_as_large_as_theirs(sums: int, tolerance: float) -> None:
    """The model rounds its result once more: a fifth of the error of eight sums."""
    a, b = numbers(32, 4096), numbers(4096, 64)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    loops, model = (np.std(f(a, b, sums) - exact) for f in (looped, modelled))
    assert model == pytest.approx(loops, rel=tolerance)


def test_products_are_rounded_before_a_bias_is_added() -> None:
    x, w, bias = numbers(3, 21), numbers(5, 21), numbers(5)
    np.testing.assert_array_equal(linear(x.view(Bfloat16Operations), w, bias), round_to_bfloat16(x @ w.T) + bias)
    np.testing.assert_array_equal(x.view(Bfloat16Operations).sum(-1), x.sum(-1))


def test_the_operations_of_a_norm_are_rounded() -> None:
    x, weight, bias = numbers(3, 21), numbers(21), numbers(21)
    standard = round_to_bfloat16(layer_norm(LayerNorm(np.ones(21, np.float32), np.zeros(21, np.float32), 1e-6), x))
    found = layer_norm(LayerNorm(weight, bias, 1e-6), x.view(Bfloat16Operations))
    np.testing.assert_array_equal(found, round_to_bfloat16(standard * weight) + bias)


def test_other_dtypes_sum_as_usual() -> None:
    x = RNG.standard_normal((4, 300))
    np.testing.assert_array_equal(x.view(InOneSum).sum(-1), x.sum(-1))
    np.testing.assert_array_equal(x.view(InOneSum) @ x.T, x @ x.T)


SUMS = ("attn_norm", "q", "probs", "heads", "out", "logits")


def test_every_tensor_of_a_run_is_computed_in_the_order() -> None:
    """A run in one order differs from NumPy's in nearly all tensors that are sums, and a tap sees ordinary arrays."""
    model = npgemma.load()
    inputs = model.processor([npgemma.sample_picture()], ["caption en"])
    usual, looped = Recorder(), Recorder()
    for tap in (usual, computing_as(looped, InOneSum)):
        model.forward(inputs.input_ids[0], inputs.pixel_values, tap=tap)
    for name, x in looped.items():
        assert type(x) is np.ndarray
        if name.rpartition(".")[2] in SUMS:
            assert (x != usual[name]).any(), name


def test_sums_over_rows_are_rounded_after_each_row_in_16_bits() -> None:
    """A sum of ones ends at 256 in bfloat16: 256 + 1 is rounded to 256. Other sums have their usual order."""
    ones = np.ones((300, 2), np.float32).view(Bfloat16Operations)
    assert ones.sum((0,)).tolist() == [256, 256]
    assert ones.sum(0).tolist() == [300, 300]
    assert ones.T.sum(-1).tolist() == [300, 300]
    table = np.zeros((3, 2), np.float32)
    np.add.at(table, [1] * 299 + [2], ones)
    assert table.tolist() == [[0, 0], [256, 256], [1, 1]]
