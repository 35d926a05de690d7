"""The report as a browser and an HTML parser see it: sorted, hovered, printed, and safe from what users write."""

import base64
import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import tomllib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
import tomli_w
import torch
from click.testing import CliRunner, Result
from PIL import Image
from scipy.stats import binomtest

from s2ap_core.data import InMemory
from s2ap_core.files.tensors import load_masks, save_masks
from s2ap_core.runs.checkpoints import load_checkpoint
from s2ap_core.training.stages import Stages
from s2ap_diag.commands import main
from s2ap_diag.curvature.tracking import build_trackers
from s2ap_diag.reading.results import open_run
from s2ap_diag.report.charts import chart
from s2ap_diag.report.page import render, summarise
from s2ap_diag.sharpness import SharpnessSettings, measure_sharpness

pytestmark = pytest.mark.usefixtures("tiny_network")

SCRIPT = "<script>window.owned = 1</script>"
IMAGE = "\"><img src=x onerror='window.owned = 1'>"
HOSTILE = f"{SCRIPT}{IMAGE}\n../../x %s {{{{ 7 * 7 }}}} {'w' * 300}"
ARMS = {
    "orig": {"seed": 9},
    "s2ap": {
        "seed": 10,
        "minimizer": {"name": "s2ap", "gamma": 0.01, "warmup": 1},
        "finetune": {"awp": True},
    },
}


def report(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


def copy(run: Path, to: Path, **settings: object) -> Path:
    """The same run elsewhere, under a config with these settings changed."""
    shutil.copytree(run, to)
    config = tomllib.loads((to / "config.toml").read_text())
    for key, value in settings.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    (to / "config.toml").write_text(tomli_w.dumps(config))
    return to


def dense(trained: Path, to: Path) -> None:
    """A run that ended with the dense network."""
    copy(trained / "orig", to, evaluation={"stages": ["pretrain"]})
    results = json.loads((to / "results.json").read_text())
    (to / "results.json").write_text(json.dumps({k: results[k] for k in ("pretrain", "evaluate-pretrain")}))
    (to / "sharpness.json").unlink()
    shutil.rmtree(to / "masks")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, new_run, data: InMemory, tiny_network) -> Path:
    """A run of each arm, tracked at each iteration, the first with its sharpness measured."""
    folder = tmp_path_factory.mktemp("trained")
    for name, settings in ARMS.items():
        run = new_run(folder / name, tracking={"every": 1, "hvps": 2, "images": 8}, **settings)
        Stages(run, data, callbacks=build_trackers(run.config.tracking)).all()
    checkpoint = load_checkpoint(folder / "orig/ckpt/prune-best.safetensors")
    settings = SharpnessSettings(rho=(0.001, 0.01), images=16, batch_size=16, hvps=3, steps=3)
    measured = measure_sharpness(checkpoint, data, run.config.objective, settings)
    (folder / "orig/sharpness.json").write_text(json.dumps([measured.record()]))
    return folder


@pytest.fixture(scope="module")
def runs(trained: Path, tmp_path_factory) -> Path:
    """The two arms, runs with hostile names and settings, a dense one, and three that cannot be shown."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ARMS:
        copy(trained / name, folder / name)
    hostile = copy(trained / "s2ap", folder / IMAGE.replace("/", "") / "50% #1?", title=HOSTILE, seed=2)
    (hostile / "environment.json").write_text(
        json.dumps(json.loads((hostile / "environment.json").read_text()) | {SCRIPT: IMAGE, "half": "\ud800"})
    )
    copy(trained / "orig", folder / "javascript:alert(1)", network={"name": "tiny"}, title=SCRIPT)
    copy(trained / "orig", folder / ("n" * 200))
    dense(trained, folder / "dense")
    (copy(trained / "orig", folder / f"masks {SCRIPT[:8]}") / "masks/epoch-002.safetensors").write_bytes(b"cut")
    (copy(trained / "orig", folder / "metrics") / "metrics.csv").write_text("stage,epoch\n<b>")
    (copy(trained / "orig", folder / "half") / "results.json").unlink()
    return folder


DAMAGED = ("epoch-002.safetensors", "metrics.csv", "half done")


@pytest.fixture(scope="module")
def page(runs: Path) -> Path:
    result = report(runs, "--title", HOSTILE, "--out", runs / "report.html")
    assert result.exit_code == 0, result.output
    return runs / "report.html"


class Parsed(HTMLParser):
    """Elements with their attributes, and the text within each, as the standard library's parser reads them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[tuple[str, str]] = []
        self.open: list[str] = ["-"]
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        while tag in self.open and self.open.pop() != tag:
            pass  # table cells end where the next one begins

    def handle_data(self, text):
        self.text.append((self.open[-1], text))

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        wanted = {key.rstrip("_"): value for key, value in attributes.items()}
        return [found for name, found in self.elements if name == tag and wanted.items() <= found.items()]


