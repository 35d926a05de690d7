"""What the tracker reads against dense Hessians and naive counts, and that reading changes nothing."""

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from s2ap_core.config import ObjectiveSettings, PruneSettings, TrackingSettings, parse_config
from s2ap_core.errors import InputError
from s2ap_core.files.tensors import load_tensors
from s2ap_core.masks.masking import attach, masks, scores
from s2ap_core.training.ball import Relative, score_layers
from s2ap_core.training.iteration import iterate
from s2ap_core.training.loop import Loop
from s2ap_core.training.objectives import Objective, build_objective
from s2ap_core.training.optimization import searched_parameters
from s2ap_core.training.perturbation import Perturbation
from s2ap_core.training.stages import Stages
from s2ap_diag.curvature.tracking import CurvatureTracker, build_trackers


class Small(nn.Module):
    """Few enough scores for a dense Hessian, with BatchNorm whose two modes differ."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.norm(self.first(x))))


@pytest.fixture
def world() -> tuple[nn.Module, Objective, tuple[Tensor, Tensor, Tensor]]:
    torch.manual_seed(0)
    model = attach(Small().double(), 0.5)
    model.norm.running_mean.normal_()
    x = torch.rand(12, 6, dtype=torch.float64)
    objective = build_objective(ObjectiveSettings(name="trades", eps=0.1, step=0.05, steps=2))
    return model, objective, (x, (x + 0.1 * torch.randn_like(x)).clamp(0, 1), torch.arange(12) % 3)


def loop_of(model: nn.Module, objective: Objective, data: object, perturbation: Perturbation | None = None) -> Loop:
    optimizer = torch.optim.SGD(searched_parameters(model, PruneSettings()), lr=0.1)
    return Loop(
        "prune", PruneSettings(), model, objective, optimizer, data, seed=0, perturbation=perturbation,
    )  # fmt: skip


def tracker(**settings: object) -> CurvatureTracker:
    return CurvatureTracker(TrackingSettings(**{"every": 1, **settings}))


def readings(found: CurvatureTracker) -> dict[str, float]:
    return {name: value for _, name, value in found.rows}


def dense_spectrum(
    model: nn.Module, batch: tuple[Tensor, Tensor, Tensor], mode: str, without: Sequence[int] = ()
) -> Tensor:
    """Eigenvalues of diag(w) H diag(w), H the dense Hessian of TRADES in the masked weights.

    Args:
        without: rows of the first layer whose scores are left out.
    """
    x, x_adv, y = batch
    plain = Small().double().train(mode == "batch")
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "param" not in k}, strict=False)
    weights = {n: model.get_parameter(f"{n}.parametrizations.weight.original").detach() for n in ("first", "last")}
    masked = torch.cat([(weights[n] * masks(model)[f"{n}.weight"]).flatten() for n in weights])

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([w.numel() for w in weights.values()])
        held = {f"{n}.weight": p.reshape(weights[n].shape) for n, p in zip(weights, parts, strict=True)}
        clean, adversarial = functional_call(plain, held, (x,)), functional_call(plain, held, (x_adv,))
        p, log_q = F.softmax(clean, dim=1), F.log_softmax(adversarial, dim=1)
        return F.cross_entropy(clean, y) + 6 * (p * (p.log() - log_q)).sum(1).mean()

    hessian = torch.autograd.functional.hessian(loss, masked)
    w = torch.cat([w.flatten() for w in weights.values()])
    left = [i for i in range(len(w)) if i >= weights["first"].numel() or i // 6 not in without]
    return torch.linalg.eigvalsh((w[:, None] * hessian * w)[left][:, left])


@pytest.mark.parametrize("recipe", ["paper", "warm"])
def test_curvature_of_the_batch_in_both_modes_of_batch_norm(world, data, recipe):
    model, objective, batch = world
    found = tracker(recipe=recipe, iterations=400, tolerance=1e-7)
    model.train()
    found.on_attacked(loop_of(model, objective, data), *batch)
    rows, spectra = readings(found), {mode: dense_spectrum(model, batch, mode) for mode in ("running", "batch")}
    for mode, spectrum in spectra.items():
        dominant = spectrum[spectrum.abs().argmax()]
        assert rows[f"lambda_max_{mode}"] == pytest.approx(spectrum[-1].item(), rel=1e-4)
        assert rows[f"dominant_eigenvalue_{mode}"] == pytest.approx(dominant.item(), rel=1e-4)
        assert rows[f"residual_{mode}"] < 1e-4
    assert abs(spectra["running"][-1] / spectra["batch"][-1] - 1) > 0.05


def kill(model: nn.Module, row: int) -> None:
    """Leave an output channel of the first layer no weight."""
    with torch.no_grad():
        scores(model)["first.scores"][row] *= 1e-6


@pytest.mark.parametrize("recipe", ["paper", "warm"])
def test_both_spectra_are_read_the_live_one_without_the_scores_of_dead_channels(world, data, recipe):
    model, objective, batch = world
    kill(model, 2)
    found = tracker(recipe=recipe, iterations=200, tolerance=1e-7)
    found.on_attacked(loop_of(model, objective, data), *batch)
    rows = readings(found)
    assert rows["dead_channels"] == 1
    for mode in ("running", "batch"):
        whole, live = (dense_spectrum(model, batch, mode, without)[-1].item() for without in ((), (2,)))
        assert rows[f"lambda_max_{mode}"] == pytest.approx(whole, rel=1e-4)
        assert rows[f"lambda_max_live_{mode}"] == pytest.approx(live, rel=1e-4)
        assert rows[f"residual_live_{mode}"] < 1e-4
        assert rows[f"hvps_live_{mode}"] > 0
    # In the batch's statistics the dead channel is divided by the root of eps.
    assert rows["lambda_max_batch"] > 100 * rows["lambda_max_live_batch"]
    assert rows["dead_share_batch"] > 0.99


def test_the_live_spectrum_costs_nothing_where_no_channel_is_dead(world, data):
    model, objective, batch = world
    found = tracker(iterations=20)
    found.on_attacked(loop_of(model, objective, data), *batch)
    rows = readings(found)
    assert (rows["dead_channels"], rows["dead_share_batch"], rows["hvps_live_batch"]) == (0, 0, 0)
    assert rows["lambda_max_live_batch"] == rows["lambda_max_batch"]
    assert rows["hvps_batch"] > 0


def test_either_spectrum_is_read_alone(world, data):
    model, objective, batch = world
    kill(model, 0)
    both, whole, live = (tracker(iterations=5, spectrum=names) for names in (["all", "live"], ["all"], ["live"]))
    for each in (both, whole, live):
        each.on_attacked(loop_of(model, objective, data), *batch)
    names = readings(both).keys() - {"dead_channels"}
    of_live = {name for name in names if "_live_" in name}
    assert readings(whole) == {name: readings(both)[name] for name in names - of_live | {"dead_channels"}}
    assert readings(live) == {name: readings(both)[name] for name in of_live | {"dead_channels"}}
    assert of_live == {
        f"{metric}_live_{m}" for metric in ("lambda_max", "residual", "hvps") for m in ("running", "batch")
    }
    with pytest.raises(InputError, match=r"tracking\.spectrum"):
        parse_config({"tracking": {"spectrum": []}}, "test")


def test_a_resumed_tracker_reads_to_the_last_bit_what_one_that_went_on_reads(world, data):
    model, objective, batch = world
    loop = loop_of(model, objective, data)
    kill(model, 1)
    went_on = tracker(iterations=3, tolerance=1e-9)
    went_on.on_attacked(loop, *batch)
    with torch.no_grad():  # another channel dies, and this one comes back
        scores(model)["first.scores"][1] *= 1e6
    kill(model, 3)
    resumed = tracker(iterations=3, tolerance=1e-9)
    resumed.load_state_dict({name: vector.clone() for name, vector in went_on.state_dict().items()})
    resumed.on_stage(loop)
    went_on.rows = []
    for each in (went_on, resumed):
        each.on_attacked(loop, *batch)
    assert readings(resumed) == readings(went_on)
    fresh = tracker(iterations=3, tolerance=1e-9)
    fresh.on_attacked(loop, *batch)
    assert all(
        readings(fresh)[f"residual{which}_{mode}"] != readings(went_on)[f"residual{which}_{mode}"]
        for which in ("", "_live")
        for mode in ("running", "batch")
    )


def test_only_the_first_images_are_read_where_that_is_asked(world, data):
    model, objective, batch = world
    found = tracker(iterations=2000, tolerance=1e-7, images=5)
    found.on_attacked(loop_of(model, objective, data), *batch)
    spectrum = dense_spectrum(model, tuple(t[:5] for t in batch), "running")
    assert readings(found)["lambda_max_running"] == pytest.approx(spectrum[-1].item(), rel=1e-4)


def test_one_mode_of_batch_norm_reads_what_both_do_and_no_more(world, data):
    model, objective, batch = world
    both, one = tracker(tolerance=1e-8, iterations=500), tracker(tolerance=1e-8, iterations=500, batch_norm=["batch"])
    for each in (both, one):
        each.on_attacked(loop_of(model, objective, data), *batch)
    ours = {name: value for name, value in readings(both).items() if name.endswith(("_batch", "dead_channels"))}
    assert readings(one) == ours
    assert "lambda_max_running" in readings(both)


def test_the_paper_recipe_spends_its_products_and_the_warm_one_what_the_tolerance_needs(world, data):
    model, objective, batch = world
    loop = loop_of(model, objective, data)
    paper, warm = tracker(recipe="paper", iterations=10), tracker(recipe="warm", iterations=2000, tolerance=1e-3)
    for reading in (1, 2):
        for found in (paper, warm):
            found.rows = []
            found.on_attacked(loop, *batch)
        assert readings(paper)["hvps_running"] >= 11
        # At the same scores the second reading starts where the first one ended.
        assert (readings(warm)["hvps_running"] <= 2) is (reading == 2)
    resumed = tracker(recipe="warm", iterations=2000, tolerance=1e-3)
    resumed.load_state_dict(warm.state_dict())
    resumed.on_attacked(loop, *batch)
    assert readings(resumed)["hvps_running"] <= 2
    assert paper.state_dict() == {}


def test_a_reading_changes_nothing(world, data):
    model, objective, batch = world
    model.train()
    model.first.eval()
    state, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    loop = loop_of(model, objective, data)
    trained, rng = [p.requires_grad for p in model.parameters()], torch.get_rng_state()
    tracker().on_attacked(loop, *batch)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == trained
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize("carry", [False, True])
def test_what_the_perturbation_does(world, data, carry):
    model, objective, (x, _, y) = world
    perturbation = Perturbation(model, score_layers(model), radius=Relative(0.4), carry=carry)
    loop, found = loop_of(model.train(), objective, data, perturbation), tracker(iterations=1)
    for loop.iteration in range(3):
        at_s = copy.deepcopy(model)
        step = iterate(
            model, x, y, objective=objective, optimizer=loop.optimizer, perturbation=perturbation,
            generator=torch.Generator().manual_seed(loop.iteration),
            on_attacked=lambda x_adv: found.on_attacked(loop, x, x_adv, y),
        )  # fmt: skip
        found.on_iteration(loop, step)
        at_z = copy.deepcopy(at_s)
        with torch.no_grad():
            for s, z in zip(scores(at_z).values(), perturbation.z, strict=True):
                s.add_(z)
        flips = [int((m != n).sum()) for m, n in zip(masks(at_s).values(), masks(at_z).values(), strict=True)]
        rise = objective.loss(at_z, x, step.x_adv, y) - objective.loss(at_s, x, step.x_adv, y)
        now = {name: value for iteration, name, value in found.rows if iteration == loop.iteration}
        assert now["perturbation_flips"] == sum(flips)
        assert now["perturbation_layers_unchanged"] == flips.count(0) / 2
        if carry:  # the ascent starts from L(s + z) of the last z, and L(s) is not known
            assert "perturbation_loss_difference" not in now
        else:
            assert now["perturbation_loss_difference"] == pytest.approx(rise.item(), rel=1e-9, abs=1e-12)
        assert sum(flips) > 0


def test_every_other_iteration_is_read_and_an_epochs_mean_follows(world, data):
    model, objective, (x, _, y) = world
    perturbation = Perturbation(model, score_layers(model), radius=Relative(0.2))
    loop, found = loop_of(model.train(), objective, data, perturbation), tracker(every=2, iterations=2)
    for loop.iteration in range(5):
        step = iterate(
            model, x, y, objective=objective, optimizer=loop.optimizer, perturbation=perturbation,
            generator=torch.Generator(), on_attacked=lambda x_adv: found.on_attacked(loop, x, x_adv, y),
        )  # fmt: skip
        found.on_iteration(loop, step)
    rows = found.on_epoch(loop)
    assert found.on_epoch(loop) == []
    assert {i for i, n, _ in rows if n != "curvature_along_z"} == {0, 2, 4, ""}
    assert [i for i, n, _ in rows if n == "curvature_along_z"] == [0, 1, 2, 3, 4, ""]  # it costs nothing
    for name in ("lambda_max_batch", "hvps_running", "perturbation_flips", "perturbation_loss_difference"):
        values = [v for i, n, v in rows if n == name and i != ""]
        assert len(values) == 3
        assert [v for i, n, v in rows if n == name and i == ""] == [pytest.approx(sum(values) / 3)]


def test_other_stages_are_not_read(world, data):
    model, objective, batch = world
    loop, found = loop_of(model, objective, data), tracker()
    loop.stage = "finetune"
    found.on_attacked(loop, *batch)
    assert found.rows == []


@pytest.mark.usefixtures("tiny_network")
def test_no_vector_of_the_search_is_in_the_state_of_another_stage(tmp_path, new_run: Callable, data):
    run = new_run(tmp_path / "run")
    stages = Stages(run, data, callbacks=[tracker(iterations=2)])
    stages.pretrain()
    stages.prune()
    stages.finetune()
    carried = {
        stage: [n for n in load_tensors(run.state(stage))[0] if "callback" in n] for stage in ("prune", "finetune")
    }
    assert len(carried["prune"]) >= 2
    assert carried["finetune"] == []


@pytest.mark.usefixtures("tiny_network")
def test_a_tracked_search_finds_the_same_mask(tmp_path, new_run: Callable, data):
    s2ap = {"name": "s2ap", "gamma": 0.1, "warmup": 1}
    runs = [new_run(tmp_path / name, minimizer=s2ap) for name in ("watched", "alone")]
    for run, callbacks in zip(runs, ([tracker(iterations=2)], []), strict=True):
        stages = Stages(run, data, callbacks=callbacks)
        stages.pretrain()
        stages.prune()
    watched, alone = (load_tensors(run.checkpoint("prune-epoch-003"))[0] for run in runs)
    assert all(torch.equal(watched[n], alone[n]) for n in alone)
    metrics = (runs[0].path / "metrics.csv").read_text()
    # Epoch 1 is the warm-up; three iterations an epoch.
    assert metrics.count("prune,1,0,lambda_max_running") == metrics.count("prune,3,2,lambda_max_batch") == 1
    assert "prune,2,0,perturbation_flips" in metrics
    assert "prune,1,0,perturbation_flips" not in metrics
    assert "lambda_max" not in (runs[1].path / "metrics.csv").read_text()


def test_trackers_by_name():
    assert build_trackers(TrackingSettings(every=0)) == []
    (found,) = build_trackers(TrackingSettings(every=3))
    assert isinstance(found, CurvatureTracker)
    with pytest.raises(InputError, match=r"tracking\.metrics: unknown metric 'trace': choose one of curvature"):
        build_trackers(TrackingSettings(every=1, metrics=["trace"]))


def test_a_search_without_a_perturbation_is_probed_along_one(world, data):
    """Of Orig. it reads what S2AP of that gamma reads at its first iteration, and changes nothing."""
    model, objective, (x, _, y) = world
    model.train()
    readings = {}
    for name in ("orig", "s2ap"):
        twin = copy.deepcopy(model)
        perturbation = Perturbation(twin, score_layers(twin), radius=Relative(0.2)) if name == "s2ap" else None
        loop = loop_of(twin, objective, data, perturbation)
        found = tracker(iterations=1, **({"along_z": 0.2} if name == "orig" else {}))

        def on_gradient(robust_loss, loop=loop, found=found, twin=twin):
            state = copy.deepcopy(twin.state_dict())
            gradients = [p.grad.clone() for p in twin.parameters() if p.grad is not None]
            found.on_gradient(loop, robust_loss)
            assert all(torch.equal(value, state[key]) for key, value in twin.state_dict().items())
            assert all(map(torch.equal, gradients, [p.grad for p in twin.parameters() if p.grad is not None]))

        def on_attacked(x_adv, loop=loop, found=found):
            found.on_attacked(loop, x, x_adv, y)

        step = iterate(
            twin, x, y, objective=objective, optimizer=loop.optimizer, perturbation=perturbation,
            generator=torch.Generator().manual_seed(0), on_attacked=on_attacked, on_gradient=on_gradient,
        )  # fmt: skip
        found.on_iteration(loop, step)
        readings[name] = [value for _, metric, value in found.on_epoch(loop) if metric == "curvature_along_z"]
    assert readings["orig"] == pytest.approx(readings["s2ap"], rel=1e-5)
    assert readings["orig"][0] != 0


def test_margins_and_switchable_entries_are_read_of_each_layer(world, data):
    """Of both arms alike: by the closed form of a single swap, of the weakest kept and the strongest dropped score."""
    model, objective, (x, x_adv, y) = world
    gamma, found = 0.05, {}
    for name in ("orig", "s2ap"):
        perturbation = Perturbation(model, score_layers(model), radius=Relative(gamma)) if name == "s2ap" else None
        loop = loop_of(model.train(), objective, data, perturbation)
        reader = tracker(iterations=1, by_layer=True, along_z=None if perturbation else gamma)
        reader.on_attacked(loop, x, x_adv, y)
        found[name] = {metric: value for _, metric, value in reader.rows if metric.startswith(("margin", "switchable"))}
    assert found["orig"] == found["s2ap"]
    for (layer, mask), s in zip(masks(model).items(), scores(model).values(), strict=True):
        size, kept = s.detach().abs().double(), mask.bool()
        margin = (size[kept].min() - size[~kept].max()) / 2**0.5 / size.norm()
        name = layer.removesuffix(".weight")
        assert found["orig"][f"margin/{name}"] == pytest.approx(margin.item(), rel=1e-6)
        assert (found["orig"][f"switchable/{name}"] > 0) == (margin <= gamma)
        assert found["orig"][f"switchable/{name}"] <= 1
