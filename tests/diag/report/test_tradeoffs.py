"""Trade-offs: settings against outcomes, and robust accuracy against what a mask costs."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from selenium.webdriver import ActionChains, Keys

from s2ap_core.config import Config
from s2ap_core.files.tensors import load_tensors
from s2ap_core.models import NETWORKS
from s2ap_diag.comparison.cost import cost
from s2ap_diag.report.measured import Evaluated
from s2ap_diag.report.tradeoffs import _short, pareto
from s2ap_diag.report.view import _accuracies
from tests.diag.report.gallery import gallery
from tests.diag.report.pages import Parsed, report
from tests.tiny import Tiny


@pytest.fixture(scope="module")
def sweep(trained: Path, tmp_path_factory) -> Path:
    """Two arms at three budgets, two folds; of one run the latency was measured."""
    folder = tmp_path_factory.mktemp("sweep")
    gallery(
        trained / "orig",
        folder,
        methods=("hydra",),
        keeps=(0.3, 0.1, 0.05),
        arms=("orig", "s2ap"),
        folds=2,
        finetuning=2,
    )
    for name, seconds in (("hydra-0.3-orig-0", 0.05), ("hydra-0.05-s2ap-1", 0.02)):
        record = {"images": 100, "seconds": {"masked": 0.1, "exported": seconds}}
        (folder / name / "export.json").write_text(json.dumps([record]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "tiny", Tiny)
        result = report(folder)
    assert result.exit_code == 0, result.output
    return folder


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats(points):
    beaten = {
        (x, y) for x, y in points for a, b in points if (a <= x and b > y) or (a < x and b >= y)
    }  # fmt: skip
    assert pareto(points) == sorted(set(points) - beaten)


@pytest.mark.usefixtures("tiny_network")
def test_the_cost_is_that_of_the_weights_kept(sweep):
    file = sweep / "hydra-0.1-orig-0/ckpt/finetune-best.safetensors"
    tensors, header = load_tensors(file)
    positions = {}
    model = Tiny()
    for name, layer in model.named_modules():
        if hasattr(layer, "weight") and layer.weight.dim() > 1:
            layer.register_forward_hook(lambda m, _, out, name=name: positions.update({name: out[0, 0].numel()}))
    model.eval()(torch.zeros(1, 1, 8, 8))
    masks = {name: tensors[f"{name}.mask"] for name in positions}
    dense = sum(mask.numel() * positions[name] for name, mask in masks.items())
    kept = sum(int(mask.sum()) * positions[name] for name, mask in masks.items())
    found = cost(header["network"], {f"{name}.weight": mask for name, mask in masks.items()})
    assert found.flops == pytest.approx(kept / dense)
    assert found.density == pytest.approx(
        sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())
    )


def test_a_line_is_a_run_and_goes_through_its_values(sweep):
    html = (sweep / "report.html").read_text()
    parallel = html.partition('<svg class="parallel"')[2].partition("</svg>")[0]
    lines = re.findall(r'data-run="(\d+)" data-label="([^"]*)"><polyline points="([^"]*)"', parallel)
    assert len(lines) == 12
    names = re.findall(r'class="x name"[^>]*>(.*?)<', parallel)
    assert names[:2] == ["keep", "minimizer"]
    assert {"robust, %", "density, %", "ms per image"} <= set(names)
    robust = names.index("robust, %")
    heights, values = [], []
    for _, label, points in lines:
        run = label.partition(":")[0]
        results = json.loads((sweep / run / "results.json").read_text())
        values.append(results["evaluate-finetune"]["robust_accuracy"])
        heights.append(float(points.split()[robust].split(",")[1]))
    slope, offset = np.polyfit(values, heights, 1)
    assert slope < 0
    np.testing.assert_allclose(np.polyval([slope, offset], values), heights, atol=0.2)
    below = [float(points.split()[names.index("ms per image")].split(",")[1]) for _, _, points in lines]
    assert sorted(below)[2:] == [306.0] * 10  # most were not measured


def test_the_front_runs_through_the_means_of_arms_and_budgets(sweep):
    html = (sweep / "report.html").read_text()
    (chart,) = re.findall(
        r"<figcaption>Robust accuracy, % against density, %</figcaption>(.*?)</figure>", html, re.DOTALL
    )
    means = {}
    for keep in ("0.3", "0.1", "0.05"):
        for arm in ("orig", "s2ap"):
            runs = [json.loads((sweep / f"hydra-{keep}-{arm}-{fold}/results.json").read_text()) for fold in range(2)]
            means[keep, arm] = np.mean([100 * run["evaluate-finetune"]["robust_accuracy"] for run in runs])
    dots = [a["data-label"] for a in Parsed(chart).all("g") if a.get("class", "").startswith("dot mean")]
    for (keep, arm), mean in means.items():
        (label,) = [d for d in dots if d.startswith(f"hydra {arm}, {100 - 100 * float(keep):g} %,")]
        assert f"robust {mean:.1f} %" in label
        beaten = any(float(k) <= float(keep) and other > mean for (k, _), other in means.items())
        assert label.endswith("on the front") != beaten
    assert "Robust accuracy, % against ms per image" in html
    assert "against FLOPs kept" in html


def test_filters_fade_lines_and_arrow_keys_read_them(opened, sweep):
    browser = opened(1280, page=sweep / "report.html")
    faded = "return document.querySelectorAll('.parallel .out').length"
    browser.find_element("id", "find").send_keys("s2ap")
    assert browser.execute_script(faded) == 6
    svg = browser.find_element("css selector", "svg.parallel")
    browser.execute_script("arguments[0].focus()", svg)
    ActionChains(browser).send_keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN).perform()
    assert re.match(r"hydra-0.05-orig-1: keep 0.05, ", browser.find_element("id", "tip").text)
    assert len(browser.find_elements("css selector", ".parallel .now")) == 1


def test_settings_that_end_alike_are_named_whole():
    keys = ["prune.epochs", "pretrain.epochs", "method.name", "method.keep"]
    assert _short(keys) == {
        "prune.epochs": "prune.epochs", "pretrain.epochs": "pretrain.epochs", "method.name": "method",
        "method.keep": "keep",
    }  # fmt: skip


def test_folds_of_one_image_more_or_less_share_a_trade_off():
    """Their means are over all of them; runs on fewer images by choice stand apart."""

    def titles(**data):
        found = []
        for n in (359, 360):
            evaluated = Evaluated(
                n=n, attack="pgd-50", norm="Linf", eps="8/255", clean_accuracy=0.9, clean_interval=(0.8, 0.95),
                robust_accuracy=0.5, robust_interval=(0.4, 0.6),
            )  # fmt: skip
            found.append(_accuracies(evaluated, Config.model_validate(data))[1].under)
        return found

    assert len(set(titles(data={"name": "digits", "options": {"fold": 1}}))) == 1
    assert titles(data={"name": "digits"}) == [f"{n} images, pgd-50, Linf, eps 8/255" for n in (359, 360)]
    chosen = {"data": {"name": "digits", "options": {"fold": 1}}, "evaluation": {"n": 300}}
    assert len(set(titles(**chosen))) == 2
