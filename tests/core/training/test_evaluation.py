"""Accuracies image by image against direct attacks; interruption, intervals and warnings."""

import copy
import re
from contextlib import suppress
from fractions import Fraction

import numpy as np
import pytest
import torch
from pyautoattack import AutoAttack
from scipy.stats import binomtest
from torch import Tensor, nn

import s2ap_core.training.evaluation
from s2ap_core.config import EvaluationSettings
from s2ap_core.data import InMemory
from s2ap_core.errors import InputError
from s2ap_core.masks.masking import attach_masks, bake
from s2ap_core.masks.parametrization import FixedMask
from s2ap_core.seeds import derive_seed
from s2ap_core.training.attacks import AUTOATTACK, autoattack, pgd
from s2ap_core.training.evaluation import Attack, Evaluation, evaluate, load_evaluation, wilson

EPS = Fraction(40, 255)
QUICK = {"attack": "pgd-50", "n": 14, "batch_size": 5}


class Spread(nn.Module):
    """Multiplies logits, so that a linear network is not a saturated one."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.1 * x


@pytest.fixture
def classifier(prototypes) -> nn.Module:
    """The nearest prototype, as a linear network with a mask that drops the last row of pixels."""
    centres = torch.tensor(prototypes.reshape(10, 64) / 255, dtype=torch.float32)
    linear = nn.Linear(64, 10)
    with torch.no_grad():
        linear.weight.copy_(2 * centres)
        linear.bias.copy_(-centres.square().sum(1))
    mask = torch.ones(10, 64)
    mask[:, 56:] = 0
    model = nn.Sequential(nn.Flatten(), linear, Spread())
    return attach_masks(model, lambda name, layer: FixedMask(mask))


def run(model: nn.Module, data: InMemory, **settings: object) -> Evaluation:
    return evaluate(model, data, EvaluationSettings(**{**QUICK, **settings}), eps=EPS, seed=3)


def columns(found: Evaluation) -> dict[str, list]:
    return {name: getattr(found, name).tolist() for name in s2ap_core.training.evaluation.COLUMNS}


# --- what is evaluated ---


@pytest.mark.parametrize(("norm", "dual", "eps"), [("Linf", 1, EPS), ("L2", 2, Fraction(3, 4)), ("L1", np.inf, 4)])
def test_clean_and_robust_correctness_of_each_image(classifier, data, norm, dual, eps):
    found = run(classifier, data, norm=norm, eps=eps)
    assert (found.about["norm"], found.about["eps"]) == (norm, str(eps))
    batch = next(data.batches("test", 14))
    plain = bake(classifier)
    assert found.index.tolist() == list(range(14))
    assert found.label.tolist() == batch.y.tolist()
    assert found.clean.tolist() == (plain(batch.x).argmax(1) == batch.y).tolist()
    # An attack on a linear network has a closed form: the margin to class j shrinks by eps times the dual norm of
    # w_y - w_j, if no pixel is at its end; the attack can do no more than that, and PGD does about as much.
    weight = 0.1 * plain[1].weight.detach()
    margin = plain(batch.x).gather(1, batch.y[:, None]) - plain(batch.x)
    worst = margin - float(eps) * (weight[batch.y][:, None] - weight).norm(dim=2, p=dual)
    certain = (worst + torch.eye(10)[batch.y] > 0).all(1).numpy()
    assert (found.robust >= certain).all()
    assert (found.robust <= found.clean).all()
    assert 0 < found.robust.mean() < found.clean.mean()
    assert not found.zero_gradient.any()


def test_the_training_s_norm_and_radius_are_the_evaluation_s_unless_it_has_its_own(classifier, data):
    for own, expected in (({}, ("L2", "3/4")), ({"norm": "L1", "eps": "2"}, ("L1", "2"))):
        settings = EvaluationSettings(**QUICK, **own)
        found = evaluate(classifier, data, settings, eps=Fraction(3, 4), norm="L2", seed=3)
        assert (found.about["norm"], found.about["eps"]) == expected
        assert found.robust.tolist() == run(classifier, data, norm=expected[0], eps=expected[1]).robust.tolist()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_autoattack_is_pyautoattack_called_directly(classifier, data, norm):
    eps = EPS if norm == "Linf" else Fraction(3, 4)
    settings = EvaluationSettings(attack="apgd", norm=norm, eps=str(eps), n=8, batch_size=5)
    before = torch.get_rng_state()
    found = evaluate(classifier, data, settings, eps=Fraction(1), seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    robust = []
    for first, batch in zip((0, 5), data.batches("test", 5, limit=8), strict=True):
        attack = AutoAttack(
            bake(classifier).eval(),
            norm=norm,
            eps=float(eps),
            seed=derive_seed(3, "evaluate", first) % 2**31,
            version="custom",
            attacks=["apgd-ce", "apgd-t"],
        )
        _, predicted = attack.run_standard_evaluation(batch.x, batch.y, batch_size=5)
        robust += (predicted == batch.y).tolist()
    assert found.robust.tolist() == robust
    assert 0 < sum(robust) < 8
    assert found.about["eps"] == str(eps)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_some_members_are_those_of_the_standard_ensemble(norm, classifier, data, monkeypatch):
    """APGD in L1 shrinks its ball from three times the radius, which the library does in its standard version alone."""
    names = ("n_restarts", "n_target_classes", "use_largereps")
    seen = {}

    class Ensemble(AutoAttack):
        def run_standard_evaluation(self, x, y, *, batch_size):
            seen[len(self.attacks_to_run)] = [
                getattr(member, name, None) for member in (self.apgd, self.apgd_targeted) for name in names
            ]
            return x, y

    monkeypatch.setattr("s2ap_core.training.attacks.AutoAttack", Ensemble)
    batch = next(data.batches("test", 4))
    for members in (AUTOATTACK, AUTOATTACK[:2]):
        autoattack(bake(classifier), batch.x, batch.y, eps=1.0, norm=norm, attacks=members)
    assert seen[2] == seen[4]
    published = AutoAttack(bake(classifier), norm=norm, eps=1.0, version="standard", device="cpu")
    assert seen[4] == [
        getattr(member, name, None) for member in (published.apgd, published.apgd_targeted) for name in names
    ]


@pytest.mark.parametrize("attack", ["autoattack", "apgd"])
def test_three_classes_are_too_few_for_the_targeted_members(attack, prototypes, data):
    images = np.repeat((prototypes[:3] * 255).astype(np.uint8).reshape(3, 1, 8, 8), 4, axis=0)
    few = InMemory("few", 3, dict.fromkeys(("train", "val", "test"), (images, np.arange(12) // 4)))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    settings = EvaluationSettings(attack=attack, n=6, batch_size=6)
    with pytest.raises(InputError, match="pgd-50"):
        evaluate(model, few, settings, eps=EPS)
    assert len(evaluate(model, few, settings.model_copy(update={"attack": "pgd-50"}), eps=EPS).label) == 6


def test_the_standard_ensemble_is_the_published_one(classifier, data, monkeypatch):
    # Shown on its members, as Square alone makes 5,000 queries.
    seen = {}

    class Ensemble(AutoAttack):
        def run_standard_evaluation(self, x, y, *, batch_size):
            seen.update(attacks=self.attacks_to_run, queries=self.square.n_queries, norm=self.norm, seed=self.seed)
            seen.update(restarts=self.apgd.n_restarts, targets=self.apgd_targeted.n_target_classes, eps=self.epsilon)
            seen.update(training=self.model.training, trained=any(p.requires_grad for p in self.model.parameters()))
            return x, y

    monkeypatch.setattr("s2ap_core.training.attacks.AutoAttack", Ensemble)
    model = bake(classifier).train()
    batch = next(data.batches("test", 4))
    assert autoattack(model, batch.x, batch.y, eps=float(EPS), seed=11).all()
    assert seen == {
        "attacks": ["apgd-ce", "apgd-t", "fab-t", "square"], "queries": 5000, "norm": "Linf", "restarts": 1,
        "targets": 9, "eps": float(EPS), "seed": 11, "training": False, "trained": False,
    }  # fmt: skip
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


def test_a_batch_with_nothing_left_to_attack(classifier, data):
    wrong = copy.deepcopy(classifier)
    with torch.no_grad():
        wrong[1].parametrizations.weight.original.neg_()
        wrong[1].bias.neg_()
    found = run(wrong, data, attack="apgd", n=5)
    assert not found.clean.any()
    assert not found.robust.any()


def test_an_image_that_is_wrong_without_the_attack_is_not_robust(classifier, data, monkeypatch):
    def lucky(model: nn.Module, x: Tensor, y: Tensor, *_: object) -> Tensor:
        return torch.ones_like(y, dtype=torch.bool)

    monkeypatch.setattr(s2ap_core.training.evaluation, "_pgd_50", lucky)
    dark = InMemory("dark", 10, {"test": (np.zeros((10, 1, 8, 8), np.uint8), np.arange(10))})
    found = run(classifier, dark)
    assert found.clean.sum() == 1
    assert found.robust.tolist() == found.clean.tolist()


def test_without_a_radius_robust_is_clean(classifier, data):
    found = run(classifier, data, eps="0")
    assert found.robust.tolist() == found.clean.tolist()
    assert found.summary()["eps"] == "0"


def test_the_model_is_left_as_it_is(classifier, data):
    classifier.train()
    classifier[1].eval()
    state = copy.deepcopy(classifier.state_dict())
    run(classifier, data)
    assert [m.training for m in classifier] == [True, False, True]
    assert all(torch.equal(v, state[k]) for k, v in classifier.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in classifier.parameters())


def test_noise_has_the_attacks_radius_and_zero_gradients_are_counted(data):
    class Steps(nn.Module):
        """Sees nothing of the image but whether it is the brightest the noise can make it."""

        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            self.seen.append(x.detach().clone())
            return 0 * x.flatten(1)[:, :10]

    model = Steps()
    s2ap_core.training.evaluation._outcomes(
        model, *next(data.batches("test", 30))[:2], Attack("pgd-50", "Linf", Fraction(1, 10)), seed=0
    )
    clean, noisy = model.seen[:2]
    assert (noisy - clean).abs().max() == pytest.approx(0.1, rel=0.01)
    assert noisy.min() >= 0
    assert noisy.max() <= 1
    assert run(Steps(), data).zero_gradient.all()


def test_noise_of_an_l2_attack_is_no_larger_than_the_attack(data):
    seen = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach().clone())
            return x.flatten(1)[:, :10]

    x, y, _ = next(data.batches("test", 4))
    s2ap_core.training.evaluation._outcomes(Spy(), x, y, Attack("apgd", "L2", Fraction(1, 2)), seed=0)
    assert (seen[1] - seen[0]).flatten(1).norm(dim=1).max() <= 0.5 * (1 + 1e-6)


def test_images_outside_the_unit_range_are_refused(classifier, data):
    bright = InMemory("bright", 10, {"test": (np.full((4, 1, 8, 8), 200, np.uint8), np.arange(4))}, scale=100)
    with pytest.raises(InputError, match=r"data set bright: images outside \[0, 1\]"):
        run(classifier, bright)


# --- interruption ---


class Stop(Exception):
    pass


def stop_after(images: int):
    def on_batch(done: int, total: int) -> None:
        if done >= images:
            raise Stop

    return on_batch


def test_an_interrupted_evaluation_goes_on_where_it_stopped(classifier, data, tmp_path, monkeypatch):
    settings, file = EvaluationSettings(**QUICK), tmp_path / "evals" / "prune.npz"
    whole = evaluate(classifier, data, settings, eps=EPS, seed=3)
    with pytest.raises(Stop):
        evaluate(classifier, data, settings, eps=EPS, seed=3, file=file, on_batch=stop_after(5))
    assert columns(load_evaluation(file))["index"] == [0, 1, 2, 3, 4]
    attacked, reported = [], []

    def counted(model, x, *arguments, **options):
        attacked.append(len(x))
        return pgd(model, x, *arguments, **options)

    monkeypatch.setattr(s2ap_core.training.evaluation, "pgd", counted)

    def resume() -> Evaluation:
        return evaluate(
            classifier, data, settings, eps=EPS, seed=3, file=file, on_batch=lambda *now: reported.append(now)
        )

    assert columns(resume()) == columns(whole)
    assert attacked == [5, 4]
    assert reported[-2:] == [(10, 14), (14, 14)]
    # What is complete is not repeated, and comes back from its file.
    assert columns(resume()) == columns(whole) == columns(load_evaluation(file))
    assert attacked == [5, 4]
    assert resume().summary() == whole.summary()


@pytest.mark.parametrize("change", [{"batch_size": 7}, {"n": 20}, {"n": 14, "batch_size": 6}])
def test_going_on_with_more_images_or_other_batches_leaves_none_out(classifier, data, tmp_path, change):
    file, first = tmp_path / "eval.npz", EvaluationSettings(**QUICK)
    on_batch = stop_after(10) if "batch_size" in change else lambda done, total: None
    with suppress(Stop):
        evaluate(classifier, data, first, eps=EPS, file=file, on_batch=on_batch)
    settings = EvaluationSettings(**{**QUICK, **change})
    found = evaluate(classifier, data, settings, eps=EPS, file=file)
    assert found.index.tolist() == list(range(settings.n))


def test_fewer_images_are_the_first_ones(classifier, data, tmp_path):
    file = tmp_path / "eval.npz"
    whole = evaluate(classifier, data, EvaluationSettings(**QUICK), eps=EPS, file=file)
    fewer = evaluate(classifier, data, EvaluationSettings(**{**QUICK, "n": 10}), eps=EPS, file=file)
    assert fewer.robust.tolist() == whole.robust[:10].tolist()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 4}, "seed = 3, now 4"),
        ({"eps": Fraction(1, 255)}, "eps = 8/51, now 1/255"),
        ({"about": {"sha256": "b"}}, "sha256 = a, now b"),
        ({"settings": EvaluationSettings(attack="apgd", n=5)}, "attack = pgd-50, now apgd"),
    ],
)
def test_a_file_about_something_else_is_not_continued(classifier, data, tmp_path, changes, named):
    file = tmp_path / "eval.npz"
    options = {"settings": EvaluationSettings(**QUICK), "eps": EPS, "seed": 3, "about": {"sha256": "a"}}
    evaluate(classifier, data, **options, file=file)
    before = file.read_bytes()
    with pytest.raises(InputError, match=named):
        evaluate(classifier, data, **{**options, **changes}, file=file)
    assert file.read_bytes() == before


def test_damaged_files_are_named(tmp_path, classifier, data):
    file = tmp_path / "eval.npz"
    with pytest.raises(InputError, match="no such file"):
        load_evaluation(file)
    evaluate(classifier, data, EvaluationSettings(**QUICK), eps=EPS, file=file)
    intact = file.read_bytes()
    for content in (intact[:-30], intact[: len(intact) // 2], b"", b"clean,robust\n1,0\n"):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"eval\.npz: not an evaluation of ours, or damaged"):
            load_evaluation(file)
    np.savez(file, clean=np.ones(3))
    with pytest.raises(InputError, match="not an evaluation of ours"):
        load_evaluation(file)


# --- what is reported ---


@pytest.mark.parametrize(("correct", "n"), [(0, 1), (0, 30), (1, 1), (7, 10), (50, 100), (4931, 10000), (128, 128)])
def test_wilson_intervals_are_scipys(correct, n):
    expected = binomtest(correct, n).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson(correct, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def made_up(n: int = 200, clean: float = 0.8, robust: float = 0.5, noise: float = 0.78, zero: float = 0.0):
    def share(value: float) -> np.ndarray:
        return np.arange(n) < round(value * n)

    return Evaluation(
        index=np.arange(n), label=np.arange(n) % 10, clean=share(clean), robust=share(robust), noise=share(noise),
        zero_gradient=share(zero), about={"attack": "autoattack", "norm": "Linf", "eps": "8/255", "seed": 0},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({"zero": 0.11}, "11% of the images have a zero input gradient"),
        ({"noise": 0.4}, r"random noise \(40.0%\) does more harm than the attack \(50.0%\)"),
        ({"n": 99}, "only 99 images: an accuracy is known to within 10 points"),
        ({"clean": 0.12, "robust": 0.0, "noise": 0.12}, "clean accuracy 12.0% is near chance"),
    ],
)
def test_suspicious_combinations_are_warned_of(case, message):
    (found,) = made_up(**case).warnings()
    assert re.search(message, found)
    assert "\n" not in found


def test_healthy_results_give_no_warning():
    assert made_up().warnings() == []
    assert made_up(zero=0.1, robust=0.78).warnings() == []


def test_the_summary_has_an_interval_beside_each_accuracy():
    found = made_up().summary()
    assert (found["n"], found["eps"], found["norm"]) == (200, "8/255", "Linf")
    assert (found["clean_accuracy"], found["robust_accuracy"], found["noise_accuracy"]) == (0.8, 0.5, 0.78)
    expected = binomtest(100, 200).proportion_ci(method="wilson")
    assert found["robust_interval"] == pytest.approx((expected.low, expected.high))
    assert found["clean_interval"][0] < 0.8 < found["clean_interval"][1]