@pytest.fixture(scope="module")
def parsed(page: Path) -> Parsed:
    return Parsed(page.read_text(encoding="utf-8"))


# Without a browser


def test_user_strings_are_text_only(parsed):
    expected = {
        "html", "head", "meta", "link", "title", "style", "body", "header", "main", "section", "footer", "script",
        "h1", "h2", "h3", "p", "a", "div", "span", "small", "table", "caption", "thead", "tbody", "tr", "th", "td",
        "details", "summary", "dl", "dt", "dd", "pre", "figure", "figcaption", "svg", "defs", "lineargradient",
        "stop", "marker", "circle", "rect", "path", "polyline", "g", "text", "image",
    }  # fmt: skip
    assert {tag for tag, _ in parsed.elements} <= expected
    assert len(parsed.all("script")) == len(parsed.all("style")) == 1
    for tag, attributes in parsed.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "srcdoc")], tag
    inside = [tag for tag, text in parsed.text if "window.owned" in text]
    assert inside
    assert set(inside) <= {"title", "h1", "h3", "p", "a", "pre", "dt", "dd"}
    whole = [tag for tag, text in parsed.text if HOSTILE in text]
    assert {"title", "h1", "p"} <= set(whole)  # nothing of it is interpreted on the way: %s, {{ }}, newline


def test_links_are_relative_encoded_and_lead_to_the_runs_files(parsed, page):
    targets = [attributes["href"] for attributes in parsed.all("a")]
    ids = {attributes["id"] for _, attributes in parsed.elements if "id" in attributes}
    files = [target for target in targets if not target.startswith("#")]
    assert {target[1:] for target in targets if target.startswith("#")} <= ids
    assert len(files) >= 6 * 7
    for target in files:
        assert not set(target) & set(" :?#\"'<>\\")
        path = (page.parent / unquote(target)).resolve()
        assert path.exists(), target
        assert path.is_relative_to(page.parent.resolve())
        assert not target.startswith(("/", ".."))


def test_links_from_elsewhere(trained, tmp_path):
    out = tmp_path / "reports here" / "r.html"
    assert report(trained, "--out", out).exit_code == 0
    files = [a["href"] for a in Parsed(out.read_text()).all("a") if not a["href"].startswith("#")]
    assert files
    for target in files:
        assert (out.parent / unquote(target)).resolve().is_relative_to(trained.resolve())
        assert (out.parent / unquote(target)).exists()


def test_names_that_are_not_utf8(trained, tmp_path):
    """Runs in such a folder are shown, masks included, under names that a page can hold."""
    folder = os.fsencode(tmp_path / "runs") + b"/\xff"
    copy(trained / "orig", Path(os.fsdecode(folder + b"/pruned")))
    dense(trained, Path(os.fsdecode(folder + b"/dense")))
    assert report(tmp_path / "runs").exit_code == 0
    found = Parsed((tmp_path / "runs/report.html").read_text(encoding="utf-8"))
    links = [a["href"] for a in found.all("a")]
    assert {"%FF/dense/config.toml", "%FF/pruned/config.toml"} <= set(links)
    assert not [text for tag, text in found.text if tag == "dt" and "pruned" in text]  # none is skipped


