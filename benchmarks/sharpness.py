"""The two sharpness metrics of a checkpoint against the arithmetic they need and against PyHessian."""

import time
import warnings
from importlib import import_module
from itertools import pairwise
from statistics import median
from unittest.mock import patch

import torch
import torch.nn.functional as F
from pyhessian import hessian as PyHessian
from pyhessian.utils import hessian_vector_product
from torch import Tensor, nn

from benchmarks.measure import Rounds, Row, Setting, at_most, interleaved, timed
from benchmarks.worlds import TRADES, bare, colour_digits, pretrained, search
from s2ap_core.masks.masking import scores
from s2ap_core.modes import gpu_arithmetic
from s2ap_core.seeds import generator
from s2ap_diag.curvature.eigen import Lanczos, lambda_max
from s2ap_diag.curvature.hessian import Loss, ScoreHessian, batch_norm_mode, score_gradient
from s2ap_diag.curvature.loss_difference import loss_difference
from s2ap_diag.curvature.tracking import batch_loss

Batch = tuple[Tensor, Tensor, Tensor]
THEIR_MODULE = import_module("pyhessian.hessian")  # as an attribute of the package it is the class


def run(setting: Setting) -> list[Row]:
    count = setting.batch(128, cpu=64)
    data = colour_digits(8 * count, setting)
    x, y, _ = next(data.batches("train", count))
    ours = search(pretrained("resnet18", data, count // 2, setting), x)
    batch = (x, ours.objective.attack(ours.model, x, y, generator(x.device, 0, "benchmark")), y)
    loss = batch_loss(ours.objective)
    with gpu_arithmetic(tf32=False):  # ours measures curvature in float32 whatever torch is set to
        return [
            _auto_pgd(setting, ours.model, loss, batch),
            _several_batches(setting, ours.model, loss, batch),
            *_lambda_max(setting, ours.model, loss, batch),
        ]


def _auto_pgd(setting: Setting, model: nn.Module, loss: Loss, batch: Batch) -> Row:
    """Time steps of Auto-PGD, each from one evaluation of the loss to the next."""
    plain = bare(model)
    weights = [m.weight for m in plain.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for parameter in plain.parameters():
        parameter.requires_grad_(any(parameter is weight for weight in weights))
    starts: list[float] = []
    steps: list[float] = []
    gradients: list[float] = []

    def loss_with_time(model: nn.Module, batch: Batch) -> Tensor:
        if setting.device.startswith("cuda"):
            torch.cuda.synchronize(setting.device)
        starts.append(time.perf_counter())
        return loss(model, batch)

    def gradient() -> None:
        with batch_norm_mode(plain, "running"):
            torch.autograd.grad(loss(plain, batch), weights)

    gradient()
    for _ in range(2):
        starts.clear()
        loss_difference(model, loss_with_time, [batch], rho=0.005, ascent="auto-pgd", steps=4, restarts=1)
        steps += [after - before for before, after in pairwise(starts[:5])]  # the rest are random draws
        gradients += [timed(gradient, setting.device) for _ in range(4)]
    rounds = Rounds({"step": [median(steps)], "gradient": [median(gradients)]})
    return Row(
        f"Auto-PGD step over a gradient on baked weights, resnet18, batch {len(batch[0])}",
        rounds.ratio("step", "gradient"),
        "x",
        at_most(1.25),
        rounds.compare("step", "gradient") + f", medians of {len(steps)}",
    )


def _several_batches(setting: Setting, model: nn.Module, loss: Loss, batch: Batch) -> Row:
    """Time a product with the Hessian of four batches, whose graphs fit and are kept, and the loss's gradient."""
    size = min(8, len(batch[0]) // 4)
    x, x_adv, y = (tensor[: 4 * size].split(size) for tensor in batch)
    parts = list(zip(x, x_adv, y, strict=True))
    with ScoreHessian(model, loss, parts) as hessian:
        v = torch.ones(hessian.n, dtype=hessian.dtype, device=hessian.device)
        hessian.matvec(v)  # builds the graphs

        def gradient() -> None:
            with hessian.surrogate() as (leaves, loss_of):
                for part in parts:
                    score_gradient(loss_of(part, 1 / len(parts)), leaves)

        gradient()
        functions = {"product": lambda: hessian.matvec(v), "gradient": gradient}
        rounds = interleaved(functions, rounds=3, device=setting.device)
    return Row(
        f"Hessian-vector product over the gradient, resnet18, {len(parts)} batches of {size}",
        rounds.ratio("product", "gradient"),
        "x",
        at_most(2.2),
        rounds.compare("product", "gradient"),
    )


def _lambda_max(setting: Setting, model: nn.Module, loss: Loss, batch: Batch) -> list[Row]:
    found: dict[str, tuple[float, int]] = {}

    def ours() -> None:
        with ScoreHessian(model, loss, [batch]) as hessian:
            reading = lambda_max(hessian, Lanczos(tolerance=1e-3))
        found["ours"] = reading.lambda_max, reading.hvps

    def theirs() -> None:
        with patch.object(THEIR_MODULE, "hessian_vector_product", wraps=hessian_vector_product) as counted:
            value = pyhessian_peer(model, batch).eigenvalues(tol=1e-3)[0][0]
        found["PyHessian"] = value, counted.call_count
        for parameter in model.parameters():
            parameter.grad = None  # PyHessian leaves its graph there

    rounds = interleaved(
        {"ours": ours, "PyHessian": theirs},
        rounds=3 if setting.quick or setting.device != "cpu" else 1,
        device=setting.device,
    )
    ratio, detail = rounds.ratio("ours", "PyHessian"), rounds.compare("ours", "PyHessian")
    values = ", ".join(f"{name} {value:.5g} by {hvps} HVPs" for name, (value, hvps) in found.items())
    return [
        Row(
            f"lambda_max to residual 1e-3 over PyHessian to tolerance 1e-3, resnet18, batch {len(batch[0])}",
            ratio,
            "x",
            at_most(1.0),
            f"{detail}; {values}",
        )
    ]


def pyhessian_peer(model: nn.Module, batch: Batch) -> PyHessian:
    """Set up PyHessian on the same loss and scores as its users call it: one batch, whose graph it keeps."""
    x, x_adv, y = batch

    class RobustLogits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = model

        def forward(self, _: Tensor) -> tuple[Tensor, Tensor]:
            return self.network(x), self.network(x_adv)

    def trades(logits: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
        clean, robust = logits
        # In logarithms: a probability that rounds to 0 would make the second derivatives NaN.
        divergence = F.kl_div(F.log_softmax(robust, 1), F.log_softmax(clean, 1), reduction="batchmean", log_target=True)
        return F.cross_entropy(clean, y) + TRADES.beta * divergence

    measured = {id(s) for s in scores(model).values()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in measured)
        parameter.grad = None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using backward.* with create_graph=True")
        return PyHessian(RobustLogits(), trades, data=(x, y), cuda=x.device.type == "cuda")
