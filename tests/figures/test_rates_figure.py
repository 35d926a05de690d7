"""The table of keep rates on runs whose accuracies and masks are set: against scipy's tests and counts by hand."""

import json
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from scipy.stats import t, ttest_rel

from figures.rates import command
from s2ap_core.config import parse_config
from s2ap_core.files.tensors import save_masks
from s2ap_core.masks.masking import masks
from s2ap_core.methods import build_method
from s2ap_core.runs.checkpoints import build_network
from s2ap_core.runs.directory import RunDirectory
from s2ap_core.seeds import generator

METHODS = {"hydra": 0.4, "hydra-erk": 0.42, "hydra-spectral": 0.4, "harp-units": 0.9}
SEARCHES = ((0.5, "orig"), (0.5, "s2ap-plain"), (0.2, "orig"))
FOLDS = range(3)
NETWORK = {"name": "vit", "classes": 10, "width": 8, "input_size": 8, "input_channels": 1, "norm_affine": True}
IMAGES = 200


@cache
def drawn(method, keep, fold):
    """The first mask of a method, on a network of the fold's own."""
    torch.manual_seed(fold)
    model = build_network(NETWORK)
    build_method(parse_config({"method": {"name": method, "keep": keep}}, "test").method).attach(
        model, generator("cpu", 0)
    )
    return masks(model)