def test_the_policy_names_this_style_and_script(parsed):
    (policy,) = [m["content"] for m in parsed.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.split(maxsplit=1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for tag in ("style", "script"):
        text = "".join(text for inside, text in parsed.text if inside == tag)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"


def row_of(html: str, name: str) -> list[str]:
    """The cells of a run's row in the summary, as text."""
    body = html.partition("<tbody>")[2].partition("</tbody>")[0]
    (row,) = [part for part in body.split("<tr>") if f">{name}</a>" in part]
    return ["".join(text for _, text in Parsed(f"<t{cell}").text).strip() for cell in row.split("<t")[1:]]


def test_the_summary_says_what_the_run_found(trained, page):
    html = page.read_text(encoding="utf-8")
    run = trained / "s2ap"
    results = json.loads((run / "results.json").read_text())
    masks = [load_masks(run / f"masks/epoch-{epoch:03d}.safetensors")[0] for epoch in (0, 3)]
    h = sum((masks[0][n] ^ masks[1][n]).sum().item() for n in masks[0]) / sum(m.numel() for m in masks[0].values())
    seconds = pd.read_csv(run / "timing.csv")["seconds"].sum()
    accuracies = [
        f"{100 * results[f'evaluate-{stage}'][f'{kind}_accuracy']:.1f}"
        for stage in ("prune", "finetune")
        for kind in ("clean", "robust")
    ]
    expected = ["s2ap", "digits", "tiny", "hydra", "s2ap", "0.01", "70 %", "10", *accuracies, "–", "–", "–"]
    assert row_of(html, "s2ap") == [*expected, f"{h:.4g}", f"{seconds:.0f}"]
    (measured,) = json.loads((trained / "orig/sharpness.json").read_text())
    orig = row_of(html, "orig")
    assert orig[4:8] == ["orig", "–", "70 %", "9"]
    assert float(orig[12]) == pytest.approx(measured["lambda_max"], rel=1e-3)
    assert float(orig[13]) == pytest.approx(measured["lambda_max_live"], rel=1e-3)
    assert float(orig[14]) == pytest.approx(measured["loss_difference"]["0.01"]["mean"], rel=1e-3)
    assert "BatchNorm running" in html
    unpruned = row_of(html, "dense")
    assert unpruned[3:7] == ["–", "–", "–", "dense"]
    assert unpruned[8:16] == ["–"] * 8


def test_lambda_max_names_its_source_and_batch_norm(trained, tmp_path):
    """Tracked values stand in where none was measured; values of two modes are told apart."""
    tracked = copy(trained / "s2ap", tmp_path / "tracked/run")
    assert report(tmp_path / "tracked").exit_code == 0
    html = (tmp_path / "tracked/report.html").read_text()
    rows = pd.read_csv(tracked / "metrics.csv")
    for column, metric in ((12, "lambda_max_running"), (13, "lambda_max_live_running")):
        last = rows[(rows.metric == metric) & (rows.epoch == 3) & rows.iteration.isna()]["value"].item()
        assert float(row_of(html, "run")[column]) == pytest.approx(last, rel=1e-3)
    assert "λ_max, BatchNorm running" in html
    assert "mean over the readings of the last epoch" in html
    for mode in ("running", "batch"):
        file = copy(trained / "orig", tmp_path / "both" / mode) / "sharpness.json"
        file.write_text(json.dumps([{**json.loads(file.read_text())[0], "batch_norm": mode}]))
    assert report(tmp_path / "both").exit_code == 0
    html = (tmp_path / "both/report.html").read_text()
    assert [row_of(html, mode)[12].split()[1] for mode in ("running", "batch")] == ["running", "batch"]
    assert "mean over the readings of the last epoch" not in html


def test_accuracies_carry_their_wilson_interval(trained, parsed):
    results = json.loads((trained / "s2ap/results.json").read_text())["evaluate-finetune"]
    correct = round(12 * results["robust_accuracy"])
    interval = binomtest(correct, 12).proportion_ci(method="wilson")
    said = f"95 % Wilson interval {100 * interval.low:.1f}–{100 * interval.high:.1f} %, 12 images, pgd-50"
    assert [a["title"] for a in parsed.all("td") if (a.get("title") or "").startswith(said)]


def test_curves_hold_what_was_tracked(trained, tmp_path):
    assert report(trained / "s2ap", "--out", tmp_path / "r.html").exit_code == 0
    drawn = re.findall(r"<figcaption>(.*?)</figcaption>(.*?)</figure>", (tmp_path / "r.html").read_text(), re.DOTALL)
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
    assert [one.thin for one in both.series] == [False, True]
    alone = chart("t", {"live channels": {}, "all scores": {1: 9.0, 2: 8.0}}, thin="all scores")
    assert [one.thin for one in alone.series] == [False]


def test_a_sharpness_without_the_live_reading_is_shown_all_the_same(trained, tmp_path):
    file = copy(trained / "orig", tmp_path / "runs/before") / "sharpness.json"
    (measured,) = json.loads(file.read_text())
    del measured["lambda_max_live"]
    file.write_text(json.dumps([measured]))
    assert report(tmp_path / "runs").exit_code == 0
    row = row_of((tmp_path / "runs/report.html").read_text(), "before")
    assert float(row[12]) == pytest.approx(measured["lambda_max"], rel=1e-3)
    assert row[13] == "–"


def test_one_value_and_equal_values_can_be_drawn():
    for values in ({3: 1.0}, {1: 5.0, 2: 5.0}, {1: 0.0}, {0: -1.0, 1: 2.0}, {0: 1e-9, 1: 1e9}):
        for log in (False, True):
            drawn = chart("t", {"a": values}, log=log)
            points = np.array([point.split(",") for point in drawn.series[0].points.split()], dtype=float)
            assert ((points >= [52, 30]) & (points <= [350, 182])).all()
    assert chart("t", {"a": {}}) is None


def test_the_heat_map_shows_each_layer_and_reads_in_grey(trained, tmp_path):
    assert report(trained / "s2ap", "--out", tmp_path / "r.html").exit_code == 0
    found = Parsed((tmp_path / "r.html").read_text())
    (heat,) = found.all("svg", class_="heat")
    masks = [load_masks(trained / f"s2ap/masks/epoch-{epoch:03d}.safetensors")[0] for epoch in range(4)]
    expected = [[(m[name] ^ masks[0][name]).float().mean().item() for m in masks[1:]] for name in masks[0]]
    np.testing.assert_allclose(json.loads(heat["data-h"]), expected, rtol=1e-3)
    (image,) = found.all("image")
    pixels = Image.open(io.BytesIO(base64.b64decode(image["href"].removeprefix("data:image/png;base64,"))))
    grey = np.asarray(pixels.convert("L"), dtype=float)
    assert grey.shape == (3, 3)
    order = np.argsort(np.ravel(expected), kind="stable")
    assert (np.diff(grey.ravel()[order]) >= 0).all()
    assert grey.max() - grey.min() > 60
    texts = [text for tag, text in found.text if tag == "text"]
    assert texts.index("conv1") < texts.index("conv2") < texts.index("linear")


def test_every_graphic_has_a_name(parsed):
    graphics = [a for a in parsed.all("svg") if a.get("aria-hidden") != "true"]
    assert graphics
    assert all(a["role"] == "img" and len(a["aria-label"]) > 20 for a in graphics)


def test_what_cannot_be_shown_is_listed_with_the_reason(page, parsed):
    reasons = [text for tag, text in parsed.text if tag == "dd"]
    for reason in DAMAGED:
        assert any(reason in text for text in reasons), reason
    assert len(parsed.all("details", class_="run")) == 6


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("results.json", '{"prune": 3, "evaluate-pretrain": {}, "evaluate-prune": {}, "evaluate-finetune": {}}'),
        ("results.json", '["evaluate-pretrain", "evaluate-prune", "evaluate-finetune"]'),
        ("sharpness.json", '[{"lambda_max": "large"}]'),
        ("sharpness.json", "{}"),
        ("metrics.csv", "stage,epoch,iteration,metric,value\nprune,<b>,,val_loss,1.0\n"),
        ("timing.csv", "stage,epoch,seconds\nprune,1,fast\n"),
        ("masks/epoch-000.safetensors", ""),
    ],
)
def test_a_damaged_file_costs_its_own_run_only(trained, tmp_path, file, content):
    copy(trained / "orig", tmp_path / "runs/a")
    broken = copy(trained / "orig", tmp_path / "runs/b")
    (broken / file).write_text(content)
    result = report(tmp_path / "runs")
    assert result.exit_code == 0, result.output
    found = Parsed((tmp_path / "runs/report.html").read_text())
    assert len(found.all("details", class_="run")) == 1
    assert any(file in text for tag, text in found.text if tag == "dd")
    alone = report(broken)
    assert alone.exit_code == 2
    assert len(alone.stderr.strip().splitlines()) == 1
    assert not (broken / "report.html").exists()


