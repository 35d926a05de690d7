"""The heat map of norms on runs whose accuracies are set: means and intervals against scipy's."""

import json

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from scipy.stats import t

from figures.threats import command
from tests.figures.rendering import clone

pytestmark = pytest.mark.usefixtures("tiny_network")

RADII = {"Linf": "32/255", "L2": "1/2"}


def place(made, runs, trained, attacked, fold, robust):
    """A run trained in one norm and attacked in another, with this robust accuracy of its finetuned network."""
    own = "" if attacked == trained else f'norm = "{attacked}"\n'
    run = clone(
        made / "hydra-orig-0",
        runs / f"{trained}-{attacked}-{fold}",
        seed=("seed = 0", f"seed = {fold}"),
        objective=('norm = "Linf"\neps = "32/255"', f'norm = "{trained}"\neps = "{RADII[trained]}"'),
        evaluation=("n = 30", f'{own}eps = "{RADII[attacked]}"\nn = 30'),
    )
    results = json.loads((run / "results.json").read_text())
    results["evaluate-finetune"]["robust_accuracy"] = robust
    (run / "results.json").write_text(json.dumps(results))
    return run


@pytest.fixture
def world(made, tmp_path):
    """Three folds of each pair of norms but (L2, Linf); their robust accuracies."""
    rng, robust = np.random.default_rng(0), {}
    for pair in (("Linf", "Linf"), ("Linf", "L2"), ("L2", "L2")):
        for fold in range(3):
            robust.setdefault(pair, []).append(rng.uniform(0.2, 0.8))
            place(made, tmp_path / "runs", *pair, fold, robust[pair][-1])
    return tmp_path / "runs", robust


def invoke(*arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_each_cell_is_the_mean_over_folds_with_its_t_interval(world, tmp_path):
    runs, robust = world
    result = invoke("--runs", runs, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "out" / "threats.csv")
    assert list(zip(table.trained_norm, table.norm, strict=True)) == [("Linf", "Linf"), ("Linf", "L2"), ("L2", "L2")]
    assert list(zip(table.trained_eps, table.eps, strict=True)) == [
        ("32/255", "32/255"), ("32/255", "1/2"), ("1/2", "1/2"),
    ]  # fmt: skip
    for row in table.itertuples():
        values = 100 * np.array(robust[row.trained_norm, row.norm])
        low, high = t.interval(0.95, 2, values.mean(), values.std(ddof=1) / np.sqrt(3))
        assert (row.robust_accuracy, row.interval_low, row.interval_high) == pytest.approx((values.mean(), low, high))
        assert row.folds == 3
    for ending in ("png", "pdf"):
        assert (tmp_path / "out" / f"threats.{ending}").stat().st_size > 5000


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("n = 30", "n = 20", "its runs differ in evaluation.n too"),
        ("seed = 2", "seed = 1", "of the same norms and seed as"),
    ],
)
def test_runs_that_cannot_be_put_together_are_refused(world, tmp_path, old, new, said):
    runs, _ = world
    file = runs / "Linf-L2-2" / "config.toml"
    file.write_text(file.read_text().replace(old, new))
    result = invoke("--runs", runs, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "out").exists()


def test_without_an_attack_there_is_no_heat_map(tmp_path):
    (tmp_path / "runs").mkdir()
    result = invoke("--runs", tmp_path / "runs", "--out", tmp_path / "out")
    assert (result.exit_code, "sweep the grid threats" in result.stderr) == (2, True)
