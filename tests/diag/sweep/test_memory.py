"""The memory that is predicted, against what torch's own allocator hands out as a step runs on the CPU."""

from collections.abc import Callable

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from s2ap_core.config import Config
from s2ap_core.masks.masking import attach
from s2ap_core.models import build
from s2ap_core.presets.read import read_run
from s2ap_core.training.ball import Relative, score_layers
from s2ap_core.training.iteration import iterate
from s2ap_core.training.objectives import build_objective
from s2ap_core.training.optimization import searched_parameters
from s2ap_core.training.perturbation import Perturbation
from s2ap_diag.curvature.hessian import ScoreHessian
from s2ap_diag.curvature.tracking import batch_loss
from s2ap_diag.sweep.estimate import images_of
from s2ap_diag.sweep.memory import memory_of

PRESETS = {"resnet18": "svhn-resnet18-hydra-s2ap-plain-90", "vgg16_bn": "svhn-vgg16_bn-hydra-s2ap-plain-90"}
BATCH = 256


def settings(network: str, *more: str) -> Config:
    """A run of eight channels and many images, whose memory its activations make up; nothing is evaluated."""
    batches = [f"{stage}.batch_size={BATCH}" for stage in ("pretrain", "prune", "finetune")]
    given = (*batches, "network.width=8", "evaluation.stages=[]", *more)
    return read_run(PRESETS[network], "digits", given)


def most_allocated(work: Callable[[], object]) -> int:
    """The most bytes that torch's allocator has handed out at once while a function ran, beyond those before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    now = most = 0
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize("network", PRESETS)
def test_an_iteration_takes_what_is_predicted(network):
    config = settings(network, "tracking.every=0")
    torch.manual_seed(0)
    model = attach(build(network, width=8, input_size=8, input_channels=1), 0.5).train()
    x, y = torch.rand(BATCH, 1, 8, 8), torch.randint(0, 10, (BATCH,))
    objective = build_objective(config.objective.model_copy(update={"steps": 2}))
    optimizer = torch.optim.SGD(searched_parameters(model, config.prune), lr=0.1, momentum=0.9)
    perturbation = Perturbation(model, score_layers(model), radius=Relative(0.01))

    def step() -> None:
        iterate(
            model, x, y, objective=objective, optimizer=optimizer, perturbation=perturbation,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip

    step()  # momentum, and the network that is attacked, are there from now on
    held = sum(t.nbytes for t in model.state_dict().values()) * 3
    assert held + most_allocated(step) == pytest.approx(memory_of(config, images_of(config)), rel=0.15)


@pytest.mark.parametrize("network", PRESETS)
def test_a_product_with_the_hessian_takes_what_is_predicted(network):
    config = settings(network, "tracking.every=1", f"tracking.images={BATCH}")
    assert memory_of(config, images_of(config)) > 1.3 * memory_of(
        settings(network, "tracking.every=0"), images_of(config)
    )
    torch.manual_seed(0)
    model = attach(build(network, width=8, input_size=8, input_channels=1), 0.5).train()
    x, y = torch.rand(BATCH, 1, 8, 8), torch.randint(0, 10, (BATCH,))

    def product() -> None:
        with ScoreHessian(
            model, batch_loss(build_objective(config.objective)), [(x, x, y)], batch_norm="batch"
        ) as hessian:
            hessian.matvec(torch.randn(hessian.n))

    held = sum(t.nbytes for t in model.state_dict().values()) * 4
    assert held + most_allocated(product) == pytest.approx(memory_of(config, images_of(config)), rel=0.15)
