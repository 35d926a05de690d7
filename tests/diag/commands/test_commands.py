"""The commands on real runs, and on input that they must refuse: exit 2, one line, nothing touched."""

import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes

from s2ap_core.errors import InputError
from s2ap_core.files.tensors import load_tensors, save_masks
from s2ap_core.masks.layers import score_masks
from s2ap_core.masks.masking import masks
from s2ap_core.runs.checkpoints import load_checkpoint, save_checkpoint
from s2ap_core.runs.directory import RunDirectory
from s2ap_core.training.evaluation import load_evaluation
from s2ap_diag.commands.demo import check_made_alike, planned_runs
from s2ap_diag.output import security_curve
from s2ap_diag.reading.read import read
from s2ap_diag.sharpness import RHOS
from s2ap_diag.sweep import measurements
from s2ap_diag.sweep.measurements import measure
from tests.diag.commands.running import invoke, tiny_run
from tests.reading import masks_in

TINY = """
network.width = 2
objective = { eps = "32/255", step = "8/255", steps = 2 }
method = { name = "hydra", keep = 0.3 }
minimizer = { name = "s2ap", gamma = 0.01, warmup = 1 }
tracking = { every = 8, iterations = 2 }
pretrain.epochs = 1
prune.epochs = 2
finetune = { epochs = 1, awp = true }
evaluation = { attack = "pgd-50", n = 100 }
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("runs"), TINY)


def snapshot(folder):
    """Checksum of each file but the log, which says when it was looked at."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "run.log")
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def refused(result, *words):
    """Exit status 2 and one line on standard error, nothing on standard output."""
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert not result.stdout
    for word in words:
        assert word in lines[0], lines[0]


def test_sharpness_measures_every_checkpoint_with_scores(run):
    result = invoke(
        "sharpness", run / "ckpt", "--images", 64, "--batch-size", 32, "--rho", 0.01, "--steps", 2, "--json", "-"
    )
    assert result.exit_code == 0, result.output
    records = json.loads(result.stdout)
    names = [Path(r["checkpoint"]).stem for r in records]
    assert names == ["prune-epoch-000", "prune-epoch-001", "prune-epoch-002", "prune-best"]
    for record in records:
        assert record["batches"] == 2
        assert record["batch_size"] == 32
        assert record["loss_difference"]["0.01"]["mean"] >= 0
        assert abs(record["dominant_eigenvalue"]) >= record["lambda_max"] - 1e-6
        assert "eps 32/255" in record["adversary"]
        assert record["lambda_max_live"] <= record["lambda_max"] * (1 + 1e-4)
        assert 0 <= record["dead_share"] <= 1
        assert record["lambda_max_standard_error"] > 0
        assert record["lambda_max_live_standard_error"] > 0
        assert record["converged"]
        assert max(record["residual"], record["residual_live"]) <= 1e-2
    # The search's gamma is too small for some layers, which is said of each checkpoint, and nothing else is.
    warned = result.stderr.splitlines()
    assert all("no z within gamma = 0.01 changes the mask of" in line for line in warned)
    assert len(warned) == sum(bool(record["out_of_reach"]) for record in records) > 0
    # Before the search the running statistics are the dense network's, and the record says what was done.
    assert "re-estimated" in records[0]["batch_norm"]
    assert records[1]["batch_norm"] == "running"
    scored = load_checkpoint(run / "ckpt" / "prune-best.safetensors").model
    assert records[-1]["n_scores"] == sum(m.scores.numel() for m in score_masks(scored).values())
    assert records[-1]["keep"] == pytest.approx(0.3, abs=0.01)


QUICK = ["--images", 16, "--method", "power", "--iterations", 1, "--no-loss-difference"]


def test_several_at_once_measure_what_one_after_the_other_does(run):
    one, two = (
        json.loads(invoke("sharpness", run / "ckpt", *QUICK, "--workers", workers, "--json", "-").stdout)
        for workers in (1, 2)
    )
    for record in [*one, *two]:
        del record["seconds"]
    assert one == two
    assert len(one) == 4


def end_at_once(job):
    os._exit(9)


def test_a_killed_measurement_is_a_line(run, monkeypatch):
    monkeypatch.setattr(measurements, "_measure_apart", end_at_once)
    refused(invoke("sharpness", run / "ckpt", *QUICK, "--workers", 2), "was killed", "--workers", "--resume")


