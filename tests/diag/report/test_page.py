"""The page is safe from what users write, leads to the runs' files and says what it leaves out."""

import base64
import dataclasses
import hashlib
import json
import os
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
import torch

from s2ap_core.files.tensors import save_masks
from s2ap_diag.reading.results import open_run
from s2ap_diag.report.maps import BY_LAYER, MEASURED, TRACKED, atlas
from s2ap_diag.report.page import Page, render, summarise
from tests.diag.report.pages import DAMAGED, HOSTILE, Parsed, copy, dense, report

pytestmark = pytest.mark.usefixtures("tiny_network")


def test_user_strings_are_text_only(parsed):
    expected = {
        "html", "head", "meta", "link", "title", "style", "body", "header", "main", "section", "footer", "script",
        "h1", "h2", "h3", "p", "a", "div", "span", "small", "table", "caption", "thead", "tbody", "tr", "th", "td",
        "details", "summary", "dl", "dt", "dd", "pre", "figure", "figcaption", "svg", "defs", "lineargradient",
        "stop", "marker", "circle", "rect", "path", "polyline", "g", "text", "image", "use", "article", "h4", "ul",
        "li", "b", "br", "strong", "noscript", "label", "input", "select", "option",
    }  # fmt: skip
    assert {tag for tag, _ in parsed.elements} <= expected
    assert [script.get("type") for script in parsed.all("script")] == ["application/json", None]  # the first is data
    assert len(parsed.all("style")) == 1
    for tag, attributes in parsed.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "srcdoc")], tag
    inside = [tag for tag, text in parsed.text if "window.owned" in text]
    assert inside
    assert set(inside) <= {"title", "h1", "h3", "p", "a", "pre", "dt", "dd", "option", "td"}
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
        text = [text for inside, text in parsed.text if inside == tag][-1]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"


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
    layers = [f"layer{i // 5}.{i % 5}.conv1" for i in range(21)]
    rows = [("finetune", epoch, "", "val_loss", rng.lognormal()) for epoch in range(1, 101)]
    spectra = [f"lambda_max{live}_{mode}" for live in ("", "_live") for mode in ("running", "batch")]
    for epoch in range(21):
        by_layer = [f"{kind}/{layer}" for kind in TRACKED for layer in layers]
        rows += [("prune", epoch, "", metric, rng.lognormal(3, 3)) for metric in ("val_loss", *spectra, *by_layer)]
        masks = {f"{layer}.weight": torch.from_numpy(rng.random((64, 9)) < 0.1) for layer in layers}
        save_masks(to / f"masks/epoch-{epoch:03d}.safetensors", masks, {})
    columns = ["stage", "epoch", "iteration", "metric", "value"]
    pd.DataFrame(rows, columns=columns).to_csv(to / "metrics.csv", index=False)
    measured = [
        {
            "checkpoint": f"prune-epoch-{epoch:03d}.safetensors",
            "epoch": epoch,
            "batch_norm": kind.rpartition("_")[2],
            "layers_live": {layer: rng.lognormal() for layer in layers},
        }
        for epoch in range(1, 21)
        for kind in list(MEASURED)[:2]
    ]
    (to / BY_LAYER).write_text(json.dumps(measured))
    return to


def test_300_runs_of_the_papers_size_stay_below_15_mb(trained, tmp_path):
    run = open_run(paper_size(trained / "orig", tmp_path / "cifar10-resnet18-harp-s2ap-90"))
    ((_, view),), skipped = summarise([run], tmp_path, tmp_path / "report.html")
    assert not skipped
    views = [dataclasses.replace(view, name=f"{view.name}/seed-{i}", seed=i) for i in range(300)]
    maps = {str(i): view.maps for i in range(300)}
    stored = atlas([], maps, {path: number for number, path in enumerate(maps, 1)})
    html = render(
        Page("300 runs", views, atlas={**stored, "sides": [{"name": "all", "group": 0, "arm": 0, "runs": [1]}]})
    )
    assert html.count("lambda_max_live_running") > 300  # with all that can be tracked by layer
    assert html.count('<details class="run"') == 300
    assert len(html.encode()) < 15e6
