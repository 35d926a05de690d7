"""Tables and figures from real runs of seconds, their numbers against ones computed naively from the runs' files."""

import csv
import json
import re
import shutil
import statistics
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import binomtest

from figures.__main__ import command
from figures.catalogue import choose, load_catalogue
from figures.cheaper import command as cheaper
from figures.drawings import FIGURES
from figures.matching import Library
from figures.reference import load
from s2ap_core.data.cifar10c import CORRUPTIONS
from s2ap_core.models import NETWORKS
from s2ap_core.runs.checkpoints import load_checkpoint
from s2ap_core.runs.directory import RunDirectory
from s2ap_core.training.stages import Stages
from s2ap_diag.curvature.eigen import Lanczos
from s2ap_diag.curvature.tracking import build_trackers
from s2ap_diag.output import plots
from s2ap_diag.sharpness import SharpnessSettings, measure_sharpness
from tests.reading import masks_in
from tests.tiny import Tiny

IDS = [f"table{n}" for n in range(1, 14)] + [f"fig{n}" for n in range(1, 18)]
ARMS = {"orig": {"minimizer": {"name": "none"}}, "s2ap": {"minimizer": {"name": "s2ap"}, "finetune": {"awp": True}}}
SMALL = SharpnessSettings(images=16, batch_size=16, steps=2, solver=Lanczos(iterations=1), rho=(0.0025, 0.01))


@pytest.fixture(scope="session")
def made(tmp_path_factory, new_run, data):
    """HARP and HYDRA, both arms, two seeds, as CIFAR-10's ResNet-18 at 90 % sparsity. Not to be written to.

    So that the arms differ after three epochs, the perturbation is large; the configs then say the paper's gamma.
    """
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "resnet18", Tiny)
        for method in ("harp", "hydra"):
            for arm, changes in ARMS.items():
                for seed in (0, 1):
                    run = new_run(
                        folder / f"{method}-{arm}-{seed}",
                        seed=seed,
                        data={"name": "cifar10"},
                        network={"name": "resnet18", "width": 16},
                        method={"name": method, "keep": 0.1, "penalty": 5.0},
                        minimizer={"gamma": 1.0, "warmup": 1, **changes["minimizer"]},
                        pretrain={"epochs": 4},
                        finetune={"epochs": 1, **changes.get("finetune", {})},
                        evaluation={"n": 30, "batch_size": 30},
                        tracking={"every": 1, "iterations": 1, "images": 8},
                    )
                    Stages(run, data, callbacks=build_trackers(run.config.tracking)).all()
                    config = run.path / "config.toml"
                    config.write_text(config.read_text().replace("gamma = 1.0", "gamma = 0.001"))
                    checkpoint = load_checkpoint(run.checkpoint("prune-best"))
                    found = measure_sharpness(checkpoint, data, run.config.objective, SMALL)
                    (run.path / "sharpness.json").write_text(json.dumps([found.record()]))
    return folder