def test_an_interrupted_measurement_goes_on_where_it_stopped(run, tmp_path, monkeypatch):
    done = []

    def interrupted(job, on_step):
        if "prune-epoch-001" in done:
            raise KeyboardInterrupt
        measured = measure(job, on_step)
        done.extend([] if measured.record is None else [job.path.stem])
        return measured

    file = tmp_path / "r.json"
    asked = ["sharpness", run / "ckpt", *QUICK, "--workers", 1, "--json", file]
    with monkeypatch.context() as patched:
        patched.setattr(measurements, "measure", interrupted)
        assert invoke(*asked).exit_code != 0
    before = json.loads(file.read_text())
    assert [Path(record["checkpoint"]).stem for record in before] == done == ["prune-epoch-000", "prune-epoch-001"]
    assert invoke(*asked, "--resume").exit_code == 0
    after = json.loads(file.read_text())
    assert [Path(record["checkpoint"]).stem for record in after] == [*done, "prune-epoch-002", "prune-best"]
    assert after[:2] == before  # seconds included: they were not measured again
    assert invoke(*asked, "--resume", "--images", 17).exit_code == 0
    assert {record["batch_size"] for record in json.loads(file.read_text())} == {17}  # another measurement
    refused(invoke("sharpness", run / "ckpt", *QUICK, "--resume"), "--resume", "--json FILE")
    best = run / "ckpt" / "prune-best.safetensors"
    refused(invoke("sharpness", best, *QUICK, "--json", file, "--resume"), f"{file} holds", "prune-epoch-000")
    copies = [shutil.copy(best, tmp_path / f"{name}.safetensors") for name in "ab"]
    for more in ([], ["--resume"]):
        invoke("sharpness", *copies, *QUICK, "--workers", 1, "--json", tmp_path / "copies.json", *more)
        records = json.loads((tmp_path / "copies.json").read_text())
        assert [record["checkpoint"] for record in records] == list(map(str, copies))
    file.write_text("{}")
    refused(invoke(*asked, "--resume"), str(file), "no JSON array")


def test_the_paper_s_settings_are_asked_for_by_name(run):
    best = run / "ckpt" / "prune-best.safetensors"
    asked = ["--images", 32, "--steps", 1, "--tolerance", 1e-3]
    (quick,) = json.loads(invoke("sharpness", best, *asked, "--json", "-").stdout)
    (thorough,) = json.loads(invoke("sharpness", best, *asked, "--thorough", "--json", "-").stdout)
    assert list(quick["loss_difference"]) == ["0.001", "0.005", "0.01"]
    assert list(thorough["loss_difference"]) == [f"{rho:g}" for rho in RHOS]
    assert [r["loss_difference"]["0.01"]["restarts"] for r in (quick, thorough)] == [1, 2]


def test_both_modes_of_batch_norm_by_layer_in_one_call(run, tmp_path):
    """Table, JSON and CSV in one order; each mode as if it had been measured alone."""
    files = [run / "ckpt" / f"prune-{name}.safetensors" for name in ("epoch-000", "best")]
    both = ["--batch-norm", "running", "--batch-norm", "batch", "--by-block", "--plot", tmp_path / "p.png"]
    small = ["--images", 16, "--method", "power", "--iterations", 1, "--no-loss-difference"]
    written = ["--csv", tmp_path / "r.csv", "--json", tmp_path / "r.json"]
    table = invoke("sharpness", *files, *both, *small, *written).stdout
    records = json.loads((tmp_path / "r.json").read_text())
    expected = [(str(file), mode) for file in files for mode in ("running", "batch")]
    assert [(r["checkpoint"], r["batch_norm"].split()[0]) for r in records] == expected
    csv = pd.read_csv(tmp_path / "r.csv")
    assert csv["checkpoint"].tolist() == [record["checkpoint"] for record in records]
    assert csv["lambda_max"].tolist() == pytest.approx([record["lambda_max"] for record in records])
    of_whole, of_layers = table.split("diagonal blocks")
    assert re.findall(r"prune-(epoch-\d+|best)", of_whole) == ["epoch-000", "epoch-000", "best", "best"]
    blocks = {name: f"{value:.4g}" for name, value in records[-1]["layers"].items()}
    last = [line.split("│") for line in of_layers.splitlines() if re.search("prune-best.*│ batch ", line)]
    assert {cells[3].strip(): cells[4].strip().removesuffix("*") for cells in last} == blocks
    # The running statistics of epoch 0 are estimated anew, and the batch's mode does not see it.
    alone = invoke("sharpness", files[0], "--batch-norm", "batch", *small, "--json", "-")
    assert json.loads(alone.stdout)[0]["lambda_max"] == records[1]["lambda_max"]


def test_a_last_image_alone_joins_the_batch_before(run):
    best = run / "ckpt" / "prune-best.safetensors"
    small = ["--batch-norm", "batch", "--method", "power", "--iterations", 1, "--rho", 0.01, "--steps", 1]
    result = invoke("sharpness", best, *small, "--images", 33, "--batch-size", 16, "--json", "-")
    (record,) = json.loads(result.stdout)
    assert (record["batches"], record["batch_size"]) == (2, 16)  # the second of 17


