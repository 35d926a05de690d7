"""How much of the largest loss difference is found, on networks so small that every mask in reach can be tried."""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from benchmarks.measure import Row, Setting, at_least
from benchmarks.worlds import sgd
from s2ap_core.config import ObjectiveSettings, StageSettings
from s2ap_core.data import load
from s2ap_core.masks.layers import score_masks
from s2ap_core.masks.masking import bake, masks, scores
from s2ap_core.methods import MethodSettings, build_method
from s2ap_core.presets.read import read_config
from s2ap_core.seeds import generator
from s2ap_core.training.loop import Loop
from s2ap_core.training.objectives import build_objective
from s2ap_diag.curvature.hessian import Loss
from s2ap_diag.curvature.loss_difference import loss_differences
from s2ap_diag.curvature.tracking import batch_loss

RHOS = (0.001, 0.0025, 0.005, 0.0075, 0.01)
MOST = 30_000  # masks to try: a ball that reaches more is left out
FEWEST = 30  # an ascent among fewer shows little
ASCENTS: dict[str, dict[str, Any]] = {
    "exchange, the default": {},
    "auto-pgd": {"ascent": "auto-pgd"},
    "auto-pgd, once, from v = 0": {"ascent": "auto-pgd", "restarts": 1},
}


def run(setting: Setting) -> list[Row]:
    shares: dict[str, list[float]] = {name: [] for name in ASCENTS}
    passes: dict[str, list[tuple[int, int]]] = {name: [] for name in ASCENTS}
    for model, loss, batch in searched_networks(setting):
        for rho in RHOS:
            reached = {name: reachable(mask.scores, mask.n_keep, rho) for name, mask in score_masks(model).items()}
            if not FEWEST <= math.prod(map(len, reached.values())) <= MOST:
                continue
            own = {name.removesuffix(".weight"): mask[None] for name, mask in masks(model).items()}
            largest = float(losses_under(model, loss, batch, reached).max() - losses_under(model, loss, batch, own))
            if largest < 1e-6:  # nothing but rounding
                continue
            for name, options in ASCENTS.items():
                (difference,) = loss_differences(model, loss, [batch], (rho,), **options)
                shares[name].append(difference.mean / largest)
                passes[name].append((difference.forward_passes, difference.backward_passes))
    return [
        Row(
            f"share of the largest loss difference that is found: {name}",
            100 * float(np.mean(shares[name])),
            "%",
            at_least(80) if not options else None,
            f"{min(shares[name]):.0%} to {max(shares[name]):.0%} in {len(shares[name])} balls, by "
            "{:.0f} passes forward and {:.0f} backward".format(*np.mean(passes[name], axis=0)),
        )
        for name, options in ASCENTS.items()
    ]


def searched_networks(setting: Setting) -> Iterator[tuple[nn.Module, Loss, tuple[Tensor, Tensor, Tensor]]]:
    """Search networks of one hidden layer for four epochs on digits; with a loss and an adversarial batch."""
    data = load("digits").to(setting.device)
    # Cross-entropy under PGD, which torch can take of many networks at once.
    objective = build_objective(ObjectiveSettings(name="pgd-at", eps="32/255", step="8/255"))
    settings = cast(StageSettings, read_config("digits").prune.model_copy(update={"batch_size": 64}))
    sizes = (16,) if setting.quick else (16, 32)
    keeps = (0.1,) if setting.quick else (0.1, 0.3)
    for hidden, norm, keep in itertools.product(sizes, (False, True), keeps):
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            norms = [nn.BatchNorm1d(hidden)] if norm else []
            layers = [nn.Flatten(), nn.Linear(64, hidden), *norms, nn.ReLU(), nn.Linear(hidden, 10)]
            model = nn.Sequential(*layers).to(setting.device)
        for stage, epochs in (("pretrain", 15), ("prune", 4)):
            parameters = list(model.parameters() if stage == "pretrain" else scores(model).values())
            loop = Loop(stage, settings, model, objective, sgd(parameters), data, 0)
            for loop.epoch in range(1, epochs + 1):
                loop.train_epoch()
            if stage == "pretrain":
                build_method(MethodSettings(keep=keep)).attach(model, generator("cpu", 0, "scores"))
        model.eval()
        x, y, _ = next(data.batches("train", 64))
        yield model, batch_loss(objective), (x, objective.attack(model, x, y, generator(x.device, 0, "gap")), y)


def reachable(scores: Tensor, n_keep: int, rho: float) -> Tensor:
    """List every mask that a layer can have under |v| <= rho |s|, boolean [masks, *shape of the scores].

    Wherever the threshold comes to lie, what cannot fall below it is kept, what cannot rise above it is not, and of
    the rest any may fill the places that are left. More than ``MOST`` are not counted out.
    """
    magnitude = scores.detach().abs().double().flatten()
    up, down = (magnitude * (1 + rho)).tolist(), (magnitude * (1 - rho)).tolist()
    kept = magnitude.argsort(descending=True)[:n_keep].tolist()
    lowest = min(down[i] for i in kept)
    dropped = set(range(len(up))) - set(kept)
    highest = max((up[i] for i in dropped), default=lowest)
    selections = {frozenset(kept)}
    for threshold in sorted({t for t in (*up, *down) if lowest <= t <= highest}):
        certain = [i for i in range(len(up)) if down[i] > threshold]
        open_ = [i for i in range(len(up)) if down[i] <= threshold <= up[i]]
        if 0 <= n_keep - len(certain) <= len(open_):
            some = itertools.combinations(open_, n_keep - len(certain))
            selections.update(frozenset(certain + list(entries)) for entries in itertools.islice(some, MOST + 1))
        if len(selections) > MOST:
            break
    bits = torch.zeros(len(selections), magnitude.numel(), dtype=torch.bool)
    for row, entries in enumerate(selections):
        bits[row, list(entries)] = True
    return bits.view(len(selections), *scores.shape).to(scores.device)


@torch.no_grad()
def losses_under(model: nn.Module, loss: Loss, batch: Any, choices: Mapping[str, Tensor], chunk: int = 2000) -> Tensor:
    """Compute the loss of a batch under each combination of these masks of the layers."""
    plain = bake(model).eval()
    weights = {name: model.get_submodule(name).parametrizations.weight.original for name in choices}  # type: ignore[union-attr]
    counts = [len(masks) for masks in choices.values()]

    def loss_of(changed: dict[str, Tensor]) -> Tensor:
        return loss(lambda x: functional_call(plain, changed, (x,)), batch)  # type: ignore[arg-type]

    losses = []
    for rows in torch.arange(math.prod(counts)).split(chunk):
        each = dict(zip(choices, np.unravel_index(rows.numpy(), counts), strict=True))
        changed = {f"{name}.weight": weights[name] * choices[name][torch.from_numpy(each[name])] for name in choices}
        losses.append(vmap(loss_of)(changed))
    return torch.cat(losses)
