"""The small worlds that tests share: narrow networks on 8x8 images, a data set and configs of seconds."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from s2ap_core.config import Config, parse_config
from s2ap_core.data import InMemory
from s2ap_core.models import NETWORKS, build
from s2ap_core.runs.directory import RunDirectory
from tests.tiny import Tiny

pytest_plugins = ["tests.faults"]

# The worlds are too small for threads, and one thread makes sums come out the same everywhere.
torch.set_num_threads(1)

WIDTHS = {"resnet18": 4, "vgg16_bn": 4, "wrn_28_4": 4, "vit": 12}
SECTIONS = {
    "network": {"name": "tiny"},
    "objective": {"eps": "32/255", "step": "16/255", "steps": 2},
    "method": {"name": "hydra", "keep": 0.3},
    "pretrain": {"epochs": 2, "batch_size": 16},
    "prune": {"epochs": 3, "batch_size": 16},
    "finetune": {"epochs": 2, "batch_size": 16},
    "evaluation": {"attack": "pgd-50", "n": 12, "batch_size": 6},
}


@pytest.fixture
def narrow() -> Callable[..., nn.Module]:
    """``narrow(name, **options)``: a narrow network for [B, 1, 8, 8] images, the same weights each time.

    Its BatchNorm statistics and affine parameters are not those of the initialisation.
    """

    def make(name: str = "tiny", **options: Any) -> nn.Module:
        torch.manual_seed(0)
        if name == "tiny":
            model: nn.Module = Tiny(**options)
        else:
            sizes = {"width": WIDTHS[name], "input_size": 8, "input_channels": 1}
            model = build(name, **sizes | options)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.8, 1.2)
                if module.affine:
                    nn.init.uniform_(module.weight, 0.8, 1.2)
                    nn.init.normal_(module.bias, std=0.1)
        return model

    return make


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Eight images [8, 1, 8, 8] in [0, 1], some pixels at its ends, and their labels among ten."""
    rng = torch.Generator().manual_seed(1)
    images = (1.4 * torch.rand(8, 1, 8, 8, generator=rng) - 0.2).clamp(0, 1)
    return images, torch.randint(0, 10, (8,), generator=rng)


@pytest.fixture(scope="session")
def prototypes() -> np.ndarray:
    """The mean image of each of the ten classes of ``data``, [10, 1, 8, 8] bytes."""
    return np.random.default_rng(0).integers(40, 216, (10, 1, 8, 8))


@pytest.fixture(scope="session")
def data(prototypes: np.ndarray) -> InMemory:
    """Ten classes of noisy prototypes: 40 training, 20 validation and 30 test images, 1x8x8."""
    rng = np.random.default_rng(1)

    def split(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(count) % 10
        noisy = prototypes[labels] + rng.normal(0, 25, (count, 1, 8, 8))
        return noisy.clip(0, 255).astype(np.uint8), labels

    return InMemory("prototypes", 10, {"train": split(40), "val": split(20), "test": split(30)})


@pytest.fixture(scope="session")
def settings() -> Callable[..., Config]:
    """``settings(prune={...}, ...)``: a config of seconds with these sections changed."""

    def make(seed: int = 0, **sections: dict[str, Any]) -> Config:
        keys = SECTIONS.keys() | sections.keys()
        merged = {key: {**SECTIONS.get(key, {}), **sections.get(key, {})} for key in keys}
        return parse_config({"seed": seed, **merged}, "test")

    return make


@pytest.fixture(scope="session")
def new_run(settings: Callable[..., Config]) -> Callable[..., RunDirectory]:
    """``new_run(path, prune={...}, ...)``: a run directory with such a config."""

    def make(path: Path, **sections: Any) -> RunDirectory:
        return RunDirectory.create(path, settings(**sections), "cpu")

    return make


@pytest.fixture(scope="module")
def tiny_network() -> Iterator[None]:
    """The network ``tiny`` can be named in a config."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "tiny", Tiny)
        yield
