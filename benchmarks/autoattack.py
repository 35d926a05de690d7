"""What evaluating takes beside AutoAttack itself, on few images and on many."""

import numpy as np
from pyautoattack import AutoAttack

from benchmarks.measure import Goal, Row, Setting, at_most, interleaved
from benchmarks.worlds import digits
from s2ap_core.config import EvaluationSettings
from s2ap_core.data import Dataset, InMemory, load
from s2ap_core.seeds import derive_seed
from s2ap_core.training.evaluation import Evaluation, evaluate


def run(setting: Setting) -> list[Row]:
    return [_compared(4 if setting.quick else 64, at_most(0.5), setting)]


def run_on_many(setting: Setting) -> list[Row]:
    """Compare on so many images that passes are full to the end."""
    return [_compared(16 if setting.quick else 1000, at_most(0.65), setting)]


def _compared(n: int, goal: Goal, setting: Setting) -> Row:
    world = digits(setting, epochs=1 if setting.quick else 5)
    world.model.eval().requires_grad_(False)
    model, data, eps = world.model, _first_images(world.data, n, setting), world.objective.eps
    settings = EvaluationSettings(n=n, batch_size=max(n, 250))
    (batch,) = data.batches("test", n, limit=n)
    evaluations: dict[str, Evaluation] = {}
    robust: dict[str, np.ndarray] = {}

    def ours() -> None:
        evaluations["ours"] = evaluate(model, data, settings, eps=eps, seed=0)

    def direct() -> None:
        # The seed that evaluate() derives for its first batch, so that both make the same attacks.
        seed = derive_seed(0, "evaluate", 0) % 2**31
        attack = AutoAttack(model, norm="Linf", eps=float(eps), seed=seed, device=batch.x.device, version="standard")
        _, predicted = attack.run_standard_evaluation(batch.x, batch.y, batch_size=n)
        robust["direct"] = (predicted == batch.y).cpu().numpy()

    times = interleaved({"direct": direct, "ours": ours}, rounds=1, device=setting.device)
    other = int((evaluations["ours"].robust != robust["direct"]).sum())
    detail = (
        f"{times.compare('ours', 'direct')}; {robust['direct'].sum()} of {n} robust, {other} images otherwise in ours"
    )
    return Row(f"evaluate() over pyautoattack, digits, {n} images", times.ratio("ours", "direct"), "x", goal, detail)


def _first_images(data: Dataset, n: int, setting: Setting) -> Dataset:
    """Take the test split, or so many of the training images where it has fewer."""
    if n <= data.count("test"):
        return data
    (batch,) = load("digits").batches("train", n, limit=n)
    pixels = (batch.x * 255).round().byte().numpy()
    return InMemory("digits", 10, {"test": (pixels, batch.y.numpy())}).to(setting.device)
