"""A convolution with a constant weight gives what torch's gives, and the same gradient in its images."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from s2ap_core.training.constant_convolution import LARGE, ConstantConvolution

# Kernel, stride, padding, dilation, groups; what is padded beyond the kernel has no convolution back.
GEOMETRIES = [
    (3, 1, 1, 1, 1),
    (3, 2, 1, 1, 1),
    (1, 1, 0, 1, 1),
    (1, 2, 0, 1, 1),
    (3, 1, 2, 2, 1),
    (3, 1, 0, 1, 4),
    ((3, 1), (1, 2), (1, 0), 1, 1),
    (3, 1, 3, 1, 1),
    (5, 3, 2, 1, 2),
    ((3, 5), 1, "same", 2, 1),
    (3, 2, "valid", 1, 1),
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_result_and_gradient_are_those_of_torch(geometry, relu, large, dtype, monkeypatch):
    if large:
        monkeypatch.setattr("s2ap_core.training.constant_convolution.LARGE", 0)
    torch.manual_seed(0)
    kernel, stride, padding, dilation, groups = geometry
    conv = nn.Conv2d(8, 16, kernel, stride, padding, dilation, groups, dtype=dtype)
    ours = ConstantConvolution(conv)
    ours.relu = relu
    for seed in range(2):  # the second set of numbers replaces what was laid out of the first
        torch.manual_seed(seed)
        for tensor in (conv.weight.data, conv.bias.data):
            tensor.normal_()
        ours.set(conv.weight, conv.bias)
        for batch in (4, 3, 0):  # as images fall, fewer are left; of several processes one may have none
            x = torch.randn(batch, 8, 9, 11, dtype=dtype)
            theirs, own = (x.clone().requires_grad_() for _ in range(2))
            expected = F.relu(conv(theirs)) if relu else conv(theirs)
            found = ours(own)
            upstream = torch.randn_like(expected)
            expected.backward(upstream)
            found.backward(upstream)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(own.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    assert ("there" in ours.laid_out) == (large and dtype == torch.float32)


def test_a_large_weight_is_laid_out_once_and_asks_for_no_gradient():
    conv = nn.Conv2d(128, 128, 3, padding=1, bias=False)
    assert conv.weight.numel() > LARGE
    ours = ConstantConvolution(conv)
    ours.set(conv.weight, conv.bias)
    for _ in range(2):
        ours(torch.rand(2, 128, 4, 4, requires_grad=True)).sum().backward()
    there, back = ours.laid_out["there"], ours.laid_out["back"]
    assert there.is_mkldnn
    ours(torch.rand(2, 128, 4, 4, requires_grad=True)).sum().backward()
    assert ours.laid_out["there"] is there
    assert ours.laid_out["back"] is back
    assert conv.weight.grad is None
    torch.testing.assert_close(ours(torch.ones(1, 128, 4, 4)), conv(torch.ones(1, 128, 4, 4)), rtol=1e-4, atol=1e-4)


def test_it_can_be_copied_after_a_pass_and_gives_nan_where_torch_does():
    conv = nn.Conv2d(128, 128, 3, padding=1)
    ours = ConstantConvolution(conv)
    ours.relu = True
    ours.set(conv.weight, conv.bias)
    x = torch.rand(2, 128, 4, 4)
    expected = ours(x)
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(copied(x), expected)
    ours.set(conv.weight * torch.nan, conv.bias)
    assert ours(x).isnan().all()


def test_zeros_on_one_side_alone_are_not_its_matter():
    assert not ConstantConvolution.can_do(nn.Conv2d(2, 2, 2, padding="same"))
    assert not ConstantConvolution.can_do(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"))