def make(folder, method, arm, keep, fold, accuracy, rng):
    """A run as far as the table and the pictures read it; return its finetuned network's robust accuracy."""
    config = parse_config(
        {
            "seed": fold,
            "data": {"options": {"fold": fold}},
            "network": {"name": "vit", "width": 8},
            "method": {"name": method, "keep": keep},
            "minimizer": {"name": "s2ap", "gamma": 0.0025, "warmup": 1} if arm == "s2ap-plain" else {},
            "prune": {"epochs": 2},
            "evaluation": {"attack": "pgd-50", "stages": ["prune", "finetune"]},
        },
        "test",
    )
    run = RunDirectory.create(folder / f"{method}-{arm}-{keep}-{fold}", config, "cpu")
    results: dict[str, dict] = {"pretrain": {}, "prune": {}, "finetune": {}}
    (run.path / "evals").mkdir(exist_ok=True)
    for stage in ("prune", "finetune"):
        robust = rng.random(IMAGES) < accuracy
        index, ones = np.arange(IMAGES), np.ones(IMAGES, dtype=bool)
        about = {"attack": "pgd-50", "norm": "Linf", "eps": "8/255", "dataset": "digits", "options": {"fold": fold}}
        columns = {"clean": ones, "robust": robust, "noise": ones, "zero_gradient": ~ones}
        file = run.path / "evals" / f"{stage}.npz"
        np.savez(file, about=np.array(json.dumps(about)), index=index, label=index % 10, **columns)
        results[f"evaluate-{stage}"] = {"robust_accuracy": float(robust.mean()), "clean_accuracy": 1.0}
    (run.path / "results.json").write_text(json.dumps(results))
    first = drawn(method, keep, fold)
    for epoch in range(3):
        save_masks(run.masks(epoch), first, {"network": NETWORK, "keep": keep, "epoch": epoch})
    return 100 * float(robust.mean())


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Runs of two budgets, one of them with both searches, and robust accuracies by method, arm and keep over folds."""
    folder, rng = tmp_path_factory.mktemp("rates") / "runs", np.random.default_rng(0)
    robust: dict[tuple, list[float]] = {}
    for keep, arm in SEARCHES:
        for method, accuracy in METHODS.items():
            own = accuracy + (0.15 if arm != "orig" and method == "hydra" else 0)
            robust[method, arm, keep] = [make(folder, method, arm, keep, fold, own, rng) for fold in FOLDS]
    return folder, robust


@pytest.fixture(scope="module")
def rendered(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    result = CliRunner().invoke(command, ["--runs", str(world[0]), "--out", str(out)])
    assert result.exit_code == 0, (result.output, result.exception)
    return out, result.output


def test_differences_are_paired_over_folds_and_corrected_over_the_table(world, rendered):
    _, robust = world
    table = pd.read_csv(rendered[0] / "rates.csv")
    finetuned = table[table["metric"] == "finetuned_robust"]
    for question, count in (("rates", 9), ("S2AP", 4)):
        asked = finetuned[finetuned["question"] == question]
        assert len(asked) == count
        expected = {}
        for row in asked.itertuples():
            own = np.array(robust[row.method, row.arm, row.keep])
            other = robust["hydra", row.arm, row.keep] if question == "rates" else robust[row.method, "orig", row.keep]
            assert row.difference == pytest.approx(own.mean() - np.mean(other))
            found = ttest_rel(own, other)
            assert (row.p, row.folds) == (pytest.approx(found.pvalue), 3)
            assert (row.interval_low, row.interval_high) == pytest.approx(tuple(found.confidence_interval(0.95)))
            expected[row.Index] = found.pvalue
        # Holm: each p times the number of those that are not smaller, never below a smaller one's.
        ascending = sorted(expected, key=expected.__getitem__)
        highest = 0.0
        for rank, index in enumerate(ascending):
            highest = max(highest, min(1.0, (count - rank) * expected[index]))
            row = asked.loc[index]
            assert row["adjusted_p"] == pytest.approx(highest)
            ahead = "ahead" if row["difference"] > 0 else "behind"
            assert row["verdict"] == (ahead if highest < 0.05 else "undecided")
    verdicts = finetuned[finetuned["question"] == "rates"].set_index(["method", "arm"])["verdict"]
    assert "ahead" in set(verdicts["harp-units", "orig"])
    assert set(verdicts["hydra-spectral", "orig"]) == {"undecided"}


def test_the_table_says_what_it_is_of(world, rendered):
    out, printed = rendered
    text = (out / "rates.md").read_text()
    assert "digits, vit of width 8; pretrained for" in text
    assert "keep" not in text.partition("Differences")[0].partition("digits")[2]
    lines = [line for line in text.splitlines() if line.startswith("| 0.")]
    assert len(lines) == 3 * 4
    assert [line.split(" | ")[1] for line in lines[:4]] == ["uniform", "ERK", "spectra", "HARP, units"]
    assert text.splitlines()[-2] in printed
    values = world[1]["harp-units", "orig", 0.5]
    low, high = t.interval(0.95, 2, np.mean(values), np.std(values, ddof=1) / 3**0.5)
    (line,) = (line for line in lines if line.startswith("| 0.5 | HARP, units | Orig"))
    assert line.split(" | ")[5] == f"{np.mean(values):.1f} \\[{low:.1f}, {high:.1f}\\]"


def test_rates_are_counted_in_the_masks_rows(world, rendered):
    out, _ = rendered
    rates = pd.read_csv(out / "rates-by-unit.csv")
    assert set(rates[rates["method"] == "harp-units"]["epoch"]) == {0, 1, 2}
    assert set(rates[rates["method"] == "hydra-erk"]["epoch"]) == {2}
    blocks = rates[rates["block"].notna()]
    assert list(dict.fromkeys(blocks["unit"])) == ["q, k", "v", "proj", "fc1", "fc2"]
    assert set(rates[rates["block"].isna()]["unit"]) == {"embed"}
    expected = drawn("hydra-spectral", 0.2, 2)
    bits = expected["blocks.2.attn.qkv.weight"].double()
    of_run = blocks.query("method == 'hydra-spectral' and arm == 'orig' and keep == 0.2 and fold == 2 and block == 2")
    found = of_run.set_index("unit")["rate"]
    assert found["q, k"] == pytest.approx(float(bits[:16].mean()))
    assert found["v"] == pytest.approx(float(bits[16:].mean()))
    assert found["fc1"] == pytest.approx(float(expected["blocks.2.fc1.weight"].double().mean()))
    for arm in ("orig", "s2ap-plain"):
        for ending in ("png", "pdf"):
            assert (out / f"rates-{arm}.{ending}").stat().st_size > 5000


def test_runs_without_uniform_rates_or_of_two_networks_are_refused(world, tmp_path):
    runs, _ = world
    few = tmp_path / "few"
    few.mkdir()
    for path in runs.glob("hydra-erk-orig-*"):
        (few / path.name).symlink_to(path)
    result = CliRunner().invoke(command, ["--runs", str(few), "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "no setting of a ViT has runs of uniform and of other keep rates; sweep the grid rates" in result.output
