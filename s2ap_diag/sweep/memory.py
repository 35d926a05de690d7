"""The memory of a run's tensors, followed through its largest steps on the meta device, where nothing is computed."""

import json
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from s2ap_core.config import Config
from s2ap_core.masks.layers import constant_mask, one_mask
from s2ap_core.masks.masking import attach, scores
from s2ap_core.runs import course
from s2ap_core.runs.checkpoints import Images, build_network, describe_network
from s2ap_core.runs.passes import passes_of_a_loss
from s2ap_diag.curvature.memory import LiveBytes

KEPT = 3
"""Tensors of the scores' size that an iteration holds besides scores and weights: their gradient, its momentum, and the
attack's convolutions with BatchNorm folded in."""

KEPT_PERTURBED = 5
"""With z, and what is perturbed as it was."""


class _Steps(NamedTuple):
    """How many images a run's largest steps take at once; 0 for a step that it does not make.

    Attributes:
        losses: forward passes of the loss that is trained on.
        modes: of BatchNorm, in which products with the Hessian are made.
    """

    trained: int
    tracked: int
    attacked: int
    losses: int
    kept: int
    modes: tuple[str, ...]


def memory_of(config: Config, images: Images) -> float:
    """Predict the bytes of the tensors that a run holds at its largest step, Python and its packages apart.

    That is an iteration, a product with the Hessian that its search tracks, or a pass of an attack of its evaluation.
    On a CPU oneDNN takes more for layouts of its own.
    """
    batch = max(getattr(config, stage).batch_size for stage in course.trained(config))
    tracking, searched = config.tracking, course.search_epochs(config) > 0
    perturbed = len(course.perturbed(config)) > 0 or config.finetune.awp
    steps = _Steps(
        trained=batch,
        tracked=min(tracking.images or batch, config.prune.batch_size) if tracking.every and searched else 0,
        attacked=config.evaluation.batch_size if config.evaluation.stages else 0,
        losses=passes_of_a_loss(config.objective),
        kept=KEPT_PERTURBED if perturbed else KEPT,
        modes=tuple(course.batch_norm_modes(config)),
    )
    return _most(json.dumps(describe_network(config, images)), steps)


@cache
def _most(described: str, steps: _Steps) -> int:
    network = json.loads(described)
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH):
        model = attach(build_network(network), 0.5).train()
        searched = list(scores(model).values())
        for parameter in model.parameters():
            parameter.requires_grad_(any(parameter is s for s in searched))
        held = [torch.empty_like(s) for s in searched for _ in range(steps.kept)]
        with LiveBytes([*model.parameters(), *model.buffers(), *held]) as live:
            with one_mask(model):
                torch.autograd.grad(_loss(model, network, steps.trained, steps.losses), searched)
            for mode in steps.modes if steps.tracked else ():
                model.train(mode == "batch")
                with one_mask(model):
                    loss = _loss(model, network, steps.tracked, steps.losses)
                    gradient = torch.autograd.grad(loss, searched, create_graph=True)
                    vector = [torch.empty_like(s) for s in searched]
                    torch.autograd.grad(gradient, searched, vector, retain_graph=True)  # for the products to come
                    del loss, gradient
            if steps.attacked:
                x = _images(network, steps.attacked).requires_grad_()
                with constant_mask(model.eval()):
                    torch.autograd.grad(_cross_entropy(model, x), x)
    return int(live.most)


def _images(network: dict[str, Any], count: int) -> Tensor:
    return torch.empty(count, network["input_channels"], network["input_size"], network["input_size"])


def _loss(model: nn.Module, network: dict[str, Any], count: int, passes: int) -> Tensor:
    """Make so many passes of a loss; which one it is does not matter beside the network's activations."""
    losses = [_cross_entropy(model, _images(network, count)) for _ in range(passes)]
    return torch.stack(losses).sum()


def _cross_entropy(model: nn.Module, x: Tensor) -> Tensor:
    return F.cross_entropy(model(x), torch.empty(len(x), dtype=torch.long))