REACH = "warning: no z within gamma"
"""What is said of a network whose search had a gamma too small for a layer."""


def test_what_has_not_converged_is_said_in_the_table_and_warned_of(run):
    best = run / "ckpt" / "prune-best.safetensors"
    small = [best, "--images", 32, "--no-loss-difference"]
    found = invoke("sharpness", *small, "--method", "power", "--iterations", 1)
    assert found.exit_code == 0
    wide = invoke("sharpness", *small, "--method", "power", "--iterations", 1, "--wide").stdout
    assert "not λ_max, live" in " ".join(wide.split())
    cells = [cell.strip() for cell in next(line for line in found.stdout.splitlines() if "best" in line).split("│")]
    assert sum(cell.endswith("*") for cell in cells) == 2
    assert "* not converged" in found.stdout
    (warning,) = [line for line in found.stderr.splitlines() if not line.startswith(REACH)]
    assert warning.startswith("warning: lambda_max")
    assert "raise --iterations" in warning
    assert str(best) in warning
    (record,) = json.loads(invoke("sharpness", *small, "--method", "power", "--iterations", 1, "--json", "-").stdout)
    assert (record["converged"], record["converged_live"]) == (False, False)
    assert max(record["residual"], record["residual_live"]) > 0.1
    by_default = invoke("sharpness", *small)
    assert all(line.startswith(REACH) for line in by_default.stderr.splitlines())
    assert "*" not in by_default.stdout


def test_the_predicted_flips_are_of_the_ball_that_was_searched_and_flips_have_errors(run):
    path = run / "ckpt" / "prune-best.safetensors"
    options = ["--images", 40, "--batch-size", 30, "--rho", 0.1, "--steps", 1, "--method", "power", "--iterations", 1]
    result = invoke("sharpness", path, *options, "--scale", "one", "--json", "-")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)[0]["loss_difference"]["0.1"]
    flippable = entries = 0
    for mask in score_masks(load_checkpoint(path).model).values():
        magnitude = np.sort(mask.scores.detach().abs().numpy().astype(float).ravel())
        kept, dropped = magnitude[magnitude.size - mask.n_keep :], magnitude[: magnitude.size - mask.n_keep][::-1]
        pairs = min(len(kept), len(dropped))
        flippable += 2 * int((np.maximum(kept[:pairs] - 0.1, 0) < dropped[:pairs] + 0.1).sum())
        entries += magnitude.size
    assert found["flippable_share"] == pytest.approx(flippable / entries)
    assert found["flips_share"] <= found["flippable_share"]
    assert found["average_case_standard_error"] > 0
    assert found["average_case_monte_carlo_error"] > 0
    assert found["flips_standard_error"] >= 0


def test_sharpness_of_a_checkpoint_without_scores_is_refused_by_its_name(run):
    path = run / "ckpt" / "finetune-best.safetensors"
    refused(invoke("sharpness", path, "--images", 64), f"{path}: has no scores")


def test_hamming_counts_like_numpy(run):
    result = invoke("hamming", run / "masks", run / "masks", "--json", "-")
    assert result.exit_code == 0, result.output
    records = json.loads(result.stdout)
    first = masks_in(run / "masks" / "epoch-000.safetensors")
    last = masks_in(run / "masks" / "epoch-002.safetensors")
    flipped = sum(int(np.sum(first[name] != last[name])) for name in first)
    assert flipped > 0
    assert records[1]["epoch"] == 2
    assert records[1]["flipped"] == flipped
    assert records[1]["h"] == flipped / sum(m.size for m in first.values())
    assert [r["difference"] for r in records if "difference" in r] == [0.0, 0.0]


def test_what_masks_of_other_sizes_alone_add_to_h_is_said(tmp_path):
    entries = 1000
    kept = {"a": range(100), "b": range(50, 150), "c": range(100, 400)}  # a and b are as large
    for name, places in kept.items():
        mask = torch.zeros(entries)
        mask[list(places)] = 1
        torch.save({"conv.weight": mask.view(10, 100)}, tmp_path / f"{name}.pt")
    alike = invoke("hamming", tmp_path / "a.pt", tmp_path / "b.pt")
    assert "of its h" not in alike.output
    larger = invoke("hamming", tmp_path / "b.pt", tmp_path / "c.pt")  # 300 differ, of which 200 must
    assert "c.pt: keeps 30.0% of the entries against 10.0%, which alone makes 67% of its h" in larger.output


def test_the_difference_of_two_folders_says_which_is_taken_from_which(run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run / "masks", other / "masks")
    shutil.copy(other / "masks/epoch-001.safetensors", other / "masks/epoch-002.safetensors")
    first, second = (
        [r["h"] for r in json.loads(invoke("hamming", folder / "masks", "--json", "-").stdout)]
        for folder in (run, other)
    )
    result = invoke("hamming", run / "masks", other / "masks", "--json", tmp_path / "found.json")
    found = [r["difference"] for r in json.loads((tmp_path / "found.json").read_text()) if "difference" in r]
    assert found == [a - b for a, b in zip(first, second, strict=True)]
    assert f"difference: {run.name} − other" in result.output


