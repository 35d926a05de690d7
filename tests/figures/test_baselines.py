"""Masks without a search beside Orig. and S2AP: which runs stand together, their means and intervals."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from scipy.stats import t

from figures.baselines import command
from s2ap_core.config import parse_config
from s2ap_core.runs.directory import RunDirectory

ACCURACIES = {"random": 0.3, "snip": 0.5, "hydra-orig": 0.6, "hydra-s2ap": 0.7}


def make(folder: Path, name: str, seed: int, accuracy: float, **sections) -> None:
    """A finished run as far as its results go."""
    method, _, arm = name.partition("-")
    config = parse_config(
        {
            "seed": seed,
            "data": {"options": {"fold": seed}},
            "method": {"name": method},
            "minimizer": {"name": "s2ap" if arm == "s2ap" else "none"},
            "finetune": {"awp": arm == "s2ap"},
            "evaluation": {"attack": "pgd-50", "stages": ["prune", "finetune"]},
            **sections,
        },
        "test",
    )
    run = RunDirectory.create(folder / f"{name}-{seed}", config, "cpu")
    evaluated = {"clean_accuracy": accuracy + 0.2, "robust_accuracy": accuracy}
    stages = {"pretrain": {}, "prune": {}, "finetune": {}}
    results = stages | {"evaluate-prune": evaluated, "evaluate-finetune": evaluated}
    (run.path / "results.json").write_text(json.dumps(results))


@pytest.fixture
def runs(tmp_path):
    for name, accuracy in ACCURACIES.items():
        for seed in range(4 if "-" in name else 3):
            make(tmp_path / "runs", name, seed, accuracy + 0.01 * seed**2)
    make(tmp_path / "runs", "hydra-wide", 0, 0.99, network={"width": 32})
    plain = {"minimizer": {"name": "s2ap", "gamma": 0.5}, "finetune": {"awp": False}}
    make(tmp_path / "runs", "hydra-plain", 0, 0.75, **plain)
    make(tmp_path / "runs", "rlth-orig", 1, 0.2, pretrain={"epochs": 7})  # which it has no use for
    return tmp_path / "runs"


def shown(runs, out):
    return CliRunner().invoke(command, ["--runs", str(runs), "--out", str(out)])


def test_rows_are_means_over_the_baselines_folds_with_their_interval(runs, tmp_path):
    result = shown(runs, tmp_path)
    assert result.exit_code == 0, result.output
    rows = pd.read_csv(tmp_path / "baselines.csv", keep_default_na=False)
    assert list(zip(rows["method"], rows["arm"], rows["folds"], strict=True)) == [
        ("hydra", "orig", 3), ("hydra", "s2ap", 3), ("hydra", "s2ap-plain", 1), ("rlth", "orig", 1),
        ("random", "none", 3), ("snip", "none", 3),
    ]  # fmt: skip
    values = 100 * (0.5 + 0.01 * np.arange(3) ** 2)
    low, high = t.interval(0.95, 2, values.mean(), values.std(ddof=1) / 3**0.5)
    row = rows.iloc[5]
    found = [float(row[f"mask, robust %{end}"]) for end in ("", ", low", ", high")]
    assert found == pytest.approx([values.mean(), low, high])
    assert float(row["finetuned, clean %"]) == pytest.approx(values.mean() + 20)
    assert f"{values.mean():.1f} [{low:.1f}, {high:.1f}]" in result.output
    assert result.output.count("| method |") == 1  # the other width has no baseline


def test_two_runs_of_one_place_and_runs_without_baselines_are_refused(runs, tmp_path):
    shutil.copytree(runs / "snip-0", runs / "snip-again")
    twice = shown(runs, tmp_path)
    assert "claim the same row and seed; leave one out" in str(twice.exception)
    for path in [*runs.glob("snip-*"), *runs.glob("random-*")]:
        shutil.rmtree(path)
    none = shown(runs, tmp_path)
    assert none.exit_code == 2
    assert "no mask without a search" in none.output
