"""What the figures draw, against the runs' files."""

import csv
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from figures.catalogue import choose, load_catalogue
from figures.drawings import FIGURES
from figures.matching import Library
from s2ap_core.runs.directory import RunDirectory
from s2ap_diag.output import plots
from tests.figures.rendering import cells, clone, correct, render, wilson
from tests.reading import masks_in


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
    """Let a run have tracked these alone of the spectra and residuals, by epoch, in each mode of BatchNorm."""
    file = run / "metrics.csv"
    lines = [
        line
        for line in file.read_text().splitlines(keepends=True)
        if "lambda_max" not in line and "residual" not in line
    ]
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


def open_marks(figure):
    """Epoch and value of each open marker, of curves at 90 %."""
    marks = [c for axes in figure.axes for c in axes.collections if isinstance(c, PathCollection)]
    return {
        tuple(at) for c in marks if c.get_facecolors()[0].tolist()[:3] == [1, 1, 1] for at in c.get_offsets().tolist()
    }


def test_epochs_whose_readings_have_not_converged_have_open_markers(runs, monkeypatch):
    """On the full curve by the residual of the live scores, on the thin one by that of all."""
    for arm in ("orig", "s2ap"):
        for seed in (0, 1):
            spectra = {"lambda_max": [400, 50, 60], "lambda_max_live": [3, 2, 1 + seed]}
            odd = arm == "orig" and seed == 1
            residuals = {"residual": [0.5 if odd else 0.1, 0.1, 0.1], "residual_live": [0.1, 0.01, 0.2 if odd else 0.1]}
            track(runs / f"hydra-{arm}-{seed}", **spectra, **residuals)
    figure, _ = drawn(runs, "fig8", monkeypatch)
    assert open_marks(figure) == {(1, 400), (3, 1.5)}
    assert "residual above 0.1" in [text.get_text() for text in figure.legends[0].get_texts()]


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


def test_vector_text_in_the_pdfs(rendered):
    assert b"/FontFile2" in (rendered / "fig2.pdf").read_bytes()  # TrueType, not outlines
