"""The passes that an evaluation is foreseen to make, against those that its network is called for."""

from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from s2ap_core.config import EvaluationSettings
from s2ap_core.data import InMemory
from s2ap_core.runs.passes import EVALUATION, ROBUST
from s2ap_core.training.evaluation import evaluate


@pytest.mark.parametrize("attack", ["apgd", "autoattack"])
def test_an_evaluation_makes_the_passes_that_are_counted(attack, data):
    """A network that no attack moves: all images stay, so the later attacks run on all of them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    with torch.no_grad():
        model[1].weight.mul_(1e-4)
    seen = {"forward": 0, "backward": 0}

    def count(module: nn.Module, given: object, output: Tensor) -> None:
        if isinstance(module, nn.Linear):
            seen["forward"] += len(output)
            if output.requires_grad:
                output.register_hook(lambda gradient: seen.update(backward=seen["backward"] + len(gradient)))

    n, images = 6, next(data.batches("test", 6))
    own = model(images.x).argmax(1).numpy()
    labelled = InMemory("labelled", 10, {"test": ((images.x * 255).byte().numpy(), own)})
    settings = EvaluationSettings(attack=attack, n=n, batch_size=n)
    with nn.modules.module.register_module_forward_hook(count):
        found = evaluate(model, labelled, settings, eps=Fraction(1, 2550))
    assert found.robust.all()
    passes = (seen["forward"] + 2 * seen["backward"]) / 3 / n
    foreseen = 100 + (EVALUATION[attack] - 100) / ROBUST
    # Of Square's queries some change nothing, and are not made.
    assert (0.6 if attack == "autoattack" else 0.97) * foreseen < passes < 1.03 * foreseen
