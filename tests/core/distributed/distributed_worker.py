"""What test_distributed.py runs in one process and, started by torchrun, in two: FOLDER, then sections.

Each process writes what its sections returned to FOLDER/rank-N.pt.
"""

import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2ap_core import distributed
from s2ap_core.config import EvaluationSettings, ObjectiveSettings, PruneSettings, parse_config
from s2ap_core.data import InMemory, load
from s2ap_core.errors import InputError
from s2ap_core.masks.masking import masks, scores
from s2ap_core.methods import MethodSettings, build_method
from s2ap_core.models import build
from s2ap_core.runs.checkpoints import load_checkpoint
from s2ap_core.runs.directory import RunDirectory
from s2ap_core.seeds import generator
from s2ap_core.training.ball import Flips, Relative, score_layers, weight_layers
from s2ap_core.training.evaluation import evaluate
from s2ap_core.training.iteration import iterate
from s2ap_core.training.loop import Loop
from s2ap_core.training.objectives import build_objective
from s2ap_core.training.optimization import searched_parameters
from s2ap_core.training.perturbation import Perturbation
from s2ap_core.training.stages import Stages
from s2ap_diag.curvature.eigen import Lanczos
from s2ap_diag.curvature.tracking import build_trackers
from s2ap_diag.sharpness import SharpnessSettings, measure_sharpness

THREAT = {"eps": "32/255", "step": "16/255", "steps": 2}
RUN = {
    "network": {"name": "resnet18", "width": 4},
    "objective": THREAT,
    "method": {"name": "harp", "keep": 0.3},
    "minimizer": {"name": "s2ap", "gamma": 0.01, "warmup": 1},
    "pretrain": {"epochs": 1, "batch_size": 400},
    "prune": {"epochs": 2, "batch_size": 400},
    "finetune": {"epochs": 1, "batch_size": 400, "awp": True},
    "evaluation": {"attack": "pgd-50", "n": 10, "batch_size": 4, "stages": ["finetune"]},
    "tracking": {"every": 2, "images": 31, "iterations": 2},
}


class Wide(InMemory):
    """Its images in the default floating-point type."""

    def batches(self, *args: Any, **options: Any) -> Any:
        for batch in super().batches(*args, **options):
            yield batch._replace(x=batch.x.to(torch.get_default_dtype()))


def digits(count: int) -> InMemory:
    """The first so many training digits."""
    full = load("digits")
    batch = next(full.batches("train", count))
    val = next(full.batches("val", 50))
    splits = {name: ((16 * b.x).byte().numpy(), b.y.numpy()) for name, b in (("train", batch), ("val", val))}
    return Wide("digits", 10, splits, scale=16)


def network(size: int) -> nn.Module:
    torch.manual_seed(0)
    return build("resnet18", width=4, input_size=size, input_channels=1)


def search(name: str, size: int = 16) -> tuple[nn.Module, Any, torch.optim.Optimizer]:
    model, method = network(size), build_method(MethodSettings(name=name, keep=0.2, penalty=0.1))
    method.attach(model, generator("cpu", 0, "scores"))
    parameters = searched_parameters(model, PruneSettings())
    return model, method, torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)


