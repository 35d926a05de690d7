"""A run of the paper made small: its method and network, narrow, on scikit-learn's digits."""

from fractions import Fraction
from typing import Any

from s2ap_core.config import AttackNorm, Config

WIDTHS = {
    "resnet18": 8, "vgg16_bn": 8, "wrn_28_4": 6, "resnet50": 4, "vit": 16, "preact_resnet18": 8, "vgg16_linear": 8,
}  # fmt: skip
"""First stage of each network, so that a whole run takes less than two minutes on two cores."""

EPOCHS: dict[str, dict[str, Any]] = {
    "pretrain": {"epochs": 8, "batch_size": 128},
    "prune": {"epochs": 9, "batch_size": 128},
    "finetune": {"epochs": 5, "batch_size": 128},
}

TRANSFORMER_EPOCHS: dict[str, dict[str, Any]] = {
    "pretrain": {"epochs": 24, "batch_size": 32, "lr": 0.01, "lr_warmup": 1, "momentum": 0.8},
    "prune": {"epochs": 6, "batch_size": 32, "lr": 0.01},
    "finetune": {"epochs": 3, "batch_size": 32, "lr": 0.001},
}
"""Without convolutions' locality it takes more steps and, at this width, larger ones."""

RADII: dict[AttackNorm, tuple[Fraction, Fraction]] = {
    "Linf": (Fraction(32, 255), Fraction(8, 255)),
    "L2": (Fraction(1, 2), Fraction(2, 5)),
    "L1": (Fraction(3, 2), Fraction(6, 5)),
}
"""Radius and step of each norm, at which dense networks keep 50 to 80 %: on 8x8 images 8/255 hardly matters."""

BATCH = 400
"""Test images that are attacked at once: the whole test split, of a fold or of all, and fewer where n says so."""

TRACKED = 32
"""Images that lambda_max is read of, in one of an epoch's ten iterations; a whole batch would double its time."""

PENALTY = 0.2
"""HARP's c. The paper's 0.01 is for 391 iterations in an epoch, digits has ten.

With 0.2 keep 0.05 is reached by epochs 3 to 5 of 9 on ResNet-18, VGG-16 and WRN-28-4. At keep 0.01 no c from
0.05 to 30 gets there on all three: a narrow layer that is nearly empty sends a rate to 1, where it stays; what
is handed on is cut to the budget all the same, with a warning.
"""

CHANNEL_PENALTY = 5.0
"""HARP's c for channels: their rates start at 0.99 and have the whole way to the budget to fall."""


def scale_to_digits(config: Config) -> Config:
    """Scale a run to the embedded digits: a narrow network, few epochs, APGD on all test images.

    Method, minimizer, gamma, keep rate, optimizers and norm stay as they are. Networks that are not in :data:`WIDTHS`
    keep their width.
    """
    epochs = TRANSFORMER_EPOCHS if config.network.name == "vit" else EPOCHS
    # All of AutoAttack on a test split takes longer than all the training; its first two leave the others little to do.
    attack = "apgd" if config.evaluation.attack == "autoattack" else config.evaluation.attack
    eps, step = RADII[config.objective.norm]
    changes: dict[str, dict[str, Any]] = {
        "data": {"name": "digits", "root": None, "options": {}},
        "network": {"width": WIDTHS.get(config.network.name, config.network.width)},
        "objective": {"eps": eps, "step": step, "steps": 5},  # five steps cross the ball
        "method": {"penalty": CHANNEL_PENALTY if config.method.name == "harp-channels" else PENALTY},
        "minimizer": {"warmup": 2},  # a quarter of the search, as in the paper
        "pretrain": {"checkpoint": None, **epochs["pretrain"]},
        "prune": epochs["prune"],
        "finetune": epochs["finetune"],
        "tracking": {"images": TRACKED},
        "evaluation": {"attack": attack, "eps": None, "batch_size": BATCH},
    }
    sections = {name: getattr(config, name).model_copy(update=change) for name, change in changes.items()}
    what = config.title or f"{config.method.name} on {config.network.name}"
    title = f"{what}; scaled: {sections['network'].width} wide, on digits"
    return config.model_copy(update={"title": title, **sections})
