"""A folder of many runs of the paper's size, made up from one run of seconds: methods, budgets, arms and folds."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from s2ap_core.files.tensors import load_tensors, save_masks, save_tensors
from s2ap_core.training.evaluation import load_evaluation
from tests.diag.report.pages import copy

LAYERS = ["conv1", *(f"layer{i // 4 + 1}.{i // 2 % 2}.conv{i % 2 + 1}" for i in range(16)), "linear"]
EPOCHS, WARMUP = 12, 3
ARMS = {
    "orig": {},
    "s2ap": {"minimizer": {"name": "s2ap", "gamma": 0.01, "warmup": WARMUP}, "finetune": {"awp": True}},
    "awp": {"minimizer": {"name": "awp", "gamma": 0.0075, "warmup": WARMUP}},
}
"""The settings of an arm."""


def gallery(
    run: Path,
    folder: Path,
    *,
    methods: tuple[str, ...] = ("hydra", "harp"),
    keeps: tuple[float, ...] = (0.1, 0.05),
    arms: tuple[str, ...] = tuple(ARMS),
    folds: int = 3,
    attack: str = "apgd",
    finetuning: int = 10,
    pruned: bool = True,
) -> None:
    """Write the runs; arm s2ap is flatter and less robust than the others by design, awp like orig.

    Args:
        pruned: whether their last masks are of the budget, and not as in ``run``.
    """
    for m, method in enumerate(methods):
        for k, keep in enumerate(keeps):
            for fold in range(folds):
                for a, arm in enumerate(arms):
                    to = folder / f"{method}-{keep:g}-{arm}-{fold}"
                    rng = np.random.default_rng([m, k, fold, a])
                    changed = {
                        "method": {"name": method, "keep": keep}, "seed": fold, "prune": {"epochs": EPOCHS},
                        "finetune": {"epochs": finetuning}, **_merged(ARMS[arm], finetuning),
                        "data": {"options": {"fold": fold}}, "evaluation": {"attack": attack},
                    }  # fmt: skip
                    copy(run, to, **changed)
                    if pruned:
                        _prune_to(to, keep)
                    _measure(to, rng, arm, fold, attack, finetuning)


def _prune_to(run: Path, keep: float) -> None:
    """Give the last network masks of this budget."""
    file = run / "ckpt/finetune-best.safetensors"
    tensors, header = load_tensors(file)
    for key, tensor in tensors.items():
        if key.endswith(".mask"):
            kept = torch.arange(tensor.numel()) < math.ceil(keep * tensor.numel())
            tensors[key] = kept[torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))].view(
                tensor.shape
            )
    save_tensors(file, tensors, {k: v for k, v in header.items() if k != "sha256"} | {"keep": keep})


def _merged(settings: Mapping[str, dict], finetuning: int) -> dict:
    return {**settings, "finetune": {"epochs": finetuning, **settings.get("finetune", {})}}


def _measure(to: Path, rng: np.random.Generator, arm: str, fold: int, attack: str, finetuning: int) -> None:
    flat = 0.7 if arm == "s2ap" else 1.0
    rows = [("finetune", e, "", "val_loss", 1 / e + rng.random() / 9) for e in range(1, finetuning + 1)]
    for epoch in range(EPOCHS + 1):
        rise = 1 + epoch / 4
        for mode in ("running", "batch"):
            live = rise * (flat if epoch > WARMUP else 1) * rng.lognormal(1, 0.2)
            rows.append(("prune", epoch, "", f"lambda_max_live_{mode}", live))
            rows.append(("prune", epoch, "", f"lambda_max_{mode}", live * (300 if epoch % 5 == 4 else 1.1)))
        rows.append(("prune", epoch, "", "val_loss", 2 / (1 + epoch) + rng.random() / 9))
        if epoch > WARMUP and arm == "s2ap":
            rows += [
                ("prune", epoch, "", f"perturbation_flips/{layer}", rng.poisson(i)) for i, layer in enumerate(LAYERS)
            ]
    table = pd.DataFrame(rows, columns=["stage", "epoch", "iteration", "metric", "value"])
    table.to_csv(to / "metrics.csv", index=False)
    mask = {f"{layer}.weight": rng.random((24, 6, 3)) < 0.3 for layer in LAYERS}
    for epoch in range(EPOCHS + 1):
        save_masks(to / f"masks/epoch-{epoch:03d}.safetensors", {n: torch.from_numpy(m) for n, m in mask.items()}, {})
        for i, one in enumerate(mask.values()):
            moved = rng.random(one.shape) < 0.002 * i / (1 + epoch / 3)
            one ^= moved
    (to / "sharpness.json").write_text(json.dumps([_sharpness(rng, flat)]))
    results = json.loads((to / "results.json").read_text())
    for stage in ("pretrain", "prune", "finetune"):
        file = to / f"evals/{stage}.npz"
        results[f"evaluate-{stage}"] = _evaluate(
            file, rng, {"prune": 0.5, "finetune": 0.6}.get(stage, 0.7), arm, fold, attack
        )
    (to / "results.json").write_text(json.dumps(results))


def _sharpness(rng: np.random.Generator, flat: float) -> dict:
    live = flat * rng.lognormal(1, 0.3)
    rises = {
        f"{rho:g}": {"mean": 60 * rho * flat * rng.lognormal(0, 0.2), "ascent": "exchange", "steps": 9}
        for rho in (0.001, 0.003, 0.01)
    }
    return {
        "lambda_max": live * 200, "lambda_max_live": live, "batch_norm": "running", "loss_difference": rises,
        "residual": 0.01, "residual_live": 0.01, "converged": True, "converged_live": True, "dead_share": 0.9,
        "batches": 1, "batch_size": 64, "adversary": "pgd", "n_scores": 1000,
    }  # fmt: skip


def _evaluate(file: Path, rng: np.random.Generator, robust: float, arm: str, fold: int, attack: str) -> dict:
    """Write 360 images of a fold, of which so many are right."""
    n = 360
    level = robust + 0.02 * fold - (0.04 if arm == "s2ap" else 0.0) + rng.normal(0, 0.01)
    clean = rng.random(n) < level + 0.25
    about = load_evaluation(file).about | {"attack": attack, "options": {"fold": fold}}
    arrays = {
        "index": np.arange(n), "label": np.arange(n) % 10, "clean": clean,
        "robust": clean & (rng.random(n) < level + 0.1),
        "noise": clean, "zero_gradient": np.zeros(n, dtype=bool), "about": np.array(json.dumps(about)),
    }  # fmt: skip
    np.savez(file, **arrays)
    return load_evaluation(file).summary()
