"""gamma searched or found: which searches stand together, and the excess over the best number."""

import json

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from figures.radius import command
from s2ap_core.config import parse_config
from s2ap_core.runs.directory import RunDirectory

LOSSES = {0.001: (1.2, 1.0, 1.4), 0.01: (1.1, 0.8, 1.1), "flips": (1.2, 0.9, 1.2), "rise": (2.0, 2.0, 2.0)}


def make(folder, gamma, seed: int, loss: float, **minimizer) -> None:
    """A finished search as far as its validation losses go; the first and the last are higher than the lowest."""
    settings = {
        "seed": seed,
        "data": {"options": {"fold": seed}},
        "minimizer": {"name": "s2ap", "gamma": gamma, **minimizer},
        "evaluation": {"attack": "none", "stages": ["prune"]},
    }
    run = RunDirectory.create(folder / f"{gamma}-{seed}-{len(minimizer)}", parse_config(settings, "test"), "cpu")
    lines = [f"prune,{epoch},,val_loss,{value}" for epoch, value in enumerate((loss + 1, loss, loss + 0.5), 1)]
    (run.path / "metrics.csv").write_text("\n".join(["stage,epoch,iteration,metric,value", *lines]) + "\n")
    (run.path / "results.json").write_text(json.dumps({"pretrain": {}, "prune": {}, "evaluate-prune": {}}))


def test_flips_and_rise_are_held_against_the_best_number(tmp_path):
    for gamma, losses in LOSSES.items():
        for seed, loss in enumerate(losses):
            make(tmp_path / "runs", gamma, seed, loss)
    make(tmp_path / "runs", 0.01, 3, 0.0)  # a fold that not all have
    make(tmp_path / "runs", 0.02, 0, 0.0, source="last")  # another perturbation
    result = CliRunner().invoke(command, ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    rows = pd.read_csv(tmp_path / "radius.csv").set_index("radius")
    assert list(rows.index) == ["gamma = 0.001", "gamma = 0.01", "flips = 0.003", "rise = 0.1"]
    assert set(rows["folds"]) == {3}
    best = np.array(LOSSES[0.01])
    for radius, losses in zip(rows.index, LOSSES.values(), strict=True):
        assert rows.loc[radius, "loss"] == pytest.approx(np.mean(losses))
        assert rows.loc[radius, "excess"] == pytest.approx((np.mean(losses) - best.mean()) / best.std(ddof=1))
    assert "1.100 ± 0.173 (+0.6)" in result.output


def test_without_two_gammas_there_is_nothing_to_hold_against(tmp_path):
    make(tmp_path / "runs", "flips", 0, 1.0)
    result = CliRunner().invoke(command, ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "sweep the grid `radius`" in result.output
