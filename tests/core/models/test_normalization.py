"""Networks with GroupNorm against a naive rendering of it, and what has no such network."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2ap_core import models
from s2ap_core.errors import InputError
from s2ap_core.models.normalization import groups_of
from s2ap_core.training.folding import folded

CHOOSE = ("resnet18", "vgg16_bn", "wrn_28_4", "resnet50")


def build(name: str, **options: object) -> nn.Module:
    torch.manual_seed(1)
    return models.build(name, **{"width": 8, "input_size": 8, "input_channels": 1, "norm": "group"} | options)


def naive(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """Each image's groups of neighbouring channels, one by one."""
    out, size = x.clone(), x.shape[1] // norm.num_groups
    for image in range(len(x)):
        for first in range(0, x.shape[1], size):
            group = x[image, first : first + size]
            out[image, first : first + size] = (group - group.mean()) / (group.var(correction=0) + 1e-5).sqrt()
    if norm.affine:
        out = out * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
    return out


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("name", CHOOSE)
def test_each_normalisation_is_by_groups_of_each_image_and_the_rest_is_as_before(name: str, affine: bool) -> None:
    model, batch = (build(name, norm=norm, norm_affine=affine) for norm in ("group", "batch"))
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.GroupNorm)}
    assert norms.keys() == {n for n, m in batch.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    shapes = [{key: p.shape for key, p in network.named_parameters()} for network in (model, batch)]
    assert shapes[0] == shapes[1]
    seen = []
    for norm in norms.values():
        for parameter in norm.parameters():
            nn.init.uniform_(parameter, 0.5, 1.5)
        norm.register_forward_hook(lambda norm, given, out: seen.append((norm, given[0], out)))
    x = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        logits = model(x)
        assert torch.equal(model.train()(x), model.eval()(x))
        torch.testing.assert_close(model(x[:1]), logits[:1], rtol=1e-4, atol=1e-5)  # of each image alone
    assert len(seen) == 4 * len(norms)
    for norm, given, out in seen[: len(norms)]:
        torch.testing.assert_close(out, naive(norm, given), rtol=1e-4, atol=1e-4)


def test_groups_are_as_many_as_leave_eight_channels_each_and_never_one() -> None:
    for channels in range(2, 600):
        groups = groups_of(channels)
        assert channels % groups == 0
        assert groups <= 32
        assert groups == 1 or channels // groups >= 8
        assert not any(channels % more == 0 for more in range(groups + 1, min(32, channels // 8) + 1))
    assert [groups_of(width) for width in (2, 8, 16, 64, 128, 256, 512, 2048)] == [1, 1, 2, 8, 16, 32, 32, 32]


@pytest.mark.parametrize("name", CHOOSE)
def test_every_layer_learns(name: str) -> None:
    model = build(name)
    F.cross_entropy(model(torch.rand(4, 1, 8, 8)), torch.arange(4)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


def test_evaluation_lays_it_out_anew_and_keeps_the_function() -> None:
    model, x = build("wrn_28_4").eval(), torch.rand(4, 1, 8, 8)
    other = folded(model, x)
    assert other is not model
    torch.testing.assert_close(other(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_network_without_the_choice_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.NETWORKS, "mine", lambda classes, **_: nn.Linear(5, classes))
    for name in ("vit", "mine"):
        with pytest.raises(InputError, match=rf"^network.norm = 'group': {name} has one normalisation of its own"):
            build(name)
    with pytest.raises(InputError, match=r"^network.norm = 'layer': choose one of batch, group"):
        build("resnet18", norm="layer")
