"""The networks, images and searches that benchmarks measure on."""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from benchmarks.measure import Setting
from s2ap_core.config import ObjectiveSettings, PretrainSettings, PruneSettings, StageSettings
from s2ap_core.data import Dataset, InMemory, load
from s2ap_core.masks.masking import bake
from s2ap_core.methods import MethodSettings, build_method
from s2ap_core.models import build
from s2ap_core.modes import gpu_arithmetic
from s2ap_core.presets.read import read_config
from s2ap_core.seeds import generator
from s2ap_core.training.iteration import iterate
from s2ap_core.training.loop import Loop
from s2ap_core.training.norms import normal_start
from s2ap_core.training.objectives import Objective, build_objective
from s2ap_core.training.optimization import searched_parameters
from s2ap_core.training.perturbation import Perturbation

KEEP = 0.1
TRADES = ObjectiveSettings()  # PGD-10, eps 8/255, step 2/255, beta 6


def network(name: str, setting: Setting, width: int | None = None) -> nn.Module:
    """Build a network with fresh weights for 32x32 colour images; the time of a pass does not depend on them."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = build(name, width=width or setting.width).to(setting.device)
    if setting.device != "cpu":  # as the stages do
        model.to(memory_format=torch.channels_last)
    return model


def images(count: int, setting: Setting) -> tuple[Tensor, Tensor]:
    """Draw synthetic CIFAR images [count, 3, 32, 32] in [0, 1] and their labels [count]."""
    rng = generator("cpu", 0, "images")
    x, y = torch.rand(count, 3, 32, 32, generator=rng), torch.randint(0, 10, (count,), generator=rng)
    return x.to(setting.device), y.to(setting.device)


def colour_digits(count: int, setting: Setting) -> Dataset:
    """Take the first ``count`` digits as a training split of CIFAR's shape: where curvature should mean something."""
    (batch,) = load("digits").batches("train", count, limit=count)
    x = F.interpolate(batch.x, size=32, mode="bilinear").expand(-1, 3, -1, -1)
    return InMemory("digits32", 10, {"train": ((x * 255).byte().numpy(), batch.y.numpy())}).to(setting.device)


def pretrained(name: str, data: Dataset, batch: int, setting: Setting) -> nn.Module:
    """Train a network for one epoch, plainly; 0.1 would throw it to where logits lie hundreds apart."""
    model = network(name, setting)
    settings = PretrainSettings(batch_size=batch, lr=0.01)
    objective = build_objective(ObjectiveSettings(name="clean"))
    loop = Loop("pretrain", settings, model, objective, sgd(list(model.parameters())), data, 0, epoch=1)
    loop.train_epoch()
    return model


@dataclass
class Search:
    """A HYDRA search by TRADES, as the prune stage sets it up."""

    model: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    tf32: bool = True

    def iterate(self, x: Tensor, y: Tensor, perturbation: Perturbation | None = None) -> None:
        rng = generator(x.device, 0, "benchmark")
        with gpu_arithmetic(tf32=self.tf32):
            iterate(
                self.model,
                x,
                y,
                objective=self.objective,
                optimizer=self.optimizer,
                generator=rng,
                perturbation=perturbation,
            )


def search(model: nn.Module, x: Tensor, objective: ObjectiveSettings = TRADES, precision: str = "tf32") -> Search:
    """Mask ``model`` in place and make it ready to be searched; ``x`` settles the running statistics."""
    build_method(MethodSettings(keep=KEEP)).attach(model, generator("cpu", 0, "scores"))
    settle_statistics(model, x)
    optimizer = sgd(searched_parameters(model, PruneSettings()))
    return Search(model.train(), build_objective(objective).autocast(precision), optimizer, precision == "tf32")


def sgd(parameters: list[nn.Parameter]) -> torch.optim.SGD:
    """Build the optimizer of every stage."""
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=5e-4)


def settle_statistics(model: nn.Module, x: Tensor) -> None:
    """Estimate running statistics that belong to these masks: without them activations die out in eval mode."""
    with torch.no_grad():
        update_bn([x], model)


def bare(model: nn.Module) -> nn.Module:
    """Build the network with its masks baked in; what the search trains of it is its weights and its BatchNorm."""
    plain = bake(model)
    for layer in plain.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight.requires_grad_(True)
    return plain.train()


def bare_passes(plain: nn.Module, x: Tensor, y: Tensor, objective: Objective, steps: int = TRADES.steps) -> None:
    """Do the arithmetic of an iteration of TRADES: 1 + ``steps`` + 2 passes forward, ``steps`` + 1 backward."""
    plain.eval()
    with torch.no_grad():
        p_clean = F.softmax(plain(x), dim=1)
    x_adv = normal_start(x, 0.001, generator(x.device, 0, "benchmark"))
    for _ in range(steps):
        x_adv.requires_grad_()
        divergence = F.kl_div(F.log_softmax(plain(x_adv), dim=1), p_clean, reduction="sum")
        (gradient,) = torch.autograd.grad(divergence, [x_adv])
        x_adv = x_adv.detach() + float(TRADES.step) * gradient.sign()
        x_adv = (x + (x_adv - x).clamp(-float(TRADES.eps), float(TRADES.eps))).clamp(0, 1)
    plain.train()
    plain.zero_grad()
    objective.loss(plain, x, x_adv, y).backward()


@dataclass(frozen=True)
class Digits:
    """A narrow ResNet-18 that was trained robustly on scikit-learn's digits for a few epochs."""

    model: nn.Module
    data: Dataset
    objective: ObjectiveSettings
    settings: StageSettings

    def loop(self, stage: str, parameters: list[nn.Parameter]) -> Loop:
        """Build a stage on this network, ready for :meth:`Loop.train_epoch`."""
        objective = build_objective(self.objective)
        return Loop(stage, self.settings, self.model, objective, sgd(parameters), self.data, 0)


def digits(setting: Setting, *, epochs: int) -> Digits:
    """Pretrain on digits; deterministic. Narrower where the suite is to be quick."""
    config = read_config("digits")
    settings = cast(StageSettings, config.pretrain.model_copy(update={"epochs": epochs}))
    data = load("digits").to(setting.device)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        width = 2 if setting.quick else config.network.width
        model = build("resnet18", width=width, input_size=data.size, input_channels=data.channels)
    world = Digits(model.to(setting.device), data, config.objective, settings)
    loop = world.loop("pretrain", list(model.parameters()))
    for loop.epoch in range(1, epochs + 1):
        loop.train_epoch()
    return world
