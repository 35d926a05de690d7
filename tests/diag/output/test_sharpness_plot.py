"""The drawing of sharpness, by the artists that are in the figure: which points are joined, filled and named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection, QuadMesh
from matplotlib.figure import Figure

from s2ap_core.errors import InputError
from s2ap_diag.output.curves import names_of
from s2ap_diag.output.sharpness_plot import draw

Record = dict[str, Any]


def record(file: str, epoch: int | None, value: float, mode: str = "running", **changes: Any) -> Record:
    """What ``sharpness --json`` gives of a checkpoint, as far as it is drawn: live ``value``, ten times that in all."""
    return {
        "checkpoint": file,
        "epoch": epoch,
        "batch_norm": mode,
        "lambda_max": 10 * value,
        "lambda_max_standard_error": value,
        "lambda_max_live": value,
        "lambda_max_live_standard_error": value / 4,
        "converged": True,
        "converged_live": True,
        "loss_difference": {
            "0.001": {"mean": value / 100, "standard_error": None},
            "0.01": {"mean": value / 10, "standard_error": value / 50},
        },
        "layers": {},
        **changes,
    }


def of_run(folder: str, epochs: list[int], best: int, start: float, **options: Any) -> list[Record]:
    records = [record(f"{folder}/ckpt/prune-epoch-{e:03d}.safetensors", e, start + e, **options) for e in epochs]
    return [*records, record(f"{folder}/ckpt/prune-best.safetensors", best, start + 0.5, **options)]


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Record]], Figure]:
    """``drawn(records)``: the figure that was written, still open."""
    figures: list[Figure] = []
    save = Figure.savefig

    def spy(figure: Figure, *arguments: Any, **options: Any) -> None:
        figures.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", spy)

    def make(records: list[Record]) -> Figure:
        draw(records, tmp_path / "picture.png")
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
        return figures[-1]

    return make


def joined(axes: Axes) -> list[tuple[list[float], list[float]]]:
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]


def marks(axes: Axes) -> dict[tuple[float, float], bool]:
    """Of every marker whether it is filled."""
    found = {}
    for collection in axes.collections:
        if isinstance(collection, PathCollection):
            offsets, colors = np.asarray(collection.get_offsets()), collection.get_facecolors().tolist()
            for index, (x, y) in enumerate(offsets.tolist()):
                found[x, y] = bool(colors) and colors[index % len(colors)][:3] != [1, 1, 1]
    return found


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_each_run_and_mode_is_a_curve_of_its_own_over_its_epochs(drawn: Callable[..., Figure]) -> None:
    starts = {
        ("a/orig", "running"): 1.0,
        ("a/orig", "batch"): 20.0,
        ("b/orig", "running"): 40.0,
        ("b/orig", "batch"): 60.0,
    }
    records = []
    for (folder, mode), start in starts.items():
        records += of_run(folder, [10, 0, 2], best=2, start=start, mode=mode)
    records[1]["batch_norm"] = "running (re-estimated under the mask)"  # epoch 0 is a point of the curve
    figure = drawn(records)
    eigenvalues, difference = figure.axes
    expected = [[start, start + 2, start + 10] for start in starts.values()]
    lines = joined(eigenvalues)
    assert all(x == [0, 2, 10] for x, _ in lines)
    assert sorted(y for _, y in lines) == sorted([*expected, *([10 * y for y in of_all] for of_all in expected)])
    widths = {line.get_ydata()[0]: line.get_linewidth() for line in eigenvalues.lines}
    assert all(widths[10 * start] < widths[start] for start in starts.values())
    assert joined(difference) == [([0, 2, 10], [y / 10 for y in of_live]) for of_live in expected]
    assert "at least" in difference.get_ylabel()
    # The selected ones stand beside their epoch, and no line passes through them.
    for start in starts.values():
        assert {(2, start + 0.5), (2, 10 * (start + 0.5))} <= marks(eigenvalues).keys()
    stars = [c for c in eigenvalues.collections if isinstance(c, PathCollection) and len(c.get_offsets()) == 1]
    assert len(stars) == 8
    assert legend(figure)[:5] == ["a/orig, running", "a/orig, batch", "b/orig, running", "b/orig, batch", "best"]
    assert len({line.get_color() for line in eigenvalues.lines}) == 4
    assert len({line.get_linestyle() for line in eigenvalues.lines}) == 4


def test_what_has_not_converged_is_open(drawn: Callable[..., Figure]) -> None:
    records = of_run("orig", [0, 1, 2], best=1, start=1)
    records[1]["converged_live"] = False
    records[3]["converged"] = False
    figure = drawn(records)
    is_open = {point for point, filled in marks(figure.axes[0]).items() if not filled}
    assert is_open == {(1, 2), (1, 15)}
    assert "open: not converged" in legend(figure)
    assert "open: not converged" not in legend(drawn(of_run("orig", [0, 1], best=1, start=1)))


def test_error_bars_are_the_standard_errors(drawn: Callable[..., Figure]) -> None:
    records = of_run("orig", [0, 1, 2], best=1, start=4)
    records[2]["lambda_max_live_standard_error"] = None
    axes = drawn(records).axes[0]
    ends = set()
    for collection in axes.collections:
        if isinstance(collection, LineCollection):
            ends |= {tuple(map(float, end)) for segment in collection.get_segments() for end in segment}
    live = {(0, 3), (0, 5), (1, 3.75), (1, 6.25), (1, 3.375), (1, 5.625)}
    assert live <= ends
    assert not any(x == 2 and y < 10 for x, y in ends)


def test_one_checkpoint_is_a_marker_beside_its_loss_difference_by_rho(drawn: Callable[..., Figure]) -> None:
    eigenvalues, difference = drawn([record("orig/ckpt/prune-best.safetensors", 3, 4.0)]).axes
    assert joined(eigenvalues) == []
    assert marks(eigenvalues) == {(0, 4): True, (0, 40): True}
    assert [label.get_text() for label in eigenvalues.get_xticklabels()] == ["best, epoch 3"]
    assert joined(difference) == [([0.001, 0.01], [0.04, 0.4])]


def test_what_was_not_measured_has_no_panel(drawn: Callable[..., Figure]) -> None:
    records = [found | {"loss_difference": {}} for found in of_run("orig", list(range(22)), best=20, start=1)]
    figure = drawn(records)
    assert len(figure.axes) == 1
    assert joined(figure.axes[0])[1] == (list(range(22)), list(range(1, 23)))


def test_checkpoints_that_do_not_say_their_epoch_are_not_joined(drawn: Callable[..., Figure]) -> None:
    records = [record(f"theirs/{name}.pth.tar", None, value) for name, value in (("hydra", 1), ("harp", 3))]
    records += [record(f"theirs/epoch-{epoch}.pth", epoch, 2.0) for epoch in (3, 4)]
    figure = drawn(records)
    assert joined(figure.axes[0]) == []
    assert names_of(records) == ["theirs, hydra, hydra", "theirs, harp, harp", "theirs, epoch 3", "theirs, epoch 4"]
    assert len(joined(figure.axes[1])) == 4  # one for each, by rho


def with_layers(records: list[Record]) -> list[Record]:
    for index, found in enumerate(records):
        values = {"conv1": 1.0 + index, "conv2": 100.0 + index, "fc": 10.0 + index}
        for suffix, factor in (("", 2), ("_live", 1)):
            found[f"layers{suffix}"] = {name: factor * value for name, value in values.items()}
            found[f"layer_residuals{suffix}"] = {name: 0.0 for name in values}
    return records


def test_layers_are_a_heat_map_of_each_run_with_the_sharpest_on_top(drawn: Callable[..., Figure]) -> None:
    records = with_layers([*of_run("orig", [0, 1], best=1, start=1), *of_run("s2ap", [0, 1], best=1, start=3)])
    records[1]["layer_residuals_live"]["fc"] = 0.5
    maps = [axes for axes in drawn(records).axes if any(isinstance(c, QuadMesh) for c in axes.collections)]
    maps = [axes for axes in maps if axes.get_title()]  # the others are colour bars
    assert [axes.get_title() for axes in maps] == ["orig", "s2ap"]
    for axes, first in zip(maps, (0, 3), strict=True):
        mesh = next(c for c in axes.collections if isinstance(c, QuadMesh))
        expected = np.add.outer([100, 10, 1], [first, first + 1, first + 2])
        assert np.asarray(mesh.get_array()).reshape(3, 3).tolist() == expected.tolist()
        assert [label.get_text() for label in axes.get_yticklabels()] == ["conv2", "fc", "conv1"]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "best"]
    assert list(marks(maps[0])) == [(1.5, 1.5)]  # epoch 1, fc
    assert not marks(maps[1])


def test_layers_of_single_checkpoints_are_marks(drawn: Callable[..., Figure]) -> None:
    records = with_layers([record(f"{run}/ckpt/prune-best.safetensors", 2, 1.0) for run in ("orig", "s2ap")])
    records[1]["layer_residuals"]["conv1"] = 0.5
    axes = drawn(records).axes[2]
    values = sorted(x for x, _ in marks(axes))
    assert values == sorted(f * v for f in (1, 2) for v in (1, 2, 100, 101, 10, 11))
    assert [x for (x, _), filled in marks(axes).items() if not filled] == [4]
    assert all(round(y) == {1: 2, 2: 2, 4: 2}[x] for (x, y) in marks(axes) if x < 5)


def test_a_picture_of_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="png"):
        draw([record("a/ckpt/prune-best.safetensors", 1, 1.0)], tmp_path / "picture.bmp")