@pytest.fixture
def runs(made, tmp_path):
    """A copy of the runs that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "runs"))


@pytest.fixture(scope="session")
def rendered(made, tmp_path_factory):
    """All thirty, from the command line."""
    out = tmp_path_factory.mktemp("rendered")
    result = invoke("--runs", made, "--out", out, "--only", *IDS)
    assert result.exit_code == 0, result.output
    return out


def invoke(*arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def render(runs, out, *only, **options):
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    result = invoke("--runs", runs, "--out", out, "--only", *only, *words)
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def clone(run, name, **replaced):
    """A copy of a run whose config has other values: ``name="svhn"`` is written as ``name_of_old=new``."""
    copy = Path(shutil.copytree(run, run.parent / name))
    config = (copy / "config.toml").read_text()
    for old, new in replaced.values():
        assert config.count(old) == 1, (old, config.count(old))
        config = config.replace(old, new)
    (copy / "config.toml").write_text(config)
    return copy


def cells(file, **wanted):
    """The rows of a CSV with these values; empty fields are empty strings."""
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [row for row in rows if all(row[key] == str(value) for key, value in wanted.items())]


def one(file, **wanted):
    (row,) = cells(file, **wanted)
    return row


def correct(runs, method, arm, seed, stage, kind):
    with np.load(runs / f"{method}-{arm}-{seed}" / "evals" / f"{stage}.npz") as arrays:
        return arrays[kind]


HYDRA = {"network": "resnet18", "method": "hydra", "sparsity": "90"}


def test_all_thirty_are_written(rendered):
    tables, figures = IDS[:13], IDS[13:]
    kinds = [(tables, ("csv", "md", "tex")), (figures, ("png", "pdf", "csv"))]
    expected = {f"{i}.{ending}" for ids, endings in kinds for i in ids for ending in endings}
    assert {file.name for file in rendered.iterdir()} == expected | {"README.md", "results.csv"}
    page = (rendered / "README.md").read_text()
    for number in range(1, 14):
        assert f"\n## Table {number}\n" in page
    for figure in figures:
        assert f"]({figure}.png)" in page
        assert (rendered / f"{figure}.pdf").read_bytes().startswith(b"%PDF")
        with Image.open(rendered / f"{figure}.png") as picture:
            assert np.asarray(picture.convert("L")).std() > 5  # not a blank sheet
    assert not any("Traceback" in line for line in page.splitlines())


def test_vector_text_in_the_pdfs(rendered):
    assert b"/FontFile2" in (rendered / "fig2.pdf").read_bytes()  # TrueType, not outlines


@pytest.mark.parametrize(("table", "stage"), [("table1", "finetune"), ("table5", "prune")])
@pytest.mark.parametrize("arm", ["orig", "s2ap"])
def test_accuracies_are_means_over_seeds(made, rendered, table, stage, arm):
    both = [[correct(made, "hydra", a, seed, stage, "robust") for seed in (0, 1)] for a in ("orig", "s2ap")]
    assert not np.array_equal(*both)
    for metric in ("robust", "clean") if table == "table1" else ("robust",):
        values = [100 * correct(made, "hydra", arm, seed, stage, metric).mean() for seed in (0, 1)]
        row = one(rendered / f"{table}.csv", **HYDRA, data="cifar10", arm=arm, metric=f"{metric}_accuracy")
        assert float(row["measured"]) == pytest.approx(np.mean(values))
        assert float(row["std"]) == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
        assert row["seeds"] == "2"
        paper = (
            load(table)
            .query(
                f"network == 'resnet18' and method == 'hydra' and sparsity == 90 and minimizer == '{arm}'"
                f" and metric == '{metric}_accuracy' and dataset == 'cifar10'"
            )["value"]
            .item()
        )
        assert float(row["paper"]) == paper
        assert float(row["difference"]) == pytest.approx(np.mean(values) - paper)


def test_gap_is_recomputed(made, rendered):
    mean = {
        (arm, kind): np.mean([100 * correct(made, "hydra", arm, seed, "finetune", kind).mean() for seed in (0, 1)])
        for arm in ("orig", "s2ap")
        for kind in ("clean", "robust")
    }
    row = one(rendered / "table1.csv", **HYDRA, metric="gap")
    gap = mean["orig", "clean"] - mean["orig", "robust"] - mean["s2ap", "clean"] + mean["s2ap", "robust"]
    assert float(row["measured"]) == pytest.approx(gap)
    assert float(row["difference"]) == pytest.approx(gap - 0.47)  # as printed
    markdown = (rendered / "table8.md").read_text()
    assert markdown.count("‡") - 1 == 19  # the paper's contradictions, and the caption
    assert len(cells(rendered / "table8.csv", metric="gap", paper_disagrees="True")) == 19


def test_arms_are_compared_on_the_same_images(made, rendered):
    differences = [
        correct(made, "hydra", "s2ap", seed, "finetune", "robust").astype(int)
        - correct(made, "hydra", "orig", seed, "finetune", "robust")
        for seed in (0, 1)
    ]
    row = one(rendered / "table1.csv", **HYDRA, arm="s2ap - orig", metric="robust_accuracy")
    assert float(row["measured"]) == pytest.approx(100 * np.mean(differences))
    assert float(row["std"]) == pytest.approx(100 * np.std([d.mean() for d in differences], ddof=1))
    assert (row["interval_low"], row["p"], row["mark"]) == ("", "", "")  # two seeds
    assert [r["seed"] for r in cells(rendered / "table1.csv", **HYDRA, metric="mcnemar_p")] == ["0", "1"]


def test_dense_networks_once_for_each_seed(made, rendered):
    values = [100 * correct(made, "harp", "orig", seed, "pretrain", "clean").mean() for seed in (0, 1)]
    row = one(rendered / "table6.csv", data="cifar10", network="resnet18", metric="clean_accuracy")
    assert float(row["measured"]) == pytest.approx(np.mean(values))
    assert row["seeds"] == "2"
    assert float(row["paper"]) == 81.55


def test_hours_and_both_overheads(made, rendered):
    def hours(arm, after=0):
        found = []
        for seed in (0, 1):
            with (made / f"harp-{arm}-{seed}" / "timing.csv").open() as file:
                rows = [row for row in csv.DictReader(file) if row["stage"] == "prune" and float(row["epoch"]) > after]
            found.append(sum(float(row["seconds"]) for row in rows) / 3600)
        return np.mean(found)

    def measured(**wanted):
        return float(
            one(rendered / "table7.csv", data="cifar10", network="resnet18", method="harp", **wanted)["measured"]
        )

    orig, s2ap = hours("orig"), hours("s2ap")
    assert measured(arm="orig", metric="hours") == pytest.approx(orig)
    assert measured(arm="s2ap", metric="hours") == pytest.approx(s2ap)
    assert measured(metric="overhead_over_orig") == pytest.approx(100 * (s2ap - orig) / orig)
    assert measured(metric="overhead_over_s2ap") == pytest.approx(100 * (s2ap - orig) / s2ap)
    later = 100 * (hours("s2ap", 1) / hours("orig", 1) - 1)
    assert measured(metric="overhead_after_warmup") == pytest.approx(later)


def test_table_7_has_the_spread_over_pairs_of_searches(runs, tmp_path):
    """Two seeds at 90 % and one at 80 %; a search whose other arm is missing has no part in it."""
    for arm in ("orig", "s2ap"):
        clone(runs / f"harp-{arm}-0", f"dense-{arm}", keep=("keep = 0.1", "keep = 0.2"))
    clone(runs / "harp-orig-0", "alone", keep=("keep = 0.1", "keep = 0.05"))
    took = {"harp-orig-0": 10, "harp-s2ap-0": 12, "harp-orig-1": 11, "harp-s2ap-1": 12}
    took |= {"dense-orig": 12, "dense-s2ap": 18, "alone": 500}
    for name, minutes in took.items():
        rows = "".join(f"prune,{epoch},{20 * minutes}\n" for epoch in (1, 2, 3))
        (runs / name / "timing.csv").write_text(f"stage,epoch,seconds\n{rows}")
    render(runs, tmp_path / "out", "table7")
    wanted = {"data": "cifar10", "network": "resnet18", "method": "harp"}
    over = one(tmp_path / "out" / "table7.csv", **wanted, metric="overhead_over_orig")
    assert float(over["measured"]) == pytest.approx(100 * (42 / 33 - 1))
    assert float(over["std"]) == pytest.approx(statistics.stdev([20, 100 / 11, 50]))
    hours = one(tmp_path / "out" / "table7.csv", **wanted, arm="s2ap", metric="hours")
    assert float(hours["measured"]) == pytest.approx(14 / 60)
    assert float(hours["std"]) == pytest.approx(statistics.stdev([12, 12, 18]) / 60)
    (row,) = [line for line in (tmp_path / "out" / "table7.md").read_text().splitlines() if "HARP | 80 %, 90 %" in line]
    assert "| 0.18 ± 0.017 | 0.23 ± 0.058 | +27.3 ± 21.2 |" in row
    assert "| 3 |" in row


def wilson(correct):
    """95 % Wilson interval in percent, by scipy."""
    found = binomtest(int(correct.sum()), len(correct)).proportion_ci(method="wilson")
    return 100 * found.low, 100 * found.high


@pytest.fixture
def one_seed(runs):
    for run in runs.glob("*-1"):
        shutil.rmtree(run)
    return runs


def test_one_seed_has_its_interval_over_images_in_tables(one_seed, rendered, tmp_path):
    render(one_seed, tmp_path / "out", "table1", "table13")
    row = one(tmp_path / "out" / "table1.csv", **HYDRA, arm="orig", metric="robust_accuracy")
    low, high = wilson(correct(one_seed, "hydra", "orig", 0, "finetune", "robust"))
    assert (float(row["interval_low"]), float(row["interval_high"])) == pytest.approx((low, high))
    assert rf"\[{low:.2f}, {high:.2f}\]" in (tmp_path / "out" / "table1.md").read_text()
    assert one(rendered / "table1.csv", **HYDRA, arm="orig", metric="robust_accuracy")["interval_low"] == ""
    sharpness = one(tmp_path / "out" / "table13.csv", **HYDRA, arm="orig", rho="0.01")
    assert (sharpness["seeds"], sharpness["std"], sharpness["interval_low"]) == ("1", "", "")


def drawn(runs, figure, monkeypatch):
    """A figure as matplotlib has it, and its numbers."""
    kept = Figure()

    @contextmanager
    def canvas(files, width, height):
        yield kept

    monkeypatch.setattr(plots, "canvas", canvas)
    (entry,) = choose(load_catalogue(), [figure])
    drawing = FIGURES[entry.kind](entry, Library.open(runs), [])
    return kept, drawing.data


def drawn_errors(runs, figure, monkeypatch):
    """The error bars of a figure, (bottom, top) each, and its numbers."""
    kept, data = drawn(runs, figure, monkeypatch)
    bars = [bar for axes in kept.axes for bar in axes.containers if isinstance(bar, ErrorbarContainer)]
    segments = [segment for bar in bars for lines in bar.lines[2] for segment in lines.get_segments()]
    return [(segment[0][1], segment[-1][1]) for segment in segments if len(segment)], data


@pytest.mark.parametrize(("figure", "stage"), [("fig1", "finetune"), ("fig5", "prune")])
def test_one_seed_is_drawn_with_its_interval_over_images(one_seed, monkeypatch, figure, stage):
    errors, data = drawn_errors(one_seed, figure, monkeypatch)
    arms = ("orig", "s2ap") if figure == "fig1" else ("s2ap",)
    expected = [wilson(correct(one_seed, "harp", arm, 0, stage, "robust")) for arm in arms]
    assert np.array(errors) == pytest.approx(np.array(expected))
    written = data.dropna(subset="interval_low")[["interval_low", "interval_high"]].to_numpy(float)
    assert written == pytest.approx(np.array(expected))


def test_what_has_no_interval_is_drawn_without_an_error_bar_where_there_is_one_seed(runs, monkeypatch):
    errors, data = drawn_errors(runs, "fig3", monkeypatch)
    spread = data.groupby(["panel", "series"], sort=False)["value"].agg(["mean", "std"])
    assert np.array(errors) == pytest.approx(np.array([(mean - std, mean + std) for mean, std in spread.to_numpy()]))
    for run in runs.glob("*-1"):
        shutil.rmtree(run)
    assert drawn_errors(runs, "fig3", monkeypatch)[0] == []


def test_loss_differences_by_rho(made, rendered):
    for rho in ("0.0025", "0.01"):
        values = [
            json.loads((made / f"hydra-s2ap-{seed}" / "sharpness.json").read_text())[0]["loss_difference"][rho]["mean"]
            for seed in (0, 1)
        ]
        row = one(rendered / "table13.csv", **HYDRA, arm="s2ap", rho=rho)
        assert float(row["measured"]) == pytest.approx(np.mean(values))
        assert row["paper"] == ""  # the text lost that column
    assert one(rendered / "table13.csv", **HYDRA, arm="s2ap", rho="0.001")["measured"] == ""  # was not measured
    drawn = cells(rendered / "fig3.csv", panel="ResNet-18, HYDRA", series="s2ap", x="90 %")
    assert [float(row["value"]) for row in drawn] == pytest.approx(values)
    assert "BatchNorm: running" in (rendered / "table13.md").read_text()


def tracked(runs, name, metric):
    with (runs / name / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == metric and row["iteration"] == ""]
    return [float(row["value"]) for row in rows]


def test_eigenvalue_curves_never_mix_the_modes_of_batch_norm(made, rendered, tmp_path):
    render(made, tmp_path / "running", "fig8", batch_norm="running")
    for file, mode in ((rendered, "batch"), (tmp_path / "running", "running")):
        for seed in (0, 1):
            drawn = cells(file / "fig8.csv", panel="90 %", series="s2ap", metric=f"lambda_max_{mode}", seed=seed)
            assert [row["x"] for row in drawn] == ["1", "2", "3"]
            expected = tracked(made, f"hydra-s2ap-{seed}", f"lambda_max_{mode}")
            assert expected != tracked(made, f"hydra-orig-{seed}", f"lambda_max_{mode}")
            assert [float(row["value"]) for row in drawn] == pytest.approx(expected)
        assert f"BatchNorm: {mode}" in (file / "README.md").read_text()


def track(run, **values):
    """Let a run have tracked these alone of the two spectra, by epoch, in each mode of BatchNorm."""
    file = run / "metrics.csv"
    lines = [line for line in file.read_text().splitlines(keepends=True) if "lambda_max" not in line]
    for metric, by_epoch in values.items():
        for mode in ("batch", "running"):
            lines += [f"prune,{epoch},,{metric}_{mode},{value}\n" for epoch, value in enumerate(by_epoch, 1)]
    file.write_text("".join(lines))


def drawn_curves(figure):
    """The curves of a panel at 90 %, by whether they are thin: linewidth, marker and values of each."""
    lines = [line for axes in figure.axes for line in axes.get_lines() if len(line.get_xdata()) == 3]
    return [(line.get_linewidth() < 1, line.get_marker(), list(line.get_ydata())) for line in lines]


@pytest.mark.parametrize(("figure", "panel"), [("fig8", "90 %"), ("fig1", "c, 90 %")])
def test_live_eigenvalues_are_drawn_full_and_the_papers_thin_beside_them(runs, tmp_path, monkeypatch, figure, panel):
    method = "hydra" if figure == "fig8" else "harp"
    for seed in (0, 1):
        track(
            runs / f"{method}-orig-{seed}", lambda_max=[4000, 500, 600 + 200 * seed], lambda_max_live=[3, 2, 1 + seed]
        )
        track(runs / f"{method}-s2ap-{seed}", lambda_max=[4000, 100, 90], lambda_max_live=[3, 1, 0.5])
    render(runs, tmp_path / "out", figure)
    written = {
        metric: [float(row["value"]) for row in cells(tmp_path / "out" / f"{figure}.csv", panel=panel, series="orig",
                                                      metric=f"{metric}_batch", seed=1)]
        for metric in ("lambda_max", "lambda_max_live")
    }  # fmt: skip
    assert written == {"lambda_max": [4000, 500, 800], "lambda_max_live": [3, 2, 2]}
    results = cells(tmp_path / "out" / "results.csv", method=method, arm="orig", seed=1)
    assert {row["metric"]: float(row["value"]) for row in results}["lambda_max_live_running"] == 2
    curves = [curve for curve in drawn_curves(drawn(runs, figure, monkeypatch)[0]) if max(curve[2]) >= 3]
    assert [(values, marker in ("", "None")) for thin, marker, values in curves if thin] == [
        ([4000, 500, 700], True), ([4000, 100, 90], True),
    ]  # fmt: skip
    assert [(values, marker in ("", "None")) for thin, marker, values in curves if not thin] == [
        ([3, 2, 1.5], False), ([3, 1, 0.5], False),
    ]  # fmt: skip


@pytest.mark.parametrize(("metric", "thin"), [("lambda_max", True), ("lambda_max_live", False)])
def test_one_spectrum_alone_keeps_its_look(runs, monkeypatch, metric, thin):
    for run in runs.glob("hydra-*"):
        track(run, **{metric: [3, 2, 1]})
    figure, data = drawn(runs, "fig8", monkeypatch)
    assert [curve[0] for curve in drawn_curves(figure)] == [thin, thin]
    assert set(data["metric"]) == {f"{metric}_batch"}


def test_a_search_without_readings_is_not_run(runs, tmp_path):
    """Tracking was asked for, and no iteration was due."""
    for metrics in runs.glob("hydra-*/metrics.csv"):
        lines = metrics.read_text().splitlines(keepends=True)
        metrics.write_text("".join(line for line in lines if "lambda_max" not in line))
    render(runs, tmp_path / "out", "fig8")
    assert not cells(tmp_path / "out" / "fig8.csv")


def hamming(runs, name):
    """h of Eq. 13 by epoch, from unpacked masks."""
    masks = [masks_in(RunDirectory.open(runs / name).masks(epoch)) for epoch in range(4)]
    entries = sum(mask.size for mask in masks[0].values())
    return [sum(int((masks[0][k] != m[k]).sum()) for k in m) / entries for m in masks[1:]]


def test_hamming_differences_are_paired_by_seed(made, rendered):
    for seed in (0, 1):
        expected = np.subtract(hamming(made, f"hydra-orig-{seed}"), hamming(made, f"hydra-s2ap-{seed}"))
        assert any(expected)
        drawn = cells(rendered / "fig6.csv", panel="ResNet-18, 90 %", seed=seed)
        assert [float(row["value"]) for row in drawn] == pytest.approx(expected)
        assert cells(rendered / "fig1.csv", panel="b, 90 %", seed=seed)
    assert not cells(rendered / "fig6.csv", panel="WRN-28-4, 90 %")


def test_figure_4_begins_with_the_last_warmup_epoch(runs, tmp_path):
    for arm in ("orig", "s2ap"):
        change = ('name = "resnet18"', 'name = "wrn_28_4"')
        warmup = ("warmup = 1", "warmup = 2")
        clone(runs / f"harp-{arm}-0", f"wide-{arm}", network=change, warmup=warmup)
    render(runs, tmp_path / "out", "fig4")
    drawn = cells(tmp_path / "out" / "fig4.csv", series="s2ap")
    assert [row["x"] for row in drawn] == ["2", "3"]
    assert [float(row["value"]) for row in drawn] == pytest.approx(hamming(runs, "harp-s2ap-0")[1:])


def test_what_was_not_run_says_so(rendered):
    rows = [line for line in (rendered / "table2.md").read_text().splitlines() if line.startswith("| ResNet-18")]
    assert len(rows) == 8
    assert all(line.count("not run") == 2 for line in rows)
    assert one(rendered / "table2.csv", **HYDRA, arm="orig", metric="robust_accuracy")["measured"] == ""
    assert "41.83" in (rendered / "table2.md").read_text()  # the paper's number stays


def test_captions_name_the_attack(rendered):
    said = (rendered / "table1.md").read_text().splitlines()[0]
    assert "pgd-50, Linf, eps 32/255, 30 test images" in said
    assert "Trained with objective trades, beta 6.0, eps 32/255, step 16/255, steps 2." in said
    assert "pgd-50, Linf, eps 32/255, 30 test images" in (rendered / "README.md").read_text()


def test_results_of_the_runs_used(made, rendered):
    row = one(rendered / "results.csv", method="harp", arm="s2ap", seed=1, stage="finetune", metric="robust_accuracy")
    expected = 100 * correct(made, "harp", "s2ap", 1, "finetune", "robust").mean()
    assert float(row["value"]) == pytest.approx(expected)
    assert (row["data"], row["network"], row["gamma"]) == ("cifar10", "resnet18", "0.001")
    assert len({r["run"] for r in cells(rendered / "results.csv")}) == 8
    assert one(rendered / "results.csv", method="harp", arm="orig", seed=1, metric="hours")["gamma"] == ""
    commit = json.loads((made / "harp-orig-0" / "environment.json").read_text())["commit"]
    assert str(commit) in (rendered / "README.md").read_text()


def test_no_two_results_share_a_key(runs, tmp_path):
    """Clean runs beside adversarial ones, and a run in halves, an evaluation in each, of which neither gives hours."""
    for arm in ("orig", "s2ap"):
        clone(runs / f"hydra-{arm}-0", f"clean-{arm}", objective=('name = "trades"', 'name = "clean"'))
    both = '    "prune",\n    "finetune",\n'
    for stage in ("prune", "finetune"):
        clone(runs / "harp-orig-0", f"half-{stage}", stages=(both, f'    "{stage}",\n'))
    shutil.rmtree(runs / "harp-orig-0")
    render(runs, tmp_path / "out", "table1", "table5", "table7", "table10", "table13", "fig8")
    rows = cells(tmp_path / "out" / "results.csv")
    keys = [tuple(value for name, value in row.items() if name not in ("run", "value")) for row in rows]
    assert len(keys) == len(set(keys))
    of_hydra = [row for row in rows if row["method"] == "hydra" and row["seed"] == "0" and row["metric"] == "hours"]
    assert {row["objective"] for row in of_hydra} == {"trades"}  # Table 7 asks for no clean ones
    wanted = {"method": "hydra", "arm": "orig", "seed": 0, "stage": "finetune", "metric": "clean_accuracy"}
    trades, clean = (one(tmp_path / "out" / "results.csv", **wanted, objective=name) for name in ("trades", "clean"))
    assert (trades["beta"], trades["train_eps"], trades["train_step"], trades["train_steps"]) == (
        "6.0", "32/255", "16/255", "2"
    )  # fmt: skip
    assert [clean[name] for name in ("beta", "train_eps", "train_step", "train_steps")] == [""] * 4
    assert (trades["attack"], trades["norm"], trades["eps"], trades["n"]) == ("pgd-50", "Linf", "32/255", "30")
    of_harp = [row for row in rows if (row["method"], row["arm"], row["seed"]) == ("harp", "orig", "0")]
    assert {row["metric"] for row in of_harp} == {"clean_accuracy", "robust_accuracy"}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"beta": ("beta = 6.0", "beta = 2.0")}, ["trained with", "beta 2.0", "beta 6.0"]),
        ({"objective": ('name = "trades"', 'name = "pgd-at"')}, ["trained with", "pgd-at", "trades"]),
        ({"eps": ('eps = "32/255"', 'eps = "8/255"')}, ["trained with", "eps 8/255"]),
        ({"step": ('step = "16/255"', 'step = "8/255"')}, ["trained with", "step 8/255"]),
        ({"steps": ("steps = 2\n", "steps = 10\n")}, ["trained with", "steps 10"]),
        ({"n": ("n = 30", "n = 20")}, ["evaluated with", "n 20", "n 30"]),
        ({"norm": ('attack = "pgd-50"\nnorm = "Linf"', 'attack = "apgd"\nnorm = "L2"')}, ["evaluated with", "norm L2"]),
        ({"radius": ("n = 30", 'n = 30\neps = "8/255"')}, ["evaluated with", "eps 8/255", "eps 32/255"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_runs_trained_or_evaluated_otherwise_are_in_no_cell_and_named(runs, tmp_path, changed, words):
    clone(runs / "hydra-orig-0", "other", **changed)
    shutil.rmtree(runs / "hydra-orig-0")
    result = render(runs, tmp_path / "out", "table1", "table6")
    row = one(tmp_path / "out" / "table1.csv", **HYDRA, arm="orig", metric="robust_accuracy")
    expected = 100 * correct(runs, "hydra", "orig", 1, "finetune", "robust").mean()
    assert (row["seeds"], float(row["measured"])) == ("1", pytest.approx(expected))
    (line,) = result.stderr.splitlines()
    assert all(word in line for word in [str(runs / "other"), *words])
    assert "other" in (tmp_path / "out" / "README.md").read_text()


def test_what_an_objective_does_not_read_does_not_set_runs_apart(runs, tmp_path):
    """Clean training has no adversary, so its radius is that of nothing."""
    for seed, eps in ((0, "32/255"), (1, "8/255")):
        for arm in ("orig", "s2ap"):
            clone(
                runs / f"hydra-{arm}-{seed}",
                f"clean-{arm}-{seed}",
                objective=('name = "trades"', 'name = "clean"'),
                attack=('attack = "pgd-50"', 'attack = "none"'),
                eps=('eps = "32/255"', f'eps = "{eps}"'),
            )
    render(runs, tmp_path / "out", "table10")
    assert one(tmp_path / "out" / "table10.csv", **HYDRA, arm="s2ap")["seeds"] == "2"


def test_two_runs_of_one_place_are_both_left_out_and_named(runs, tmp_path):
    clone(runs / "hydra-orig-1", "again")
    result = render(runs, tmp_path / "out", "table1")
    (line,) = [line for line in result.stderr.splitlines() if "again" in line]
    assert "hydra-orig-1" in line
    row = one(tmp_path / "out" / "table1.csv", **HYDRA, arm="orig", metric="robust_accuracy")
    assert row["seeds"] == "1"
    expected = 100 * correct(runs, "hydra", "orig", 0, "finetune", "robust").mean()
    assert float(row["measured"]) == pytest.approx(expected)
    assert "again" in (tmp_path / "out" / "README.md").read_text()
    listed = invoke("--runs", runs, "--list")
    assert "again" in listed.stderr


def test_a_damaged_run_spoils_nothing_else(runs, tmp_path):
    mask = runs / "hydra-orig-1" / "masks" / "epoch-002.safetensors"
    mask.write_bytes(mask.read_bytes()[:-7])
    results = runs / "harp-s2ap-0" / "results.json"
    results.write_text(json.dumps({k: v for k, v in json.loads(results.read_text()).items() if "finetune" not in k}))
    result = render(runs, tmp_path / "out", "fig6", "table1")
    lines = [line for line in result.stderr.splitlines() if line.startswith("skipped: ")]
    assert len(lines) == 2
    assert any("hydra-orig-1" in line and "epoch-002" in line for line in lines)
    assert any("harp-s2ap-0" in line and "half done" in line for line in lines)
    assert {row["seed"] for row in cells(tmp_path / "out" / "fig6.csv")} == {"0"}
    assert one(tmp_path / "out" / "table1.csv", **HYDRA, arm="orig", metric="robust_accuracy")["seeds"] == "1"
    assert one(tmp_path / "out" / "table1.csv", **HYDRA, arm="s2ap", metric="robust_accuracy")["seeds"] == "2"


@pytest.mark.parametrize(
    "change",
    [
        ("single_step = false", "single_step = true"),
        ("subset = 1.0", "subset = 0.5"),
        ("\nevery = 1\nupdate", "\nevery = 2\nupdate"),
        ("carry = false", "carry = true"),
        ("eta_z = inf", 'eta_z = "lr"'),
        ('update = "method"', 'update = "normalized"'),
        ("awp = true", "awp = false"),
        ("gamma = 0.001", "gamma = 0.005"),
    ],
)
def test_runs_of_another_kind_are_in_no_cell(runs, tmp_path, change):
    clone(runs / "hydra-s2ap-0", "other", kind=change)
    shutil.rmtree(runs / "hydra-s2ap-0")
    result = render(runs, tmp_path / "out", "table1")
    assert one(tmp_path / "out" / "table1.csv", **HYDRA, arm="s2ap", metric="robust_accuracy")["seeds"] == "1"
    of_the_paper = change[0].startswith(("awp", "gamma"))
    assert any("other: s2ap by" in line for line in result.stderr.splitlines()) == (not of_the_paper)


def test_figure_5_takes_every_gamma_and_table_5_the_papers(runs, tmp_path):
    """Two runs at each of two gammas, of which the paper's is the rarer."""
    for seed in (0, 1):
        clone(runs / f"harp-s2ap-{seed}", f"wide-{seed}", gamma=("gamma = 0.001", "gamma = 0.005"))
    shutil.rmtree(runs / "harp-s2ap-0")
    render(runs, tmp_path / "out", "fig5", "table5")
    drawn = cells(tmp_path / "out" / "fig5.csv")
    assert [(row["x"], row["seed"]) for row in drawn] == [("0.001", "1"), ("0.005", "0"), ("0.005", "1")]
    expected = 100 * correct(runs, "harp", "s2ap", 1, "prune", "robust").mean()
    assert float(drawn[0]["value"]) == pytest.approx(expected)
    wanted = {"data": "cifar10", "network": "resnet18", "method": "harp", "sparsity": "90", "arm": "s2ap"}
    row = one(tmp_path / "out" / "table5.csv", **wanted)
    assert (row["gamma"], row["seeds"]) == ("0.001", "1")


