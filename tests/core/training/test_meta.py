"""What a GPU would be waited for: torch's meta device has no values, so reading one back raises."""

import pytest
import torch
from torch import nn

from s2ap_core.config import ObjectiveSettings, PruneSettings
from s2ap_core.masks.topk import topk_mask
from s2ap_core.methods import MethodSettings, build_method
from s2ap_core.models import build
from s2ap_core.training.ball import Flips, Relative, score_layers
from s2ap_core.training.iteration import iterate
from s2ap_core.training.objectives import build_objective
from s2ap_core.training.optimization import searched_parameters
from s2ap_core.training.perturbation import Perturbation

X, Y = torch.empty(6, 3, 8, 8, device="meta"), torch.empty(6, dtype=torch.long, device="meta")
SOURCES = ["last", "attack", "momentum"]
# Each kind of mask; not harp-channels, whose FLOPs are added up on the CPU.
SEARCHES = [
    *((method, "number") for method in ("harp", "rlth", "harp-units", "harp-heads", "hydra-erk", "hydra-channels")),
    *(("hydra", how) for how in ("number", "flips", *SOURCES)),
    ("hydra-erk", "flips"),
]  # fmt: skip


def searched(method: str) -> tuple[nn.Module, object]:
    network, width = ("vit", 128) if method in ("harp-units", "harp-heads") else ("resnet18", 4)
    model = build(network, width=width, input_size=8)
    budget = {"flops_reduction": 1.5} if "channels" in method else {"keep": 0.3}
    attached = build_method(MethodSettings(name=method, **budget))
    attached.image_shape = (3, 8, 8)
    attached.attach(model, torch.Generator().manual_seed(0))
    return model.to("meta").train(), attached


@pytest.mark.parametrize(("method", "how"), SEARCHES)
def test_an_iteration_reads_nothing_back(method, how):
    model, attached = searched(method)
    radius = Flips(0.01) if how == "flips" else Relative(0.01)
    source = how if how in SOURCES else "pass"
    perturbation = Perturbation(model, score_layers(model), radius=radius, source=source)
    optimizer = torch.optim.SGD(searched_parameters(model, PruneSettings()), 0.1, momentum=0.9)
    for _ in range(2 if how in SOURCES else 1):  # the first has neither a last gradient nor momentum
        step = iterate(
            model, X, Y, optimizer=optimizer, perturbation=perturbation, clip=1.0,
            objective=build_objective(ObjectiveSettings(steps=1)),
            generator=torch.Generator().manual_seed(0), penalty=lambda: attached.penalty(model, 0),
        )  # fmt: skip
        assert step.loss.is_meta
        assert step.x_adv.is_meta


@pytest.mark.parametrize("n_keep", [0, 2, 6])
def test_a_mask_that_keeps_all_or_nothing_reads_nothing_back(n_keep):
    assert topk_mask(torch.rand(2, 3, device="meta"), n_keep).is_meta


def test_a_learned_rate_of_channels_is_read_once(monkeypatch):
    model, attached = searched("harp-channels")
    read = []
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: read.append(len(self)) or torch.ones(self.shape))
    attached.penalty(model, 0)
    assert len(read) == 1
