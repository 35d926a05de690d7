"""Finished runs, as figures and reports read them."""

import pytest

from s2ap_core.errors import InputError
from s2ap_core.methods import METHODS
from s2ap_core.methods.hydra import Hydra
from s2ap_core.training.stages import Stages
from s2ap_diag.reading.results import collect, open_run
from s2ap_diag.report.page import summarise

pytestmark = pytest.mark.usefixtures("tiny_network")


class Unfinetuned(Hydra):
    finetuned = False


def test_a_run_of_a_users_method_that_finetunes_nothing_is_complete(tmp_path, new_run, data, monkeypatch):
    monkeypatch.setitem(METHODS, "unfinetuned", Unfinetuned)
    sections = {"method": {"name": "unfinetuned"}, "minimizer": {"name": "s2ap", "gamma": 0.5, "source": "last"}}
    Stages(new_run(tmp_path / "run", **sections, finetune={"awp": True}), data).all()
    runs, skipped = collect(tmp_path)
    assert skipped == []
    ((_, view),), damaged = summarise(runs, tmp_path, tmp_path / "report.html")
    assert damaged == []
    assert (view.arm, view.gamma, set(view.accuracies)) == ("s2ap", 0.5, {"pretrain", "prune"})


def test_a_run_that_evaluates_nothing_is_half_done_until_it_is_finetuned(tmp_path, new_run, data):
    run = new_run(tmp_path / "run", evaluation={"stages": []})
    Stages(run, data).all(until="prune")
    with pytest.raises(InputError, match="half done, without finetune"):
        open_run(run.path)
    Stages(run, data).all()
    assert "finetune" in open_run(run.path).results
