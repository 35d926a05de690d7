"""What evaluating adds to AutoAttack itself."""

import numpy as np
from pyautoattack import AutoAttack

from benchmarks.measure import Row, Setting, at_most, interleaved
from benchmarks.worlds import digits
from s2ap_core.config import EvaluationSettings
from s2ap_core.seeds import derive_seed
from s2ap_core.training.evaluation import Evaluation, evaluate


def run(setting: Setting) -> list[Row]:
    world = digits(setting, epochs=1 if setting.quick else 5)
    n, eps = 4 if setting.quick else 64, world.objective.eps
    settings = EvaluationSettings(n=n, batch_size=n)
    (batch,) = world.data.batches("test", n, limit=n)
    model = world.model.eval().requires_grad_(False)
    evaluations: dict[str, Evaluation] = {}
    robust: dict[str, np.ndarray] = {}

    def ours() -> None:
        evaluations["ours"] = evaluate(model, world.data, settings, eps=eps, seed=0)

    def direct() -> None:
        # The seed that evaluate() derives for its first batch, so that both make the same attacks.
        seed = derive_seed(0, "evaluate", 0) % 2**31
        attack = AutoAttack(model, norm="Linf", eps=float(eps), seed=seed, device=batch.x.device, version="standard")
        _, predicted = attack.run_standard_evaluation(batch.x, batch.y, batch_size=n)
        robust["direct"] = (predicted == batch.y).cpu().numpy()

    rounds = interleaved({"direct": direct, "ours": ours}, rounds=1 if setting.quick else 2, device=setting.device)
    agree = "the same" if np.array_equal(evaluations["ours"].robust, robust["direct"]) else "OTHER"
    detail = f"{rounds.compare('ours', 'direct')}; {robust['direct'].sum()} of {n} robust, {agree} images in both"
    return [
        Row(
            f"evaluate() over pyautoattack, digits, {n} images",
            rounds.ratio("ours", "direct"),
            "x",
            at_most(1.03),
            detail,
        )
    ]