def on(runs, name, source="hydra-orig-0", **more):
    return clone(runs / source, name, data=('name = "cifar10"', f"name = {json.dumps(name)}"), **more)


def test_another_data_set_stands_in(runs, tmp_path):
    """Its gamma is the commonest; the paper's numbers are shown, no difference to them is."""
    for source, gamma in (("hydra-s2ap-0", "0.005"), ("hydra-s2ap-1", "0.005"), ("harp-s2ap-0", "0.001")):
        on(runs, "rings", source, gamma=("gamma = 0.001", f"gamma = {gamma}")).rename(runs / f"rings-{source}")
    on(runs, "rings")
    render(runs, tmp_path / "out", "table1", "table2", "table11", dataset="rings")
    s2ap = one(tmp_path / "out" / "table1.csv", **HYDRA, data="rings", arm="s2ap", metric="robust_accuracy")
    assert (s2ap["seeds"], s2ap["gamma"], s2ap["paper"], s2ap["difference"]) == ("2", "0.005", "47.27", "")
    said = (tmp_path / "out" / "table1.md").read_text()
    assert "of CIFAR-10, the measured ones of rings" in said
    assert "measured − paper" not in said
    assert "0.005 (ResNet-18 HYDRA)" in said
    assert "CIFAR-10-C is of CIFAR-10 alone" in (tmp_path / "out" / "table11.md").read_text()
    assert (tmp_path / "out" / "table2.csv").is_file()  # as it was named
    listed = invoke("--runs", runs, "--list", "--dataset", "rings")
    assert re.search(r"table2 .*as table1", listed.stdout)
    assert re.search(r"table1 .* 3 of 48", listed.stdout)  # HYDRA with both arms, HARP with S2AP