def test_evaluate_agrees_with_the_run(run):
    result = invoke(
        "evaluate", run / "ckpt" / "finetune-best.safetensors", "--attack", "pgd-50", "--n", 100, "--json", "-"
    )
    assert result.exit_code == 0, result.output
    (record,) = json.loads(result.stdout)
    own = json.loads((run / "results.json").read_text())["evaluate-finetune"]
    assert record["robust_accuracy"] == own["robust_accuracy"]
    assert record["eps"] == "32/255"


def test_tables_fit_80_columns_and_name_files(run, tmp_path):
    """Not their checksums, which a saved evaluation knows them by."""
    ckpt, masks_of, quick = run / "ckpt", run / "masks", ["--attack", "pgd-50", "--n", 100, "--evals", tmp_path]
    best, raw = (ckpt / f"{stage}-best.safetensors" for stage in ("finetune", "prune"))
    calls = [
        ["evaluate", best, raw, *quick],
        ["inspect", ckpt],
        ["verify", ckpt],
        ["hamming", masks_of],
        ["hamming", masks_of / "epoch-000.safetensors", raw, best],
        ["check", run],
    ]
    shown = {}
    for call in calls:
        shown[call[0]] = invoke(*call).stdout
        assert max(map(len, shown[call[0]].splitlines())) <= 80, shown[call[0]]
    assert "finetune-best │" in shown["evaluate"]
    assert re.search(r"[0-9a-f]{64}", shown["evaluate"]) is None
    assert re.findall(r"(\S+-best) ", shown["hamming"]) == ["prune-best", "finetune-best"]
    (record, _) = json.loads(invoke("evaluate", best, raw, *quick, "--json", "-").stdout)
    assert record["checkpoint"] == str(best)
    changed = load_checkpoint(raw)
    next(changed.model.parameters()).data.mul_(2)
    save_checkpoint(tmp_path / raw.name, changed.model, changed.header)
    refused(invoke("evaluate", tmp_path / raw.name, *quick), "evaluated from another checkpoint; move the file away")


def test_inspect_and_verify_see_what_is_there(run, tmp_path):
    result = invoke("inspect", run / "ckpt" / "prune-best.safetensors", "--json", "-")
    (record,) = json.loads(result.stdout)
    model = load_checkpoint(run / "ckpt" / "prune-best.safetensors").model
    assert {row["layer"]: row["kept"] for row in record["layers"]} == {n: int(m.sum()) for n, m in masks(model).items()}

    dense = invoke("inspect", run / "ckpt" / "pretrain.safetensors", "--json", "-")
    (record,) = json.loads(dense.stdout)
    assert (record["density"], record["kept_weights"], record["layers"]) == (1.0, None, [])

    assert invoke("verify", run / "ckpt").exit_code == 0
    # One weight moved outside the mask, and one bit added to it.
    finetuned = load_checkpoint(run / "ckpt" / "finetune-best.safetensors")
    layer = finetuned.model.conv1.parametrizations.weight
    outside = (~layer[0].mask_bits).nonzero()
    layer.original.data[tuple(outside[0])] = 1.0
    layer[0].mask_bits[tuple(outside[1])] = True
    shutil.copy(run / "ckpt" / "prune-best.safetensors", tmp_path)
    save_checkpoint(tmp_path / "finetune-best.safetensors", finetuned.model, finetuned.header)
    result = invoke("verify", tmp_path / "finetune-best.safetensors", "--json", "-")
    assert result.exit_code == 1
    said = " ".join(f["message"] for f in json.loads(result.stdout) if f["kind"] == "violation")
    assert "1 weights outside the mask" in said
    assert "1 mask entries differ" in said
    assert "keep 0.3 is" in said


def test_plots_and_csv_are_written(run, tmp_path):
    for command, extra in (("hamming", ["--by-layer"]), ("hamming", []), ("inspect", [])):
        target = run / ("masks" if command == "hamming" else "ckpt")
        out = tmp_path / f"{command}{len(extra)}"
        result = invoke(command, target, *extra, "--plot", f"{out}.png", "--csv", f"{out}.csv")
        assert result.exit_code == 0, result.output
        assert Path(f"{out}.png").read_bytes().startswith(b"\x89PNG")
        assert len(pd.read_csv(f"{out}.csv")) >= 2


def test_run_resumes_a_finished_run_without_changing_it(run):
    before = snapshot(run)
    assert invoke("run", run.parent / "tiny.toml", "--out", run, "--resume").exit_code == 0
    assert snapshot(run) == before


