"""The commands on a run whose mask came without a search."""

import json

import pytest

from s2ap_core.runs.checkpoints import load_checkpoint
from s2ap_diag.reading.results import open_run
from tests.diag.commands.running import invoke, tiny_run

SETTINGS = """
network.width = 2
objective = { eps = "32/255", step = "8/255", steps = 2 }
method = { name = "magnitude-global", keep = 0.3 }
pretrain.epochs = 1
finetune.epochs = 1
evaluation = { attack = "pgd-50", n = 100 }
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("runs"), SETTINGS)


def records(*arguments):
    result = invoke(*arguments, "--json", "-")
    assert result.exit_code in (0, 1), result.output
    return json.loads(result.stdout)


def test_its_scores_are_measured_like_those_of_a_search(run):
    found = records("sharpness", run / "ckpt", "--images", 32, "--batch-size", 32, "--rho", 0.01, "--steps", 2)
    assert [record["epoch"] for record in found] == [0, 0]
    assert [record["keep"] for record in found] == pytest.approx([0.3, 0.3], abs=1e-3)
    assert all(record["loss_difference"]["0.01"]["mean"] > 0 for record in found)


def test_its_masks_keep_the_budget_layer_by_layer(run):
    assert not [f for f in records("verify", run / "ckpt") if f["kind"] == "violation" and "dead" not in f["message"]]
    first, best, finetuned = (
        records("inspect", run / "ckpt" / f"{name}.safetensors")[0]
        for name in ("prune-epoch-000", "prune-best", "finetune-best")
    )
    assert first["layers"] == best["layers"]
    assert [layer["kept"] for layer in best["layers"]] == [layer["kept"] for layer in finetuned["layers"]]
    assert best["kept_weights"] == best["masked_weights"] - int(0.7 * best["masked_weights"])
    assert len({round(layer["keep"], 3) for layer in best["layers"]}) > 2


def test_a_mask_of_another_budget_is_a_violation(run, tmp_path):
    from s2ap_core.runs.checkpoints import save_checkpoint  # beside its only use

    found = load_checkpoint(run / "ckpt" / "prune-best.safetensors")
    save_checkpoint(tmp_path / "prune-best.safetensors", found.model, {**found.header, "keep": 0.2})
    assert any("keep 0.2 is" in f["message"] for f in records("verify", tmp_path) if f["kind"] == "violation")


def test_its_mask_can_be_compared_with_others_but_has_no_course(run):
    (same,) = records("hamming", run / "masks" / "epoch-000.safetensors", run / "ckpt" / "prune-best.safetensors")
    assert same["flipped"] == 0
    assert open_run(run).stability.empty
    alone = invoke("hamming", run / "masks")
    assert alone.exit_code == 2
    assert "a single mask" in alone.stderr


def test_report_check_export_and_resume_take_it(run):
    result = invoke("report", run.parent)
    assert result.exit_code == 0, result.output
    assert "magnitude-global" in (run.parent / "report.html").read_text()
    conditions = records("check", run)
    failed = [c for c in conditions if not c["passed"]]
    assert {c["condition"].partition(" ")[0] for c in failed} <= {"chance", "classes", "seeds"}
    of_mask = [c["remedy"] for c in failed if c["condition"] == "chance (prune)"]
    assert of_mask
    assert all(f"--set method.keep=0.6 --out {run}-anew" in remedy for remedy in of_mask)
    assert next(c for c in conditions if c["condition"] == "budget")["passed"]
    exported = invoke("export", run, "--out", run.parent / "smaller.safetensors")
    assert exported.exit_code == 2
    assert "drops single weights" in exported.stderr
    again = invoke("run", "--resume", "--out", run)
    assert again.exit_code == 0, again.output