def test_what_asks_for_the_same_is_rendered_once():
    assert [entry.id for entry in choose(load_catalogue(), [])] == IDS
    left_out = set(IDS) - {entry.id for entry in choose(load_catalogue("digits"), [])}
    # SVHN's twins of CIFAR-10: Table 2, ResNet-18 with HYDRA, VGG-16 and WRN-28-4 with both methods.
    assert left_out == {"table2", "fig10", "fig13", "fig14", "fig16", "fig17"}
    figure7 = next(entry for entry in load_catalogue("digits") if entry.id == "fig7")
    assert len(figure7.cells) == 8  # HARP on SVHN has become HARP on CIFAR-10


def test_names_from_outside_do_no_harm(runs, tmp_path):
    name = "=cmd|'x'!A1_$%&<b>"
    folder = runs / "=evil"
    on(runs, name.replace("/", "")).rename(folder)
    render(runs, tmp_path / "out", "table1", "fig7", dataset=name)
    row = one(tmp_path / "out" / "table1.csv", **HYDRA, arm="orig", metric="robust_accuracy", data=f"'{name}")
    assert row["seeds"] == "1"
    latex = (tmp_path / "out" / "table1.tex").read_text()
    assert r"\_\$\%\&\textless{}b\textgreater{}" in latex
    assert name not in latex
    page = (tmp_path / "out" / "README.md").read_text()
    outside_code = page.split("```")[2]
    assert "<b>" not in outside_code.replace(r"\<b\>", "")
    assert {file.suffix for file in (tmp_path / "out").iterdir()} <= {".csv", ".md", ".tex", ".png", ".pdf"}