def test_existing_run_is_refused_without_resume_and_with_another_config(run):
    before = snapshot(run)
    refused(invoke("run", run.parent / "tiny.toml", "--out", run), str(run), "--resume")
    changed = invoke("run", run.parent / "tiny.toml", "--out", run, "--resume", "--set", "prune.lr=0.5")
    refused(changed, "prune.lr", "0.5")
    assert snapshot(run) == before


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("method.keep=0", ["method.keep"]),
        ("method.keep=1.2", ["method.keep"]),
        ("method.keep=nan", ["method.keep"]),
        ('method.skip=["layre4"]', ["skip", "layre4", "conv1"]),
        ("method.keep_layers={layre4 = 0.5}", ["keep_layers", "layre4"]),
        ("method.keep_layers={layer4 = 2}", ["method.keep_layers.layer4", "2"]),
        ("objective.eps=-1", ["objective.eps"]),
        ("prune.epoch=3", ["prune.epoch", "no such setting"]),
        ("method.name=hydro", ["hydro", "hydra"]),
        ("network.name=resnet19", ["resnet19", "resnet18"]),
        ("data.name=mnist", ["mnist", "digits"]),
        ("keep", ["--set keep"]),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(tmp_path, override, words):
    refused(invoke("run", "digits", "--set", override, "--out", tmp_path / "run"), *words)
    assert not (tmp_path / "run").exists()


def test_missing_things_are_named(tmp_path):
    refused(invoke("sharpness", tmp_path / "nothing"), "nothing")
    refused(invoke("hamming", tmp_path / "nothing"), "nothing")
    refused(invoke("run", "no-such-preset", "--out", tmp_path / "x"), "no-such-preset")
    refused(invoke("sharpness"), "CHECKPOINTS")
    refused(invoke("sharpen"), "sharpen")
    refused(invoke("run", "digits", "--out", tmp_path / "x", "--device", "cuda:7"), "--device cuda:7")
    refused(
        invoke(
            "run", "digits", "--set", "data.name=cifar10", "--set", f"data.root={tmp_path}", "--out", tmp_path / "x"
        ),
        str(tmp_path),
    )
    assert list(tmp_path.iterdir()) == []


