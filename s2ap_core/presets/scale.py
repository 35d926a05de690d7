"""A run of the paper made small: its method and network, narrow, on scikit-learn's digits."""

from fractions import Fraction
from typing import Any

from s2ap_core.config import Config

WIDTHS = {"resnet18": 8, "vgg16_bn": 8, "wrn_28_4": 4, "resnet50": 4, "vit": 16}
"""First stage of each network, so that a whole run takes less than two minutes on two cores."""

PENALTY = 1.0
"""HARP's c. The paper's 0.01 is for 391 iterations in an epoch; digits has ten, in which rates hardly move."""


def scale_to_digits(config: Config) -> Config:
    """The same run on the embedded digits: a narrow network, few epochs, AutoAttack on 128 images at most.

    Method, minimizer, gamma and keep rate, optimizers and batch size stay as they are. Networks that are not
    in :data:`WIDTHS` keep their width.
    """
    images = min(config.evaluation.n or 128, 128)
    changes: dict[str, dict[str, Any]] = {
        "data": {"name": "digits", "root": None, "options": {}},
        "network": {"width": WIDTHS.get(config.network.name, config.network.width)},
        # On 8x8 images 8/255 hardly matters to a network; 32/255 halves its accuracy.
        "objective": {"eps": Fraction(32, 255), "step": Fraction(8, 255)},
        "method": {"penalty": PENALTY},
        "minimizer": {"warmup": 2},
        "pretrain": {"epochs": 8, "checkpoint": None, "batch_size": 128},
        "prune": {"epochs": 9, "batch_size": 128},
        "finetune": {"epochs": 5, "batch_size": 128},
        "evaluation": {"n": images, "eps": None, "batch_size": 128},
    }
    sections = {name: getattr(config, name).model_copy(update=change) for name, change in changes.items()}
    what = config.title or f"{config.method.name} on {config.network.name}"
    title = f"{what}; scaled: {sections['network'].width} wide, on digits, {images} test images"
    return config.model_copy(update={"title": title, **sections})