def test_corruptions_are_averaged(runs, tmp_path):
    rng = np.random.default_rng(0)
    means = []
    for corruption in CORRUPTIONS:
        for severity in (3, 5):
            clean = rng.random(20) < 0.6
            about = {"corruption": corruption, "severity": severity, "attack": "none", "norm": "Linf", "eps": "0"}
            file = runs / "hydra-orig-0" / "evals" / f"finetune-best-none-Linf-{corruption}-{severity}-seed0.npz"
            same = dict.fromkeys(("clean", "robust", "noise", "zero_gradient"), clean)
            np.savez(file, about=np.array(json.dumps(about)), index=np.arange(20), label=np.zeros(20, int), **same)
            means += [clean.mean()] if severity == 3 else []
    shutil.copy(file, runs / "hydra-s2ap-0" / "evals")  # one of fifteen is no mean
    render(runs, tmp_path / "out", "table11")
    row = one(tmp_path / "out" / "table11.csv", **HYDRA, arm="orig")
    assert float(row["measured"]) == pytest.approx(100 * np.mean(means))
    assert float(row["paper"]) == 71.54
    assert one(tmp_path / "out" / "table11.csv", **HYDRA, arm="s2ap")["measured"] == ""


def test_dense_networks_that_differ_are_complained_about(runs, tmp_path):
    results = runs / "hydra-s2ap-1" / "results.json"
    changed = json.loads(results.read_text())
    changed["evaluate-pretrain"]["robust_accuracy"] += 0.1
    results.write_text(json.dumps(changed))
    result = render(runs, tmp_path / "out", "table6")
    assert "hydra-s2ap-1" in result.stderr
    assert "differ" in result.stderr


