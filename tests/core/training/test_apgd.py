"""``evaluation.attack = "apgd"``: its two attacks, the second on what the first has left."""

import torch

from s2ap_core.training.attacks import AUTOATTACK, autoattack
from s2ap_core.training.ensemble.auto_pgd import AutoPGD, TargetedAutoPGD


def test_images_that_fell_to_the_first_attack_are_not_attacked_again(narrow, data, monkeypatch):
    model, attacked = narrow().eval(), {}

    def watched(kind):
        perturb = kind.perturb

        def counted(self, x, *rest, **options):
            attacked.setdefault(kind.__name__, []).append(len(x))
            return perturb(self, x, *rest, **options)

        monkeypatch.setattr(kind, "perturb", counted)

    batch = next(data.batches("test", 30))
    with torch.no_grad():
        labels = model(batch.x).argmax(1)  # an untrained network, right about all images
    first = autoattack(model, batch.x, labels, eps=0.02, attacks=AUTOATTACK[:1])
    watched(AutoPGD)
    watched(TargetedAutoPGD)
    both = autoattack(model, batch.x, labels, eps=0.02, attacks=AUTOATTACK[:2])
    assert 0 < first.sum() < 30
    assert attacked["AutoPGD"][0] == 30
    assert attacked["TargetedAutoPGD"] == [int(first.sum())]
    assert not (both & ~first).any()
