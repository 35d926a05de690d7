"""Maps by layer and epoch: of each run, of two arms, their difference, and a layer's curves."""

import base64
import io
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.support.ui import Select

from s2ap_core.errors import InputError
from s2ap_diag.reading.results import open_run
from s2ap_diag.report.maps import read_maps
from tests.diag.report.gallery import EPOCHS, LAYERS, WARMUP
from tests.diag.report.pages import copy
from tests.reading import masks_in

pytestmark = pytest.mark.usefixtures("tiny_network")


def masks(run: Path) -> list[dict[str, np.ndarray]]:
    return [masks_in(run / f"masks/epoch-{epoch:03d}.safetensors") for epoch in range(EPOCHS + 1)]


def mean_h(world: Path, arm: str, layer: str, epoch: int) -> float:
    runs = [masks(world / f"hydra-0.1-{arm}-{fold}") for fold in range(3)]
    return float(np.mean([(run[0][f"{layer}.weight"] ^ run[epoch][f"{layer}.weight"]).mean() for run in runs]))


def value_at(browser, svg, down: int, right: int) -> str:
    """What the page reads out at a place that the arrow keys reach from the first layer and epoch."""
    browser.execute_script("arguments[0].focus()", svg)
    keys = [Keys.ARROW_RIGHT, *[Keys.ARROW_UP] * 40, *[Keys.ARROW_LEFT] * 40]
    ActionChains(browser).send_keys(*keys, *[Keys.ARROW_DOWN] * down, *[Keys.ARROW_RIGHT] * right).perform()
    return browser.find_element("id", "tip").text


def test_two_arms_stand_side_by_side_with_their_difference(opened, world, world_page):
    browser = opened(page=world_page)
    first, second, difference = browser.find_elements("css selector", "#map svg.heat")
    layer, epoch = 7, 9
    seen = [mean_h(world, arm, LAYERS[layer], epoch) for arm in ("orig", "s2ap")]
    for svg, expected in ((first, seen[0]), (second, seen[1]), (difference, seen[1] - seen[0])):
        said = value_at(browser, svg, layer, epoch - 1)
        assert said.startswith(f"{LAYERS[layer]}, epoch {epoch}: ")
        assert float(said.rpartition(" ")[2]) == pytest.approx(expected, abs=2e-3 * seen[0])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_difference_has_the_tone_of_the_page(opened, world_page, scheme):
    browser = opened(page=world_page, scheme=scheme)
    bars = browser.find_elements("css selector", "#map figure:nth-child(3) image")[2:]
    (bar,) = [image for image in bars if image.is_displayed()]
    data = bar.get_attribute("href").removeprefix("data:image/png;base64,")
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)[0]
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert np.abs(pixels[31:33] - ground).max() < 24
    assert np.abs(pixels[[0, -1]] - ground).max(axis=1).min() > 100