def test_runs_that_were_not_made_alike_are_named(runs, tmp_path):
    config = runs / "hydra-orig-1" / "config.toml"
    config.write_text(config.read_text().replace("momentum = 0.9", "momentum = 0.5"))
    result = render(runs, tmp_path / "out", "table1")
    (line,) = result.stderr.splitlines()
    assert "prune.momentum" in line
    assert "hydra" in line


def test_evaluations_of_other_images_are_not_compared(runs, tmp_path):
    file = runs / "hydra-orig-1" / "evals" / "finetune.npz"
    with np.load(file) as arrays:
        changed = {name: array if name == "about" else array[:20] for name, array in arrays.items()}
    np.savez(file, **changed)
    result = render(runs, tmp_path / "out", "table1")
    assert "other images" in result.stderr
    assert not cells(tmp_path / "out" / "table1.csv", **HYDRA, arm="s2ap - orig")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "table1", "table99"], ["table99", "fig17", "table13"]),
        (["--runs", "nowhere"], ["nowhere"]),
        (["--batch-norm", "both"], ["batch-norm"]),
        ([], ["--out"]),
    ],
)
def test_bad_input_is_one_line_and_status_2(made, tmp_path, arguments, words):
    out = ["--out", tmp_path / "out"] if arguments else []
    result = invoke("--runs", made, *out, *arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert all(word in line for word in words)
    assert not (tmp_path / "out").exists()


def test_only_takes_several_ids_and_may_be_repeated(made, tmp_path):
    result = invoke("--only", "table6", "table3", "--runs", made, "--only", "table12", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert {file.stem for file in tmp_path.glob("*.tex")} == {"table3", "table6", "table12"}


def test_the_catalogue_asks_for_what_the_paper_prints():
    """Each printed number of a setting and arm has a cell, and no cell is without a printed number."""
    for entry in load_catalogue():
        if not entry.is_table or entry.id in ("table7",):
            continue
        numbers = load(entry.id)
        metrics = {*entry.metrics, *(["gap"] if entry.gap else [])}
        assert metrics == set(numbers["metric"])
        settings = numbers[["dataset", "network", "method", "sparsity", "flops_reduction"]].drop_duplicates()
        assert len(settings) == len(entry.cells), entry.id
        assert set(numbers["minimizer"].dropna()) == set(entry.arms) - {"dense"}
        data = {"cifar10c": "cifar10"}
        assert {data.get(d, d) for d in settings["dataset"]} == {cell.data for cell in entry.cells}


def test_the_same_runs_give_the_same_files(made, rendered, tmp_path):
    render(made, tmp_path, "table1", "fig8")
    for name in ("table1.csv", "table1.tex", "fig8.png", "fig8.pdf"):
        assert (tmp_path / name).read_bytes() == (rendered / name).read_bytes(), name


def test_csv_holds_no_index_column(rendered):
    assert list(pd.read_csv(rendered / "table1.csv").columns)[:3] == ["table", "data", "network"]


def test_runs_under_another_attack_are_a_table_of_their_own(runs, tmp_path):
    """The commonest attack is shown; the other one's runs claim no cell of it, and can be asked for."""
    other = clone(runs / "hydra-orig-0", "other", attack=('attack = "pgd-50"', 'attack = "apgd"'))
    with np.load(other / "evals" / "finetune.npz") as arrays:
        changed = {**arrays, "robust": np.zeros_like(arrays["robust"])}
    np.savez_compressed(other / "evals" / "finetune.npz", **changed)
    render(runs, tmp_path / "common", "table1")
    row = one(tmp_path / "common" / "table1.csv", **HYDRA, arm="orig", metric="robust_accuracy")
    expected = np.mean([100 * correct(runs, "hydra", "orig", seed, "finetune", "robust").mean() for seed in (0, 1)])
    assert (float(row["measured"]), row["seeds"]) == (pytest.approx(expected), "2")
    render(runs, tmp_path / "other", "table1", attack="apgd")
    row = one(tmp_path / "other" / "table1.csv", **HYDRA, arm="orig", metric="robust_accuracy")
    assert (float(row["measured"]), row["seeds"]) == (0.0, "1")


def test_cheaper_perturbations_stand_beside_orig_and_s2ap(runs, tmp_path):
    for seed in (0, 1):
        clone(runs / f"hydra-s2ap-{seed}", f"quarter-{seed}", kind=("subset = 1.0", "subset = 0.25"))
        clone(runs / f"hydra-s2ap-{seed}", f"wide-{seed}", gamma=("gamma = 0.001", "gamma = 0.005"))
    timing = runs / "quarter-0" / "timing.csv"
    faster = re.sub(r"(?m)^(prune,[23],).*$", r"\g<1>0.125", timing.read_text())
    timing.write_text(faster)
    result = CliRunner().invoke(cheaper, ["--runs", str(runs), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, (result.output, result.exception)
    rows = {row["perturbation"]: row for row in cells(tmp_path / "out" / "cheaper.csv")}
    assert set(rows) == {"Orig.", "S2AP", "S2AP, subset = 0.25"}
    for name, arm in (("Orig.", "orig"), ("S2AP", "s2ap"), ("S2AP, subset = 0.25", "s2ap")):
        robust = [100 * correct(runs, "hydra", arm, seed, "prune", "robust").mean() for seed in (0, 1)]
        assert float(rows[name]["robust accuracy of the mask (%)"]) == pytest.approx(np.mean(robust))
        assert float(rows[name]["robust accuracy of the mask (%), std"]) == pytest.approx(np.std(robust, ddof=1))

    def median(run):
        found = pd.read_csv(runs / run / "timing.csv")
        return found[(found["stage"] == "prune") & (found["epoch"] > 1)]["seconds"].median()

    ratios = [median(f"quarter-{seed}") / median(f"hydra-orig-{seed}") for seed in (0, 1)]
    assert float(rows["S2AP, subset = 0.25"]["time over Orig."]) == pytest.approx(np.mean(ratios))