def images(count: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    x = torch.rand(count, 1, 16, 16, generator=rng, dtype=torch.float64)
    return x.to(torch.get_default_dtype()), torch.randint(0, 10, (count,), generator=rng)


def double(section: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        torch.set_default_dtype(torch.float64)
        try:
            return section()
        finally:
            torch.set_default_dtype(torch.float32)

    return run


def sums() -> Any:
    rng = torch.Generator().manual_seed(10 + distributed.rank())
    tensors = [torch.randn(3, 2, generator=rng).t(), torch.randn((), generator=rng, dtype=torch.float64)]
    return (
        tensors,
        distributed.add_up(tensors),
        distributed.gather_in_order([str(i) for i in distributed.own_items(range(5))]),
    )


def refused() -> Any:
    def refuse() -> None:
        raise InputError("only the first asks")

    try:
        distributed.from_first(refuse)
    except InputError as error:
        return str(error)


def normalised(norm: nn.Module, whole: Tensor, rows: slice) -> dict[str, Tensor]:
    """Output, first and second derivatives of a loss in the images of ``rows`` and the parameters, statistics."""
    x, weights = whole[rows].clone().requires_grad_(), torch.arange(1.0, len(whole) + 1)[rows]
    out = norm(x)
    loss = (weights * (out.flatten(1).pow(3).sum(1))).sum()
    gradient = torch.autograd.grad(loss, (x, *norm.parameters()), create_graph=True)
    second = torch.autograd.grad((gradient[0] * x.detach().cos()).sum(), (x, *norm.parameters()))
    found = {"out": out, "x": gradient[0], "xx": second[0]}
    for name, tensors in (("p", gradient[1:]), ("xp", second[1:])):
        found |= {f"{name}{i}": total for i, total in enumerate(distributed.add_up(list(tensors)))}
    found |= {"mean": norm.running_mean, "var": norm.running_var, "seen": norm.num_batches_tracked}
    return {name: tensor.detach().clone() for name, tensor in found.items()}


@double
def batch_norm() -> Any:
    found = {}
    for count in (7, 1):  # unequal parts, and a process without an image
        norm = nn.BatchNorm2d(3, momentum=0.3)
        nn.init.uniform_(norm.weight, generator=torch.Generator().manual_seed(2))
        shell, rows = nn.Sequential(norm), slice(distributed.rank(), None, distributed.world())
        whole = 5 + 3 * torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(3))
        with distributed.batch_statistics(shell, "sync"):
            inside = isinstance(norm, nn.BatchNorm2d), [*shell.state_dict()]
            found[count] = normalised(norm, whole, rows), inside
        assert type(norm) is nn.BatchNorm2d
    return found


@double
def iterations() -> Any:
    """One iteration each on batches whose parts are unequal, or where one process has no image."""
    found = {}
    cases = [("hydra", 5, {"perturbs": score_layers}), ("harp", 3, {"perturbs": score_layers, "subset": 0.4})]
    cases += [("hydra", 7, {"perturbs": weight_layers, "subset": 0.1}), ("harp", 9, {}), ("hydra", 1, {})]
    cases += [("hydra", 6, {"perturbs": score_layers, "subset": 0.5, "dropout": True})]
    cases += [("hydra", 4, {"perturbs": score_layers, "source": "attack"})]
    cases += [("harp", 8, {"perturbs": score_layers, "direction": "random"})]
    cases += [("hydra", 2, {"perturbs": score_layers, "radius": Flips(0.1)})]
    cases += [("harp", 1, {"threat": {"norm": "L1", "eps": "2", "step": "1"}})]
    cases += [("harp", 2, {"threat": {"name": "pgd-at", "norm": "L2", "eps": "1/2", "step": "1/4"}})]
    for name, count, options in cases:
        objective = build_objective(ObjectiveSettings(**{**THREAT, **options.pop("threat", {})}))
        options.setdefault("radius", Relative(0.1))
        model, method, optimizer = search(name)
        perturbs = options.pop("perturbs", None)
        if options.pop("dropout", False):
            model.layer3.register_forward_pre_hook(lambda layer, given: F.dropout(given[0], 0.3, layer.training))
        z = perturbs and Perturbation(model, perturbs(model), **options)
        x, y = images(count)
        share = distributed.Share.own(count)
        rows = slice(share.rank, None, share.world)
        with distributed.batch_statistics(model.train(), "sync"):
            step = iterate(
                model, x[rows], y[rows], objective=objective, optimizer=optimizer,
                generator=share.generator("cpu", 0, "noise"), share=share, perturbation=z,
                penalty=lambda model=model, method=method: method.penalty(model, 0),
            )  # fmt: skip
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found[name, count] = [step.loss, *gradients, *(z.z if z else []), *(b.clone() for b in model.buffers())]
    return found


def lone_image() -> Any:
    """Gradients of one image with BatchNorm's local statistics: one process has none."""
    model, _, optimizer = search("hydra")
    x, y = images(1)
    share = distributed.Share.own(1)
    rows = slice(share.rank, None, share.world)
    objective = build_objective(ObjectiveSettings(**THREAT))
    with distributed.batch_statistics(model.train(), "local"):
        step = iterate(
            model, x[rows], y[rows], objective=objective, optimizer=optimizer,
            generator=share.generator("cpu", 0, "noise"), share=share,
        )  # fmt: skip
    return [step.loss, *(p.grad for p in model.parameters() if p.grad is not None), *model.buffers()]


def searched(lr: float) -> dict[str, Tensor]:
    """The masks after two epochs of search on digits; the last batch of each has three images."""
    data = digits(387)
    model, method, optimizer = search("hydra", size=8)
    settings = PruneSettings(batch_size=128, lr=lr, epochs=2)
    perturbation = Perturbation(model, score_layers(model), radius=Relative(0.01))
    loop = Loop(
        "prune", settings, model, build_objective(ObjectiveSettings(**THREAT)), optimizer, data, 0,
        method=method, perturb=lambda epoch: perturbation,
    )  # fmt: skip
    for loop.epoch in (1, 2):
        loop.train_epoch()
    return {**masks(model), "validation": torch.tensor(list(loop.validate(loop.candidate()).values()))}


@double
def candidate() -> list[Tensor]:
    """What HARP offers before its search: BatchNorm's statistics under the cut mask, and what they validate to."""
    model, method, optimizer = search("harp", size=8)
    settings, objective = PruneSettings(batch_size=128), build_objective(ObjectiveSettings(**THREAT))
    loop = Loop("prune", settings, model, objective, optimizer, digits(387), 0, method=method)
    cut = loop.candidate()
    return [*cut.buffers(), torch.tensor(list(loop.validate(cut).values()))]


def float32() -> dict[str, Tensor]:
    return searched(0.001)


@double
def float64() -> dict[str, Tensor]:
    return searched(0.05)


def run(folder: Path) -> None:
    """All stages."""
    directory = distributed.from_first(lambda: RunDirectory.create(folder, parse_config(RUN, "test"), "cpu"))
    Stages(directory, load("digits"), callbacks=build_trackers(directory.config.tracking)).all()


def measured(checkpoint: Path, evals: Path) -> Any:
    """A checkpoint's sharpness and its accuracy, on three batches each: one process has two of them."""
    found = load_checkpoint(checkpoint)
    options: dict[str, Any] = {"images": 40, "batch_size": 16, "rho": (0.01,), "steps": 1}
    options["solver"] = Lanczos(iterations=3)
    data, objective, records = load("digits"), ObjectiveSettings(**THREAT), []
    with torch.no_grad():  # a channel that keeps no weight
        next(iter(scores(found.model).values()))[0] = 0.0
    for mode in ("running", "batch"):
        settings = SharpnessSettings(batch_norm=mode, **options)
        records.append(measure_sharpness(found, data, objective, settings).record())
    settings = EvaluationSettings(attack="apgd", n=3, batch_size=1)
    evaluation = evaluate(found.model, data, settings, eps=Fraction(1, 10), file=evals)
    return records, evaluation


SECTIONS = {
    "sums": sums,
    "refused": refused,
    "batch_norm": batch_norm,
    "iterations": iterations,
    "lone_image": lone_image,
    "candidate": candidate,
    "float32": float32,
    "float64": float64,
}


def main(folder: Path, checkpoint: Path) -> None:
    torch.set_num_threads(1)
    with distributed.process_group():
        found = {name: section() for name, section in SECTIONS.items()}
        run(folder / "run")
        found["measured"] = measured(checkpoint, folder / "measured.npz")
        torch.save(found, folder / f"rank-{distributed.rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    distributed.leave(0)
