"""Curves hold what was tracked."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from s2ap_diag.report.axes import FRAME, Axis
from s2ap_diag.report.charts import chart
from tests.diag.report.pages import Parsed, report

pytestmark = pytest.mark.usefixtures("tiny_network")


def test_curves_hold_what_was_tracked(trained, tmp_path):
    assert report(trained / "s2ap", "--out", tmp_path / "r.html").exit_code == 0
    drawn = re.findall(r"<figcaption>(.*?)</figcaption>(.*?)</figure>", (tmp_path / "r.html").read_text(), re.DOTALL)
    drawn = [(title, svg) for title, svg in drawn if "data-arm" not in svg]
    curves = {
        (title, a["data-name"]): a for title, svg in drawn for a in Parsed(svg).all("polyline") if "data-x" in a
    }  # fmt: skip
    rows = pd.read_csv(trained / "s2ap/metrics.csv")
    for name, stage, metric in (
        (("Robust validation loss", "search"), "prune", "val_loss"),
        (("Robust validation loss", "finetuning"), "finetune", "val_loss"),
        (("λ_max, BatchNorm running", "all scores"), "prune", "lambda_max_running"),
        (("λ_max, BatchNorm running", "live channels"), "prune", "lambda_max_live_running"),
        (("λ_max, BatchNorm batch", "all scores"), "prune", "lambda_max_batch"),
        (("λ_max, BatchNorm batch", "live channels"), "prune", "lambda_max_live_batch"),
    ):
        expected = rows[(rows.stage == stage) & (rows.metric == metric) & rows.iteration.isna()]
        assert json.loads(curves[name]["data-x"]) == expected.epoch.tolist()
        np.testing.assert_allclose(json.loads(curves[name]["data-y"]), expected.value, rtol=1e-3)
        heights = [float(point.split(",")[1]) for point in curves[name]["points"].split()]
        assert np.argsort(heights).tolist() == np.argsort(-expected.value.to_numpy()).tolist()


def test_the_papers_lambda_max_is_thin_where_the_live_one_stands_beside_it():
    both = chart("t", {"live channels": {1: 1.0, 2: 2.0}, "all scores": {1: 9.0, 2: 8.0}}, thin="all scores")
    assert ["thin" in one.style for one in both.series] == [False, True]
    alone = chart("t", {"live channels": {}, "all scores": {1: 9.0, 2: 8.0}}, thin="all scores")
    assert ["thin" in one.style for one in alone.series] == [False]


def test_one_value_and_equal_values_can_be_drawn():
    for values in ({3: 1.0}, {1: 5.0, 2: 5.0}, {1: 0.0}, {0: -1.0, 1: 2.0}, {0: 1e-9, 1: 1e9}):
        for log in (False, True):
            drawn = chart("t", {"a": values}, log=log)
            points = np.array([point.split(",") for point in drawn.series[0].points.split()], dtype=float)
            assert ((points >= [52, 30]) & (points <= [350, 182])).all()
    assert chart("t", {"a": {}}) is None


def test_an_axis_of_one_value_has_one_tick_in_its_middle():
    (tick,) = Axis.lying(0.01, 0.01).ticks
    assert (tick.at, tick.text) == ((FRAME.left + FRAME.right) / 2, "0.01")