def test_no_runs_at_all_is_refused(trained, tmp_path):
    (tmp_path / "empty").mkdir()
    (copy(trained / "orig", tmp_path / "half/run") / "results.json").unlink()
    for folder, words in (("empty", "no finished run"), ("half", "half done"), ("missing", "no such folder")):
        result = report(tmp_path / folder)
        assert result.exit_code == 2
        assert words in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
        assert not (tmp_path / folder / "report.html").exists()


def test_the_command_prints_the_path_and_replaces_the_file_whole(trained, tmp_path):
    out = tmp_path / "r.html"
    out.write_text("the old one")
    os.link(out, tmp_path / "old")
    result = report(trained, "--out", out)
    assert result.stdout == f"{out}\n"
    assert (tmp_path / "old").read_text() == "the old one"  # a new file was put in its place
    assert not list(tmp_path.glob(".*"))
    assert report(trained, "--out", out, "--quiet").output == ""
    assert "<title>trained" in out.read_text()


def paper_size(run: Path, to: Path) -> Path:
    """A run with as many epochs and layers as the paper's on CIFAR-10: 20 and 100 epochs, ResNet-18."""
    copy(run, to, prune={"epochs": 20}, finetune={"epochs": 100})
    rng = np.random.default_rng(0)
    rows = [("finetune", epoch, "", "val_loss", rng.lognormal()) for epoch in range(1, 101)]
    spectra = [f"lambda_max{live}_{mode}" for live in ("", "_live") for mode in ("running", "batch")]
    for epoch in range(21):
        rows += [("prune", epoch, "", metric, rng.lognormal(3, 3)) for metric in ("val_loss", *spectra)]
        masks = {
            f"layer{i // 5}.{i % 5}.conv1.weight": torch.from_numpy(rng.random((64, 9)) < 0.1) for i in range(21)
        }  # fmt: skip
        save_masks(to / f"masks/epoch-{epoch:03d}.safetensors", masks, {})
    columns = ["stage", "epoch", "iteration", "metric", "value"]
    pd.DataFrame(rows, columns=columns).to_csv(to / "metrics.csv", index=False)
    return to


