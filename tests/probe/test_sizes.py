"""Sizes from the smallest to the largest floats, and samples that keep their axes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwell.probe import sizes

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")


@pytest.mark.parametrize("exponent", [-45, -44, -40, -30, -23, -20, -12, -5, 0, 5, 14, 15, 18, 19, 25, 38])
def test_l2_of_float32_from_end_to_end(exponent):
    tensor = torch.full((1000,), 10.0**exponent, dtype=torch.float64).float()
    exact = pytest.approx(tensor.double().norm().item(), rel=1e-5, abs=0)
    assert sizes.l2(tensor) == exact
    assert sizes.l2_all([tensor, tensor * 0]) == [exact, 0.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_l2_of_every_format(dtype):
    tensor = torch.tensor([3.0, 4.0, 0.0, 60000.0], dtype=dtype)
    assert sizes.l2(tensor) == pytest.approx(tensor.double().norm().item(), rel=1e-6)
    assert sizes.nonfinite_count(tensor, sizes.l2(tensor)) == 0


@pytest.mark.parametrize("value", [1e30, math.inf])
def test_l2_of_huge_values_says_nothing_on_stderr(value):
    tensor = torch.tensor([value, 0.0])
    norm = sizes.l2(torch.stack([tensor, tensor.flip(0) - tensor]))
    assert norm > 1e29 or math.isnan(norm)


def test_what_is_not_finite_is_counted():
    tensor = torch.tensor([1.0, math.nan, math.inf, -math.inf])
    assert sizes.nonfinite_count(tensor, sizes.l2(tensor)) == 3
    sparse = torch.sparse_coo_tensor([[0, 1]], [math.nan, 1.0], (4,))
    assert sizes.nonfinite_count(sparse, sizes.l2(sparse)) == 1


def test_layouts_that_numpy_reads_badly():
    base = torch.randn(6, 4, 5, 5)
    for tensor in (
        base.to(memory_format=torch.channels_last), base.transpose(1, 3), base[:, ::2], base[0, 0, 0, :1].expand(7, 1),
        base.to_sparse(), base.to(torch.complex64) * 1j, torch.zeros(0, 3), torch.tensor(2.0), base.requires_grad_(),
    ):  # fmt: skip
        dense = tensor.detach().to_dense() if tensor.is_sparse else tensor.detach()
        assert sizes.l2(tensor) == pytest.approx(dense.abs().double().norm().item(), rel=1e-5)
    repeated = torch.sparse_coo_tensor([[1, 1]], [1.0, 2.0], (4,))
    assert sizes.l2(repeated) == 3.0


def test_a_tensor_with_the_negative_bit():
    tensor = torch.tensor([1 + 2j, 2 + 2j]).conj().imag
    assert sizes.l2(tensor) == pytest.approx(math.sqrt(8))


SHAPES = st.lists(st.integers(1, 30), min_size=0, max_size=3).map(tuple) | st.sampled_from(
    [(64, 300), (3, 17, 40, 5), (2, 3, 4, 5, 6), (1, 5000), (5000, 1), (5000,), (2, 2, 90, 90)]
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(shape=SHAPES)
def test_a_sample_is_small_and_has_three_axes(shape):
    tensor = torch.arange(float(math.prod(shape))).reshape(shape)
    found = sizes.as_array(sizes.sample(tensor))
    assert found.ndim == 3
    assert 0 < found.size <= sizes.SAMPLE
    assert set(found.ravel().tolist()) <= set(tensor.reshape(-1).tolist())
    if tensor.numel() <= sizes.SAMPLE:
        assert sorted(found.ravel().tolist()) == sorted(tensor.reshape(-1).tolist())


def test_the_axes_of_a_sample_are_batch_position_unit():
    image = torch.randn(3, 4, 5, 6)
    assert np.array_equal(sizes.sample(image), image.reshape(3, 4, 30).transpose(1, 2).numpy())
    tokens = torch.randn(3, 7, 4)
    assert np.array_equal(sizes.sample(tokens), tokens.numpy())
    plain = torch.randn(3, 4)
    assert np.array_equal(sizes.sample(plain), plain[:, None].numpy())


def test_a_sample_is_a_copy():
    tensor = torch.randn(8, 8)
    kept, flat = sizes.sample(tensor), sizes.flat_sample(tensor)
    before = tensor.clone()
    tensor.zero_()
    assert np.array_equal(kept[:, 0], before.numpy())
    assert np.array_equal(flat, before.reshape(-1).numpy())


@settings(max_examples=40, deadline=None, derandomize=True)
@given(shape=SHAPES)
def test_flat_samples_of_one_shape_match_whatever_the_layout(shape):
    tensor = torch.randn(shape)
    axes = tuple(reversed(range(tensor.dim())))
    other = tensor.permute(axes).contiguous().permute(axes)
    assert np.array_equal(sizes.flat_sample(tensor), sizes.flat_sample(other))
    assert len(sizes.flat_sample(tensor)) <= sizes.SAMPLE


def test_the_flat_sample_of_nothing_is_empty():
    assert len(sizes.flat_sample(torch.zeros(0, 3))) == 0


@pytest.mark.filterwarnings("default::UserWarning")
def test_half_precision_samples_become_float32():
    for dtype in (torch.float16, torch.bfloat16):
        tensor = torch.randn(4, 4).to(dtype)
        assert np.array_equal(sizes.as_array(sizes.flat_sample(tensor)), tensor.reshape(-1).float().numpy())


def test_a_complex_sample_keeps_its_moduli():
    tensor = torch.tensor([[3 + 4j, 0j]])
    torch.set_warn_always(True)
    try:
        found = sizes.as_array(sizes.sample(tensor))
    finally:
        torch.set_warn_always(False)
    assert np.abs(found).ravel().tolist() == [5.0, 0.0]