def test_truncated_cifar_batch_is_named(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
        batch = {"data": rng.integers(0, 256, (20, 3072), dtype=np.uint8), "labels": [i % 10 for i in range(20)]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    whole = (folder / "data_batch_3").read_bytes()
    (folder / "data_batch_3").write_bytes(whole[: len(whole) // 2])
    overrides = ["--set", "data.name=cifar10", "--set", f"data.root={tmp_path}"]
    refused(invoke("run", "digits", *overrides, "--out", tmp_path / "x"), "data_batch_3")
    assert not (tmp_path / "x").exists()


def test_bad_checkpoints_and_masks_are_named(run, tmp_path):
    best = run / "ckpt" / "prune-best.safetensors"
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(best.read_bytes()[:-100])
    text = tmp_path / "text.safetensors"
    text.write_text("hello")
    found = load_checkpoint(best)
    other = tmp_path / "other.safetensors"
    save_checkpoint(other, found.model, {**found.header, "network": {**found.header["network"], "width": 4}})
    next(iter(score_masks(found.model).values())).scores.data.view(-1)[0] = torch.nan
    nan = tmp_path / "nan.safetensors"
    save_checkpoint(nan, found.model, found.header)
    for path, word in (
        (truncated, "truncated"),
        (text, "not"),
        (other, "not a checkpoint of this network"),
        (nan, "NaN"),
    ):
        before = path.read_bytes()
        refused(invoke("sharpness", path, "--images", 8), path.name, word)
        assert path.read_bytes() == before

    changed = {n: torch.from_numpy(m[..., :1]) for n, m in masks_in(run / "masks" / "epoch-000.safetensors").items()}
    save_masks(tmp_path / "masks-1.safetensors", changed, {"epoch": 1})
    refused(
        invoke("hamming", run / "masks" / "epoch-000.safetensors", tmp_path / "masks-1.safetensors"),
        "different networks",
    )


def test_nan_loss_stops_the_search_and_keeps_the_last_good_epoch(run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(run, out)
    # The dense network as the search will read it, with weights so large that the loss overflows.
    result = invoke(
        "run", run.parent / "tiny.toml", "--out", out, "--resume", "--set", "prune.lr=1e30", "--set", "prune.epochs=2"
    )
    refused(result, "prune.lr")
    fresh = invoke(
        "run",
        run.parent / "tiny.toml",
        "--out",
        tmp_path / "fresh",
        "--set",
        "prune.lr=1e38",
        "--set",
        "minimizer.name=none",
    )
    refused(fresh, "iteration", "prune")
    assert load_checkpoint(tmp_path / "fresh" / "ckpt" / "prune-epoch-000.safetensors").header["epoch"] == 0


def test_demo_end_to_end_through_the_installed_script(tmp_path):
    script = Path(sys.executable).with_name("s2ap-diag")
    done = subprocess.run(
        [script, "demo", "--quick", "--out", tmp_path / "demo", "--json", "-"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    evaluated = json.loads((tmp_path / "demo/orig-0/results.json").read_text())["evaluate-pretrain"]
    dense_clean, dense_robust = (100 * evaluated[f"{kind}_accuracy"] for kind in ("clean", "robust"))
    # Real learning on real digits: far above the 10 % of chance, robust below clean.
    assert 50 < dense_robust + 20 < dense_clean + 20
    assert dense_clean > 60
    # The arms share their warm-up epochs and part after them.
    first, second = (snapshot(tmp_path / "demo" / arm / "masks") for arm in ("orig-0", "s2ap-0"))
    masks_of = [[masks_in(path) for path in run] for run in (first, second)]
    same = [all(np.array_equal(a[n], b[n]) for n in a) for a, b in zip(*masks_of, strict=True)]
    assert same[:2] == [True, True]
    assert not all(same)
    assert found["metrics"]["h"]["second"] < 0.2
    # The folder can be moved, and is all that its runs need.
    moved = (tmp_path / "demo").rename(tmp_path / "moved")
    again = invoke("run", "digits", "--resume", "--out", moved / "s2ap-0", "--quiet")
    assert again.exit_code == 2  # another config
    assert "pretrain.checkpoint" not in (moved / "s2ap-0/config.toml").read_text()
    assert invoke("verify", moved / "s2ap-0/ckpt/prune-best.safetensors").exit_code == 0
    assert (moved / "figure1.png").read_bytes().startswith(b"\x89PNG")


def test_a_demo_does_not_go_on_with_runs_of_other_settings(tmp_path):
    quick, full = planned_runs(quick=True, seed=0), planned_runs(quick=False, seed=0)
    for run in quick:
        RunDirectory.create(tmp_path / run.name, run.config, "cpu")
    check_made_alike(tmp_path, quick)
    result = invoke("demo", "--out", tmp_path)
    assert result.exit_code == 2
    assert re.search(r"orig-0: began with minimizer\.warmup = 1, now 2; give another --out", result.stderr)
    assert len(full) == 6
    with pytest.raises(InputError, match="began with seed = 0, now 1"):
        check_made_alike(tmp_path, planned_runs(quick=True, seed=1))


def test_evaluate_keeps_correctness_by_image_and_goes_on(run, tmp_path):
    checkpoint = run / "ckpt" / "prune-best.safetensors"
    options = ["--attack", "pgd-50", "--batch-size", 20, "--evals", tmp_path, "--json", "-"]
    (half,) = json.loads(invoke("evaluate", checkpoint, *options, "--n", 40).stdout)
    (file,) = tmp_path.iterdir()
    first = load_evaluation(file)
    (whole,) = json.loads(invoke("evaluate", checkpoint, *options, "--n", 80).stdout)
    again = load_evaluation(file)
    assert (len(first.robust), len(again.robust)) == (40, 80)
    assert again.robust[:40].tolist() == first.robust.tolist()
    assert whole["robust_accuracy"] == again.robust.mean()
    assert half["robust_accuracy"] == first.robust.mean()
    # Another checkpoint under the same name is not mixed in.
    other = tmp_path / "other" / checkpoint.name
    other.parent.mkdir()
    shutil.copy(run / "ckpt" / "prune-epoch-000.safetensors", other)
    refused(invoke("evaluate", other, *options[:-2], "--n", 80), file.name, "checkpoint")


def test_runs_that_differ_in_their_seed_alone_are_one_arm(run, tmp_path):
    folders = []
    for seed in (0, 1):
        for arm in ("orig", "s2ap"):
            folder = tmp_path / f"{arm}{seed}"
            folders.append(folder)
            for epoch in range(3):
                saved = read(run / "masks" / f"epoch-{epoch:03d}.safetensors").as_masks()
                masks = {name: torch.from_numpy(mask) for name, mask in saved.masks.unpack().items()}
                if epoch and arm == "orig":  # so many more bits flipped
                    masks["conv1.weight"].view(-1)[: 2 + seed] ^= True
                about = {**saved.header, "seed": seed, "minimizer": arm}
                save_masks(folder / f"epoch-{epoch:03d}.safetensors", masks, about)
    result = invoke("hamming", *folders, "--plot", tmp_path / "h.svg", "--json", "-")
    records = json.loads(result.stdout)
    h = {(r["masks"].split("/")[-2], r["epoch"]): r["h"] for r in records if "h" in r}
    for record in records:
        if "difference" in record:
            epoch = record["epoch"]
            orig, s2ap = ((h[f"{arm}0", epoch] + h[f"{arm}1", epoch]) / 2 for arm in ("orig", "s2ap"))
            assert record["difference"] == pytest.approx(orig - s2ap)
    assert sum("difference" in record for record in records) == 2
    assert "(2 seeds)" in (tmp_path / "h.svg").read_text()


def test_folders_of_long_names_head_columns_by_what_tells_them_apart(run, tmp_path):
    names = [f"svhn-resnet18-harp-{arm}-90-keep0.05-fold0-s0" for arm in ("orig", "s2ap-plain")]
    for name in names:
        shutil.copytree(run / "masks", tmp_path / name / "masks")
    lines = invoke("hamming", *(tmp_path / name / "masks" for name in names)).output.splitlines()
    assert lines[:2] == [f"orig: {names[0]}", f"s2ap-plain: {names[1]}"]
    heading = [line for line in lines if line.startswith("┃")]
    assert len(heading) <= 2
    assert {"orig", "s2ap-plain", "difference"} <= {cell.strip() for cell in heading[-1].split("┃")}


def test_checkpoints_that_differ_in_their_seed_alone_are_averaged(run, tmp_path):
    found = load_checkpoint(run / "ckpt" / "prune-best.safetensors")
    files = []
    for method, seed in (("hydra", 0), ("hydra", 1), ("rlth", 2)):
        files.append(tmp_path / f"{method}-{seed}" / "prune-best.safetensors")
        files[-1].parent.mkdir()
        save_checkpoint(files[-1], found.model, found.header | {"method": method, "seed": seed})
    small = ["--images", 16, "--no-loss-difference", "--method", "power", "--iterations", 1]
    *records, mean = json.loads(invoke("sharpness", *files, *small, "--json", "-").stdout)
    assert [(r["method"], r["seed"], r["solver"]) for r in records] == [
        ("hydra", 0, "power"), ("hydra", 1, "power"), ("rlth", 2, "power"),
    ]  # fmt: skip
    assert mean["checkpoint"] == "prune-best of 2 seeds: hydra s2ap"
    assert mean["lambda_max"] == pytest.approx((records[0]["lambda_max"] + records[1]["lambda_max"]) / 2)


def test_the_spectrum_has_the_trace_of_its_layers(run, tmp_path):
    best = run / "ckpt" / "prune-best.safetensors"
    picture = tmp_path / "density.png"
    small = ["--images", 32, "--no-loss-difference", "--iterations", 2]
    result = invoke("sharpness", best, *small, "--spectrum", picture, "--by-block", "--json", "-")
    (record,) = json.loads(result.stdout)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert {name.count(".") for name in record["layers"]} == {0, 1}
    # The sum of all eigenvalues is no more than n times the largest.
    assert abs(record["trace"]) <= record["n_scores"] * abs(record["dominant_eigenvalue"])
    assert record["trace_standard_error"] > 0
    assert record["layer_residuals"].keys() == record["layers"].keys() == record["layers_live"].keys()


def test_another_tools_checkpoint_goes_straight_in(run, tmp_path):
    """The search's result as HYDRA writes it: the same readings, once what its file lacks is said."""
    ours = run / "ckpt" / "prune-best.safetensors"
    tensors, _ = load_tensors(ours)
    state = {f"module.{name.replace('.scores', '.popup_scores')}": tensor for name, tensor in tensors.items()}
    theirs = tmp_path / "checkpoint.pth.tar"
    torch.save({"epoch": 3, "arch": "resnet18", "state_dict": state, "best_prec1": torch.tensor(1.0)}, theirs)
    refused(invoke("inspect", theirs), "--keep")
    refused(invoke("sharpness", theirs, "--keep", 0.3), "--dataset")

    measured = ["--images", 32, "--rho", 0.01, "--steps", 2, "--json", "-"]
    (expected,) = json.loads(invoke("sharpness", ours, *measured).stdout)
    options = ["--keep", 0.3, "--dataset", "digits", "--eps", "32/255"]
    result = invoke("sharpness", theirs, *options, *measured)
    (record,) = json.loads(result.stdout)
    # The adversaries differ (HYDRA's file does not say its own), the masks and what is counted do not.
    assert record["n_scores"] == expected["n_scores"]
    assert record["keep"] == expected["keep"]
    (same,) = json.loads(invoke("hamming", ours, theirs, "--keep", 0.3, "--json", "-").stdout)
    assert same["flipped"] == 0
    assert same["kept"] == round(expected["keep"] * same["entries"])


def test_inspect_and_verify_count_the_scores_that_no_image_gives_a_gradient(run, tmp_path):
    best = run / "ckpt" / "prune-best.safetensors"
    (record,) = json.loads(invoke("inspect", best, "--json", "-").stdout)
    assert (record["blind_scores"], record["blind_share"]) == (0, 0)
    assert "padding" not in invoke("verify", best).stdout
    # The same tensors on images of a pixel, where a 3x3 kernel sees data with its middle alone.
    file = tmp_path / "smaller.safetensors"
    checkpoint = load_checkpoint(best)
    header = {**checkpoint.header, "network": {**checkpoint.header["network"], "input_size": 1}}
    save_checkpoint(file, checkpoint.model, header)
    threes = sum(m.scores.numel() for m in score_masks(checkpoint.model).values() if m.scores.shape[2:] == (3, 3))
    total = sum(m.scores.numel() for m in score_masks(checkpoint.model).values())
    (record,) = json.loads(invoke("inspect", file, "--json", "-").stdout)
    assert record["blind_scores"] == threes * 8 // 9 == sum(layer["blind"] for layer in record["layers"])
    assert record["blind_share"] == pytest.approx(record["blind_scores"] / total)
    assert f"{record['blind_scores']} ({record['blind_share']:.1%})" in invoke("inspect", file).stdout
    said = invoke("verify", file, "--json", "-")
    assert said.exit_code == 0
    (finding,) = [f for f in json.loads(said.stdout) if "padding" in f["message"]]
    assert finding["kind"] == "note"
    assert f"{record['blind_scores']} scores ({record['blind_share']:.1%})" in finding["message"]


def test_several_radii_make_a_security_curve_and_one_that_stays_above_zero_is_warned_of(run, tmp_path):
    checkpoint = run / "ckpt" / "finetune-best.safetensors"
    options = ("--attack", "pgd-50", "--n", 40, "--evals", tmp_path)
    curve = ("--eps", "32/255", "--eps", "1", "--eps", "8/255")
    result = invoke("evaluate", checkpoint, *options, *curve, "--plot", tmp_path / "curve.svg", "--json", "-")
    assert result.exit_code == 0, result.output
    records = json.loads(result.stdout)
    assert [r["eps"] for r in records] == ["32/255", "1", "8/255"]
    for record in records:
        (alone,) = json.loads(invoke("evaluate", checkpoint, *options, "--eps", record["eps"], "--json", "-").stdout)
        assert alone == record
    assert records[2]["robust_accuracy"] > records[0]["robust_accuracy"] > records[1]["robust_accuracy"] == 0
    assert "still" not in result.stderr
    assert "eps (Linf, pgd-50)" in (tmp_path / "curve.svg").read_text()
    short = invoke("evaluate", checkpoint, *options, "--eps", "8/255", "--eps", "1/255")
    kept = f"{100 * records[2]['robust_accuracy']:.1f}%"
    assert f"at the largest eps = 8/255 the robust accuracy is still {kept}" in short.stderr
    assert all(eps in short.stdout for eps in ("8/255", "1/255"))


def test_the_curve_begins_at_the_clean_accuracy_and_follows_the_radii(tmp_path, monkeypatch):
    drawn, plot = [], Axes.plot

    def watched(axes, x, y, **style):
        drawn.append((list(x), list(y)))
        return plot(axes, x, y, **style)

    monkeypatch.setattr(Axes, "plot", watched)
    records = [
        {
            "checkpoint": "a",
            "attack": "apgd",
            "norm": "L2",
            "eps": eps,
            "clean_accuracy": 0.9,
            "robust_accuracy": robust,
        }
        for eps, robust in (("1", 0.25), ("1/2", 0.5))
    ]
    security_curve.draw(records, tmp_path / "curve.png")
    assert drawn == [([0.0, 0.5, 1.0], [90.0, 50.0, 25.0])]


def test_evaluate_takes_norm_and_radius_of_the_training(run, tmp_path):
    checkpoint = load_checkpoint(run / "ckpt" / "finetune-best.safetensors")
    objective = {"name": "trades", "norm": "L2", "eps": "1/2", "step": "1/8"}
    save_checkpoint(tmp_path / "l2.safetensors", checkpoint.model, checkpoint.header | {"objective": objective})
    for options, expected in (
        ((), ("L2", "1/2")),
        (("--norm", "L2"), ("L2", "1/2")),
        (("--norm", "Linf", "--eps", "8/255"), ("Linf", "8/255")),
        (("--norm", "L1", "--eps", "2"), ("L1", "2")),
    ):
        asked = (tmp_path / "l2.safetensors", "--attack", "pgd-50", "--n", 8, *options, "--json", "-")
        (record,) = json.loads(invoke("evaluate", *asked).stdout)
        assert (record["norm"], record["eps"]) == expected
    refused(invoke("evaluate", tmp_path / "l2.safetensors", "--norm", "Linf"), "--norm Linf needs --eps", "of L2")
