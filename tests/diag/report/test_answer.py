"""The cards say what `compare` and `check` say, and draw what the runs hold, arm by arm."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from s2ap_diag.commands import main
from s2ap_diag.reading.results import collect
from s2ap_diag.report.groups import group_runs
from s2ap_diag.report.verdicts import verdicts
from tests.diag.report.gallery import LAYERS, WARMUP, gallery
from tests.diag.report.pages import Parsed, copy, report
from tests.reading import masks_in

pytestmark = pytest.mark.usefixtures("tiny_network")


def invoke(*arguments: object) -> object:
    return json.loads(CliRunner().invoke(main, list(map(str, arguments))).stdout)


def card_of(page: Path, nth: int = 0) -> str:
    return page.read_text().split("<article ")[1 + nth].partition("</article>")[0]


def test_the_verdicts_are_those_of_compare(world, world_page):
    (one,) = invoke("compare", world, "--arm", "orig", "--arm", "s2ap", "--where", "method.name=hydra", "--json", "-")
    card = card_of(world_page)
    cells = re.findall(
        r"<td class=\"n (\w+)\" data-heading=\"([^\"]*)\"><b>(.)</b> (.*?)<br><small>(.*?)</small>", card
    )
    shown = {heading: (state, mean, interval) for state, heading, _, mean, interval in cells}
    for name, heading, scale in (
        ("mask_robust", "raw mask, robust, points", False),
        ("finetuned_robust", "finetuned, robust, points", False),
        ("lambda_max_live", "live λ_max, ratio", True),
        ("loss_difference", "ΔL at rho = 0.01", False),
    ):
        metric = one["metrics"][name]
        numbers = [metric[key] for key in ("difference", "low", "high")]
        state, mean, interval = shown[heading]
        said = [float(text) for text in re.findall(r"[-+\d.e]+", mean + interval)]
        np.testing.assert_allclose(said, [10**x for x in numbers] if scale else numbers, rtol=0.02, atol=0.006)
        better = (
            metric["difference"] < 0 if name in ("lambda_max_live", "loss_difference") else metric["difference"] > 0
        )
        beyond = metric["adjusted_p"] < 0.05
        assert state == (("better" if better else "worse") if beyond else "undecided")
    assert f"{one['metrics']['mask_robust']['seeds_needed']} seeds" in card


def test_what_check_found_stands_on_the_card(world, world_page):
    findings = invoke("check", world, "--json", "-")
    ours = [finding for finding in findings if "/hydra-" in finding["run"]]
    failed = sum(not finding["passed"] for finding in ours)
    assert failed
    assert f"{len(ours) - failed} conditions hold" in card_of(world_page)
    assert f"<strong>{failed} fail</strong>" in card_of(world_page)
    assert "another attack" not in card_of(world_page)


def test_the_curves_are_the_seeds_and_their_means(world, world_page):
    card = card_of(world_page)
    drawn = dict(re.findall(r"<h4>(.*?)</h4>(.*?)</section>", card, re.DOTALL))
    rows = {
        arm: [pd.read_csv(world / f"hydra-0.1-{arm}-{fold}/metrics.csv") for fold in range(3)]
        for arm in ("orig", "s2ap")
    }
    for arm, name in enumerate(("orig", "s2ap")):
        for metric, style in (("lambda_max_live_running", "mean"), ("lambda_max_running", "paper")):
            values = [r[(r.stage == "prune") & (r.metric == metric)].set_index("epoch")["value"] for r in rows[name]]
            (curve,) = curves(drawn["λ_max over the search"], style, arm)
            assert json.loads(curve["data-x"]) == list(values[0].index)
            np.testing.assert_allclose(json.loads(curve["data-y"]), np.exp(np.mean(np.log(values), axis=0)), rtol=1e-3)
        assert len(curves(drawn["λ_max over the search"], "fold", arm)) == 3
        (curve,) = curves(drawn["h after the warm-up"], "mean", arm)
        epochs = json.loads(curve["data-x"])
        assert epochs[0] == WARMUP + 1
        distances = [h(world / f"hydra-0.1-{name}-{fold}", epochs[-1]) for fold in range(3)]
        assert json.loads(curve["data-y"])[-1] == pytest.approx(np.mean(distances), rel=1e-3)
    assert {curve["marker-mid"] for curve in curves(card, "mean", 0)} == {"url(#m0)"}
    assert {curve["marker-mid"] for curve in curves(card, "mean", 1)} == {"url(#m1)"}


def test_a_name_has_one_colour_and_marker_in_the_whole_page(world_page):
    html = world_page.read_text()
    cards, _, rest = html.partition('id="tradeoffs"')
    key = re.compile(
        r'<li data-arm="(\d+)"><svg class="sample c\d".*?href="#shape-(\d)".*?</svg>\s*([^<]*?)\s*<', re.DOTALL
    )
    marks = {name: (int(mark), int(shape)) for mark, shape, name in key.findall(cards)}
    assert set(marks) == {"orig", "s2ap", "hydra orig", "magnitude"}
    assert len(set(marks.values())) == 4  # and no two share one
    found = {name: (int(mark), int(shape)) for mark, shape, name in key.findall(rest)}
    assert found == {"hydra orig": marks["hydra orig"], "hydra s2ap": marks["s2ap"]}
    sections = re.findall(r'<details class="run".*?</details>', rest, re.DOTALL)
    for section in sections:
        method, _, arm, _ = re.search(r"<h3>(.*?)</h3>", section)[1].split("-")
        mark = marks[arm if method == "hydra" else method][0]
        assert f'<svg class="sample c{mark}"' in section
        assert set(re.findall(r"marker-mid=\"url\(#m(\d+)h?\)", section)) == {str(mark)}


def curves(html: str, style: str, arm: int) -> list[dict]:
    return [
        a
        for part in html.split(f'<g class="{style} c{arm}" data-arm="{arm}">')[1:]
        for a in Parsed(part.partition("</g>")[0]).all("polyline")
    ]


def h(run: Path, epoch: int) -> float:
    first, last = (masks_in(run / f"masks/epoch-{e:03d}.safetensors") for e in (0, epoch))
    assert set(first) == {f"{layer}.weight" for layer in LAYERS}
    return sum((first[n] ^ last[n]).sum() for n in first) / sum(mask.size for mask in first.values())


def test_means_of_accuracies_carry_their_interval_over_seeds(world, world_page):
    robust = [
        100
        * json.loads((world / f"hydra-0.1-orig-{fold}/results.json").read_text())["evaluate-finetune"][
            "robust_accuracy"
        ]
        for fold in range(3)
    ]
    half = 4.302653 * np.std(robust, ddof=1) / np.sqrt(3)  # t of two degrees of freedom
    label = f"robust {np.mean(robust):.1f} [{np.mean(robust) - half:.1f}, {np.mean(robust) + half:.1f}]"
    dots = Parsed(card_of(world_page)).all("g", class_="dot finetune mean c0")
    assert [dot["data-label"].partition("robust")[2] for dot in dots] == [label.removeprefix("robust")]


def test_arms_of_two_radii_are_told_apart_and_a_copy_is_left_out(world, tmp_path):
    for fold in range(3):
        for arm in ("orig", "s2ap"):
            copy(world / f"hydra-0.1-{arm}-{fold}", tmp_path / f"{arm}-{fold}")
        copy(tmp_path / f"s2ap-{fold}", tmp_path / f"wide-{fold}", minimizer={"gamma": 0.05})
    copy(tmp_path / "orig-0", tmp_path / "orig-again")
    (group,) = group_runs(collect(tmp_path)[0])
    assert group.arms == ["orig", "s2ap, gamma 0.01", "s2ap, gamma 0.05"]
    assert [run.path.name for run in group.left_out] == ["orig-again"]
    answer = verdicts(group)
    assert [row.arm for row in answer.rows] == group.arms[1:]
    assert [row.seeds for row in answer.rows] == [3, 3]


def test_of_many_arms_each_has_a_sentence_and_those_of_one_seed_share_one(world, tmp_path):
    """Six arms told apart by their radius and source; what is as usual is not said, and what is decided comes first."""
    for fold in range(3):
        copy(world / f"hydra-0.1-orig-{fold}", tmp_path / f"orig-{fold}")
        for gamma, source in ((0.01, "pass"), (0.01, "last")):
            run, minimizer = f"s2ap-{gamma}-{source}-{fold}", {"name": "s2ap", "gamma": gamma, "source": source}
            copy(world / f"hydra-0.1-s2ap-{fold}", tmp_path / run, minimizer=minimizer)
    for gamma in (0.001, 0.002, 0.003):
        minimizer = {"name": "s2ap", "gamma": gamma, "source": "pass"}
        copy(world / "hydra-0.1-s2ap-0", tmp_path / f"alone-{gamma}", minimizer=minimizer)
    (group,) = group_runs(collect(tmp_path)[0])
    answer = verdicts(group)
    about = [sentence.partition(" against orig")[0] for sentence in answer.sentences[:-1]]
    assert sorted(about) == ["s2ap, gamma 0.01", "s2ap, gamma 0.01, source last"]
    said = "One or two seeds say nothing of: s2ap, gamma 0.001; s2ap, gamma 0.002; s2ap, gamma 0.003"
    assert answer.sentences[-1] == said
    (one,) = invoke("compare", tmp_path, "--arm", "orig", "--arm", "s2ap", "--where", "minimizer.gamma=0.01",
                    "--where", "minimizer.source=last", "--json", "-")  # fmt: skip
    seen = f"{one['metrics']['mask_robust']['difference']:+.2f}"
    assert seen in answer.sentences[about.index("s2ap, gamma 0.01, source last")]
    assert [row.seeds for row in answer.rows] == [3, 3, 1, 1, 1]


def test_methods_without_a_search_stand_beside_the_reference(world):
    arms, methods = group_runs(collect(world)[0])
    assert arms.arms == ["orig", "s2ap"]
    assert methods.title.endswith("methods")
    assert set(methods.arms) == {"hydra orig", "magnitude"}
    (row,) = verdicts(methods).rows
    assert any("evaluated with attack" in note for note in row.notes)  # one was attacked otherwise
    assert "sharpness" not in row.notes


def test_one_run_makes_no_card(world, tmp_path):
    copy(world / "hydra-0.1-orig-0", tmp_path / "runs/only")
    assert report(tmp_path / "runs").exit_code == 0
    html = (tmp_path / "runs/report.html").read_text()
    assert "What check found" in html
    assert "<h4>" not in html


def test_several_methods_and_budgets_share_their_scales(trained, tmp_path):
    gallery(trained / "orig", tmp_path, keeps=(0.1, 0.05), arms=("orig", "s2ap"), folds=1, finetuning=2)
    assert report(tmp_path).exit_code == 0
    card = card_of(tmp_path / "report.html")
    panel = dict(re.findall(r"<h4>(.*?)</h4>(.*?)</section>", card, re.DOTALL))["λ_max over the search"]
    facets = re.findall(r"<figcaption>(.*?)</figcaption>", panel)
    assert facets == ["harp, keep 0.1", "harp, keep 0.05", "hydra, keep 0.1", "hydra, keep 0.05"]
    ticks = [re.findall(r'<text class="y"[^>]*>(.*?)</text>', svg) for svg in panel.split("<figure>")[1:]]
    assert all(one == ticks[0] for one in ticks)
    assert "an interval takes 3 seeds" in card
