"""What BatchNorm's eps does to lambda_max where a channel keeps no weight, as a table."""

import pytest
import torch
from click.testing import CliRunner

from figures.dead_channels import command
from s2ap_core.masks.masking import scores
from s2ap_core.runs.checkpoints import load_checkpoint, save_checkpoint
from s2ap_core.training.stages import Stages


@pytest.mark.usefixtures("tiny_network")
def test_lambda_max_grows_tenfold_with_a_tenth_of_eps_and_the_live_one_stays(tmp_path, new_run, data):
    run = new_run(tmp_path / "run", prune={"epochs": 1})
    stages = Stages(run, data)
    stages.pretrain()
    stages.prune()
    found = load_checkpoint(run.checkpoint("prune-best"))
    with torch.no_grad():
        scores(found.model)["conv1.scores"][1] *= 1e-9
        found.model.bn1.bias[1] = 0.5  # which a ReLU lets through
    file = run.path / "ckpt" / "dead.safetensors"
    save_checkpoint(file, found.model, found.header)
    result = CliRunner().invoke(command, [str(file), "--images", "16", "--eps", "1e-5", "--eps", "1e-6"])
    assert result.exit_code == 0, result.output
    heads, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in result.output.splitlines())
    rows = [dict(zip(heads, map(float, line), strict=True)) for line in lines]
    assert [row["eps"] for row in rows] == [1e-5, 1e-6]
    assert all(row["dead channels"] >= 1 for row in rows)
    # In the batch's statistics: a search this short has not yet emptied the running ones.
    assert rows[1]["λ_max, batch"] == pytest.approx(10 * rows[0]["λ_max, batch"], rel=0.1)
    assert rows[1]["live λ_max, batch"] == pytest.approx(rows[0]["live λ_max, batch"], rel=0.05)
    assert rows[1]["dead share, batch"] > 0.99
