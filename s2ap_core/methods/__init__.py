"""Methods: how scores start, how much each layer keeps. One file each, one line each in ``METHODS``."""

from collections.abc import Callable

from s2ap_core.methods.base import Method, MethodSettings
from s2ap_core.methods.harp import Harp
from s2ap_core.methods.hydra import Hydra
from s2ap_core.methods.rlth import Rlth

METHODS: dict[str, Callable[[MethodSettings], Method]] = {
    "hydra": Hydra,
    "harp": Harp,
    "rlth": Rlth,
}

__all__ = ["METHODS", "Method", "MethodSettings"]
