"""What dropout draws: the same in every pass of an iteration, for any number of processes, whatever else draws."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2ap_core.config import ObjectiveSettings, PruneSettings
from s2ap_core.distributed.share import Share
from s2ap_core.files.tensors import load_tensors
from s2ap_core.masks.masking import attach
from s2ap_core.models import NETWORKS
from s2ap_core.training.ball import Relative, score_layers
from s2ap_core.training.dropout import repeated_dropout
from s2ap_core.training.iteration import iterate
from s2ap_core.training.loop import Callback, Loop
from s2ap_core.training.objectives import build_objective
from s2ap_core.training.optimization import searched_parameters
from s2ap_core.training.perturbation import Perturbation
from s2ap_core.training.stages import Stages
from tests.tiny import Tiny


class Dropping(Tiny):
    """With dropout as a module and as a function."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(F.relu(self.bn1(self.conv1(x))))
        x = F.dropout2d(F.relu(self.bn2(self.conv2(x))), 0.3, self.training)
        return self.linear(x.flatten(1))


class Elsewhere(Callback):
    """Another user of the global generator; interrupts a run."""

    def __init__(self, draws: int, stop: tuple[int, int] | None = None) -> None:
        self.draws, self.stop = draws, stop

    def on_iteration(self, loop: Loop, step: object) -> None:
        torch.rand(self.draws)
        if (loop.epoch, loop.iteration) == self.stop and loop.stage == "prune":
            raise KeyboardInterrupt


def test_runs_do_not_depend_on_the_global_generator(tmp_path, new_run, data, monkeypatch):
    monkeypatch.setitem(NETWORKS, "dropping", Dropping)
    network, found = {"network": {"name": "dropping"}, "minimizer": {"name": "s2ap", "warmup": 1}}, []
    for name, seed, stop in (("whole", 1, None), ("broken", 2, (2, 1))):
        run = new_run(tmp_path / name, **network)
        torch.manual_seed(seed)
        if stop is not None:
            with pytest.raises(KeyboardInterrupt):
                Stages(run, data, callbacks=[Elsewhere(seed, stop)]).all()
        Stages(run, data, callbacks=[Elsewhere(seed)]).all()
        found.append({p.name: load_tensors(p)[0] for p in sorted((run.path / "ckpt").iterdir())})
    assert found[0].keys() == found[1].keys()
    for name, tensors in found[0].items():
        assert all(torch.equal(tensor, found[1][name][key]) for key, tensor in tensors.items()), name


@pytest.mark.parametrize("subset", [1.0, 0.4])
def test_the_pass_for_z_and_the_update_drop_the_same_and_iterations_others(batch, subset):
    torch.manual_seed(0)
    model = attach(Dropping(), 0.5).train()
    optimizer = torch.optim.SGD(searched_parameters(model, PruneSettings()), lr=0.1)
    perturbation = Perturbation(model, score_layers(model), radius=Relative(0.1), subset=subset)
    dropped: list[list[Tensor]] = []

    def ones(module: nn.Module, given: tuple[Tensor, ...]) -> Tensor:
        return 1 + 0 * given[0]  # so that what comes out is what was drawn

    def note(module: nn.Module, given: object, out: Tensor) -> None:
        if module.training:
            dropped.append(out == 0)

    model.dropout.register_forward_pre_hook(ones)
    model.dropout.register_forward_hook(note)
    objective = build_objective(ObjectiveSettings(eps="16/255", step="8/255", steps=2))
    before = torch.get_rng_state()
    for seed in (1, 2):
        iterate(
            model, *batch, objective=objective, optimizer=optimizer, perturbation=perturbation,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
    assert torch.equal(torch.get_rng_state(), before)
    assert len(dropped) == 8  # clean and adversarial, for z and for the update, twice
    for clean_z, adversarial_z, clean, adversarial in (dropped[:4], dropped[4:]):
        assert len(clean_z) == round(subset * len(clean))
        assert torch.equal(clean_z, clean[: len(clean_z)])
        assert torch.equal(adversarial_z, adversarial[: len(clean_z)])
        assert not torch.equal(clean, adversarial)
        assert clean.float().mean().item() == pytest.approx(0.3, abs=0.1)
    assert not torch.equal(dropped[2], dropped[6])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "drop",
    [nn.Dropout(0.4), nn.Dropout(0.4, inplace=True), nn.Dropout2d(0.4), nn.AlphaDropout(0.4), nn.FeatureAlphaDropout()],
)
def test_each_process_draws_what_is_its_images_own(drop, layout):
    x = torch.randn(7, 4, 5, 5, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=layout)

    def twice(images: Tensor, share: Share) -> tuple[Tensor, Tensor]:
        given = images.clone(), images.clone()
        with repeated_dropout(images, share, seed=3):
            out = tuple(drop(copy) for copy in given)
        if getattr(drop, "inplace", False):
            assert all(torch.equal(copy, dropped) for copy, dropped in zip(given, out, strict=True))
        return out

    whole = twice(x, Share(7))
    assert not torch.equal(*whole)
    for rank in range(3):
        for n in (7, 4, 1):  # of all images, and of the first few
            own = Share(7, rank, 3).first(n)
            for ours, theirs in zip(twice(x[rank::3][:own], Share(7, rank, 3)), whole, strict=True):
                assert torch.equal(ours, theirs[rank::3][:own])


def test_gradients_pass_through_as_in_the_whole_batch():
    whole = torch.rand(5, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with repeated_dropout(whole, Share(5), seed=1):
        (expected,) = torch.autograd.grad(F.dropout(whole, 0.5).square().sum(), whole)
    own = whole.detach()[1::2].requires_grad_()
    with repeated_dropout(own, Share(5, 1, 2), seed=1):
        (found,) = torch.autograd.grad(F.dropout(own, 0.5).square().sum(), own)
    assert torch.equal(found, expected[1::2])
