"""Cheaper sources of z against the extra pass: how alike the directions are, and the mask bits that they flip."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Row, Setting
from benchmarks.worlds import digits
from s2ap_core.config import PruneSettings
from s2ap_core.masks.layers import constant_mask
from s2ap_core.masks.masking import masks
from s2ap_core.methods import MethodSettings, build_method
from s2ap_core.seeds import generator
from s2ap_core.training.ball import Relative, score_layers
from s2ap_core.training.loop import Callback, Loop
from s2ap_core.training.optimization import searched_parameters
from s2ap_core.training.perturbation import Perturbation

GAMMA = 0.01
SOURCES: Mapping[str, Mapping[str, Any]] = {
    "last": {"source": "last"},
    "attack": {"source": "attack"},
    "momentum": {"source": "momentum"},
    "subset = 0.25": {"subset": 0.25},
    "random": {"direction": "random"},
}


@dataclass
class Likeness(Callback):
    """At each iteration makes z by every source from the same state, beside that of the extra pass on the whole batch.

    Attributes:
        cosines: by source, the mean over layers of the cosine to the pass's z, by iteration.
        jaccards: by source, of the mask bits that are flipped.
    """

    probes: Mapping[str, Perturbation]
    cosines: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    jaccards: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def on_attacked(self, loop: Loop, x: Tensor, x_adv: Tensor, y: Tensor) -> None:
        if loop.epoch == 1 and loop.iteration == 0:
            return  # no last gradient yet
        found = {name: self._perturb(loop, probe, x, x_adv, y) for name, probe in self.probes.items()}
        true_z, true_flips = found.pop("pass")
        for name, (z, flips) in found.items():
            pairs = zip(z, true_z, strict=True)
            self.cosines[name].append(fmean(float(torch.cosine_similarity(*pair, dim=0)) for pair in pairs))
            union = (flips | true_flips).sum()
            self.jaccards[name].append(float((flips & true_flips).sum() / union) if union else 1.0)

    def _perturb(
        self, loop: Loop, probe: Perturbation, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        if probe.source == "attack":
            with constant_mask(loop.model), probe.watching_attack():
                loop.objective.attack(loop.model, x, y, generator(x.device, 0, "benchmark"))
        n = round(probe.subset * len(y))
        kept = [layer.tensor.grad for layer in probe.layers]
        before = _bits(loop)
        loss: Callable[[], Tensor] = partial(loop.objective.loss, loop.model, x[:n], x_adv[:n], y[:n])
        with probe.applied(loss, loop.optimizer, loop.iteration):
            assert probe.z is not None
            z, flips = [part.flatten().clone() for part in probe.z], _bits(loop) ^ before
        for layer, grad in zip(probe.layers, kept, strict=True):
            layer.tensor.grad = grad
        return z, flips


def _bits(loop: Loop) -> Tensor:
    return torch.cat([mask.flatten() for mask in masks(loop.model).values()])


def run(setting: Setting) -> list[Row]:
    world = digits(setting, epochs=1 if setting.quick else 5)
    build_method(MethodSettings(keep=0.1)).attach(world.model, generator("cpu", 0, "scores"))
    loop = world.loop("prune", searched_parameters(world.model, PruneSettings()))
    layers = score_layers(world.model)
    perturbation = partial(Perturbation, world.model, layers, radius=Relative(GAMMA))
    likeness = Likeness({"pass": perturbation(), **{name: perturbation(**o) for name, o in SOURCES.items()}})
    searching = perturbation()
    loop.perturb, loop.callbacks = lambda epoch: searching, [likeness]
    epochs = 1 if setting.quick else 4
    for loop.epoch in range(1, epochs + 1):
        loop.train_epoch()
    rows = []
    for name in SOURCES:
        cosines, jaccards = likeness.cosines[name], likeness.jaccards[name]
        detail = f"{min(cosines):.2f} to {max(cosines):.2f} over {len(cosines)} iterations, gamma {GAMMA}, digits"
        rows.append(Row(f"cosine to the pass's z: {name}", fmean(cosines), "", None, detail))
        rows.append(Row(f"flipped bits in common: {name}", fmean(jaccards), "", None, "Jaccard index of the sets"))
    return rows