def test_200_runs_of_the_papers_size_stay_below_6_mib(trained, tmp_path):
    run = open_run(paper_size(trained / "orig", tmp_path / "cifar10-resnet18-harp-s2ap-90"))
    (view,), skipped = summarise([run], tmp_path, tmp_path / "report.html")
    assert not skipped
    views = [dataclasses.replace(view, name=f"{view.name}/seed-{i}", seed=i) for i in range(200)]
    html = render(views, [], "200 runs")
    assert html.count('<details class="run"') == 200
    assert len(html.encode()) < 6 * 2**20


# In a browser

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="no browser here: install chromium and chromium-driver"
)
FLAGS = (
    "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
    "disable-component-update", "disable-sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('browser')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, page) -> Callable[..., object]:
    """``opened(width=1600, scheme="light", media="screen")``: the browser with the report freshly loaded."""

    def load(width: int = 1600, scheme: str = "light", media: str = "screen") -> object:
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
        browser.get("about:blank")  # a change of the fragment alone loads nothing
        for kind in ("browser", "performance"):
            browser.get_log(kind)
        browser.get(page.as_uri())
        return browser

    return load


def column(browser, heading: str, nth: int = 0) -> tuple[object, Callable[[], list[str]]]:
    """The button of a heading, and a function that reads its column from top to bottom."""
    headings = browser.find_elements("css selector", "#runs thead tr:last-child th")
    index = [i for i, th in enumerate(headings) if th.text.split("\n")[0].startswith(heading)][nth]
    script = "return [...document.querySelectorAll('#runs tbody tr')].map(r => r.cells[arguments[0]].innerText)"
    return headings[index].find_element("tag name", "button"), lambda: browser.execute_script(script, index)


@needs_browser
def test_it_loads_cleanly_and_fetches_nothing(opened, page):
    browser = opened()
    browser.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert page.as_uri() in asked
    assert [url for url in asked if not url.startswith("data:") and url != page.as_uri()] == []
    assert browser.execute_script("return window.owned") is None
    assert browser.execute_script("return document.title").startswith("<script>window.owned")


@needs_browser
def test_the_policy_stops_foreign_scripts_styles_and_images(opened):
    browser = opened()
    browser.execute_script(
        """
        window.stopped = [];
        addEventListener("securitypolicyviolation", (event) => stopped.push(event.effectiveDirective));
        const script = document.createElement("script");
        script.textContent = "window.owned = 1";
        const image = document.createElement("img");
        image.src = "picture.png";
        const text = document.createElement("p");
        text.setAttribute("style", "color: red");
        document.body.append(script, image, text);
        """
    )
    stopped = browser.execute_async_script("const done = arguments[0]; setTimeout(() => done(window.stopped), 200)")
    assert sorted(stopped) == ["img-src", "script-src-elem", "style-src-attr"]
    assert browser.execute_script("return window.owned") is None


@needs_browser
def test_the_table_sorts_by_number_both_ways(opened):
    browser = opened()
    button, read = column(browser, "seed")
    before = read()
    heading = button.find_element("xpath", "..")
    assert heading.get_attribute("aria-sort") is None
    button.click()
    assert read() == sorted(before, key=int) != sorted(before)
    assert heading.get_attribute("aria-sort") == "ascending"
    button.click()
    assert read() == sorted(before, key=int, reverse=True)
    assert heading.get_attribute("aria-sort") == "descending"
    other, _ = column(browser, "run")
    other.click()
    assert heading.get_attribute("aria-sort") is None
    assert len(browser.find_elements("css selector", "[aria-sort]")) == 1


@needs_browser
def test_the_table_sorts_from_the_keyboard_and_keeps_the_missing_last(opened):
    from selenium.webdriver import ActionChains, Keys

    browser = opened()
    button, read = column(browser, "γ")
    browser.execute_script("arguments[0].focus()", button)
    for order in ("ascending", "descending"):
        ActionChains(browser).send_keys(Keys.ENTER).perform()
        assert button.find_element("xpath", "..").get_attribute("aria-sort") == order
        assert read() == ["0.01", "0.01", "–", "–", "–", "–"]
    ActionChains(browser).send_keys(Keys.TAB, Keys.SPACE).perform()
    assert column(browser, "sparsity")[0].find_element("xpath", "..").get_attribute("aria-sort") == "ascending"


@needs_browser
def test_sections_open_by_click_link_and_all_at_once(opened):
    browser = opened()

    def open_sections() -> list[bool]:
        return browser.execute_script("return [...document.querySelectorAll('details.run')].map(d => d.open)")

    assert not any(open_sections())
    browser.find_element("css selector", "details.run > summary").click()
    assert open_sections() == [True] + [False] * 5
    browser.find_element("css selector", '#runs a[href="#run-3"]').click()
    browser.execute_async_script("setTimeout(arguments[0], 100)")
    assert open_sections() == [True, False, True] + [False] * 3
    open_all, close_all = browser.find_elements("css selector", ".controls button")
    open_all.click()
    assert all(open_sections())
    close_all.click()
    assert not any(open_sections())


@needs_browser
@pytest.mark.parametrize("width", [400, 1600])
def test_nothing_is_wider_than_the_window(opened, width):
    browser = opened(width)
    browser.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    wide = """
        const room = document.documentElement.clientWidth;
        const scrolls = (e) => e.closest(".wide") && !e.classList.contains("wide");
        return [document.documentElement.scrollWidth - room,
                [...document.body.querySelectorAll("*")].filter((e) => !scrolls(e) && !e.closest("svg")
                    && e.getBoundingClientRect().right > room + 1).map((e) => e.outerHTML.slice(0, 80))]
    """
    overflow, elements = browser.execute_script(wide)
    assert overflow <= 0
    assert elements == []
    assert browser.execute_script("return document.querySelector('svg.chart').getBoundingClientRect().width") > 300
    hidden = "const box = document.querySelector('.wide'); return box.scrollWidth - box.clientWidth"
    assert (browser.execute_script(hidden) > 0) == (width == 400)  # the summary alone scrolls, in a narrow window


@needs_browser
def test_pointer_and_arrow_keys_read_the_values(opened, trained):
    from selenium.webdriver import ActionChains, Keys

    browser = opened()
    browser.find_element("css selector", '#runs a[href="#run-5"]').click()
    browser.execute_async_script("setTimeout(arguments[0], 100)")
    section = browser.find_element("css selector", "#run-5")
    assert "orig" in section.text.splitlines()[0]
    tip = browser.find_element("id", "tip")
    rows = pd.read_csv(trained / "orig/metrics.csv")
    readings = rows[(rows.stage == "prune") & rows.iteration.isna()].set_index(["metric", "epoch"])["value"]
    loss = section.find_element("css selector", "svg.chart")  # the first picture
    assert tip.text == ""
    ActionChains(browser).move_to_element_with_offset(loss, 2 - loss.size["width"] // 2, 0).perform()
    said, _, value = tip.text.rpartition(" ")
    assert said == "search, epoch 0:"
    assert float(value) == pytest.approx(readings["val_loss", 0], rel=1e-3)
    assert len(loss.find_elements("css selector", ".near")) == 1
    heat = section.find_element("css selector", "svg.heat")
    browser.execute_script("arguments[0].focus()", heat)
    ActionChains(browser).send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_DOWN).perform()
    masks = [load_masks(trained / f"orig/masks/epoch-{epoch:03d}.safetensors")[0] for epoch in (0, 2)]
    h = (masks[0]["conv2.weight"] ^ masks[1]["conv2.weight"]).float().mean().item()
    assert tip.text.startswith("conv2, epoch 2: h = ")
    assert float(tip.text.rpartition(" ")[2]) == pytest.approx(h, rel=1e-3)
    ActionChains(browser).send_keys(Keys.ESCAPE).perform()
    assert tip.text == ""


@needs_browser
def test_print_shows_every_section_and_no_controls(opened):
    browser = opened(media="print")
    shown = "return [...document.querySelectorAll(arguments[0])].map(e => e.checkVisibility())"
    assert not any(browser.execute_script("return [...document.querySelectorAll('details')].map(d => d.open)"))
    for selector in ("details.run figure", "details.run pre", ".legend dl"):
        visible = browser.execute_script(shown, selector)
        assert visible, selector
        assert all(visible), selector
    assert not any(browser.execute_script(shown, ".controls"))
    page = base64.b64decode(browser.print_page())
    assert page.startswith(b"%PDF")
    assert not any(browser.execute_script("return [...document.querySelectorAll('details')].map(d => d.open)"))


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_schemes(opened, scheme):
    browser = opened(scheme=scheme)
    names = ("ground", "ink", "faint", "link")
    style = "return arguments[0].map(n => getComputedStyle(document.documentElement).getPropertyValue('--' + n).trim())"
    ground, *texts = (luminance(value) for value in browser.execute_script(style, names))
    assert (ground < 0.1) == (scheme == "dark")
    for text in texts:
        low, high = sorted((ground, text))
        assert (high + 0.05) / (low + 0.05) >= 4.5  # WCAG 2.2, 1.4.3


def luminance(colour: str) -> float:
    """Relative luminance of #rgb or #rrggbb (WCAG 2.2)."""
    digits = colour.removeprefix("#")
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