def test_a_layer_is_opened_by_click_and_by_key_as_its_curves_in_both(opened, world, world_page):
    browser = opened(page=world_page)
    svg = browser.find_element("css selector", "#map svg.heat")
    ActionChains(browser).move_to_element_with_offset(svg, 20, 6 - svg.size["height"] // 2).click().perform()
    assert browser.find_element("css selector", "#layer figcaption").text.startswith("conv1: h")
    value_at(browser, svg, 5, 0)
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    assert browser.find_element("css selector", "#layer figcaption").text.startswith(f"{LAYERS[5]}: h")
    curves = browser.find_elements("css selector", "#layer .curve")
    assert len(browser.find_elements("css selector", "#layer .fold")) == 6
    for curve, arm in zip(curves, ("orig", "s2ap"), strict=True):
        values = [float(text) for text in re.findall(r"[\d.e-]+", curve.get_attribute("data-y"))]
        expected = [mean_h(world, arm, LAYERS[5], epoch) for epoch in (1, EPOCHS)]
        np.testing.assert_allclose([values[0], values[-1]], expected, rtol=6e-3)


def test_what_was_tracked_by_layer_is_a_map_and_what_was_not_is_said(opened, world, world_page):
    browser = opened(page=world_page)
    kind = Select(browser.find_element("xpath", "//section[@id='maps']//label[contains(., 'Map of')]/select"))
    titles = [option.text for option in kind.options]
    assert titles[0] == "h to the first mask"
    assert "share of output channels without a weight" in titles
    kind.select_by_visible_text("entries that z flips")
    assert "orig (mean of 3): no readings of this kind." in browser.find_element("id", "map").text
    (svg,) = browser.find_elements("css selector", "#map svg.heat")
    rows = [pd.read_csv(world / f"hydra-0.1-s2ap-{fold}/metrics.csv") for fold in range(3)]
    metric = f"perturbation_flips/{LAYERS[4]}"
    values = [r[(r.metric == metric) & (r.epoch == WARMUP + 2)]["value"].item() for r in rows]
    assert float(value_at(browser, svg, 4, WARMUP + 1).rpartition(" ")[2]) == pytest.approx(np.mean(values), rel=1e-3)
    assert value_at(browser, svg, 4, 0).endswith("–")  # of the warm-up


def test_the_layers_that_changed_hands_most_are_named(world, world_page):
    html = world_page.read_text()
    runs = [masks(world / f"hydra-0.1-orig-{fold}") for fold in range(3)]
    changes = {
        layer: np.mean([sum((a[n] ^ b[n]).mean() for a, b in itertools.pairwise(run)) for run in runs])
        for layer in LAYERS
        for n in [f"{layer}.weight"]
    }
    most = sorted(changes, key=changes.get, reverse=True)[:3]
    said = re.search(r"<li>hydra, keep 0.1, orig: (.*?)</li>", html)[1]
    assert re.findall(r"<strong>(.*?)</strong>", said) == most
    assert float(re.search(r"</strong> ([\d.]+)", said)[1]) == pytest.approx(changes[most[0]], rel=1e-3)


def test_dead_channels_and_the_share_kept_are_those_of_the_masks(opened, world, world_page):
    browser = opened(page=world_page)
    stored = browser.execute_script("return JSON.parse(document.getElementById('atlas').textContent).runs['1']")
    run = masks(world / "hydra-0.1-orig-0")
    for key, read in (("kept", lambda m: m.mean()), ("dead", lambda m: 1 - m.reshape(len(m), -1).any(1).mean())):
        expected = [[read(run[epoch][f"{layer}.weight"]) for epoch in range(1, EPOCHS + 1)] for layer in LAYERS]
        np.testing.assert_allclose(stored["maps"][key], expected, rtol=6e-3)


def test_the_map_of_a_run_reads_in_grey(opened, trained, runs):
    browser = opened()
    browser.execute_script("document.querySelector('#run-5').open = true")
    browser.execute_async_script("setTimeout(arguments[0], 100)")
    image = browser.find_element("css selector", "#run-5 svg.heat image").get_attribute("href")
    run = [masks_in(trained / f"orig/masks/epoch-{epoch:03d}.safetensors") for epoch in range(4)]
    expected = [[(m[name] ^ run[0][name]).mean() for m in run[1:]] for name in run[0]]
    pixels = Image.open(io.BytesIO(base64.b64decode(image.removeprefix("data:image/png;base64,"))))
    grey = np.asarray(pixels.convert("RGB").convert("L"), dtype=float)
    assert grey.shape == (3, 3)
    order = np.argsort(np.ravel(expected), kind="stable")
    assert (np.diff(grey.ravel()[order]) >= -1).all()
    assert grey.max() - grey.min() > 60


def test_live_lambda_max_by_layer_is_read_where_it_was_measured(world, tmp_path):
    run = copy(world / "hydra-0.1-orig-0", tmp_path / "run")
    records = [
        {
            "checkpoint": f"ckpt/{name}.safetensors",
            "epoch": epoch,
            "batch_norm": "batch",
            "layers_live": {"linear": value},
        }
        for name, epoch, value in (("prune-epoch-004", 4, 2.5), ("prune-best", 4, 9.0), ("finetune-best", 2, 9.0))
    ]
    (run / "sharpness-by-layer.json").write_text(json.dumps(records))
    found, _ = read_maps(open_run(run))
    values = found.values["lambda_max_live_batch"]
    assert values[LAYERS.index("linear"), 3] == 2.5
    assert np.isnan(values).sum() == values.size - 1
    (run / "sharpness-by-layer.json").write_text(json.dumps([{"epoch": 4}]))
    with pytest.raises(InputError, match=r"sharpness-by-layer\.json: checkpoint: Field required; measure it again"):
        read_maps(open_run(run))
