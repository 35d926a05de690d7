"""Methods: how scores start, how much each layer keeps. One file each, one line each in ``METHODS``."""

from collections.abc import Callable

from s2ap_core.config import MethodSettings
from s2ap_core.config.parts import Registry, call
from s2ap_core.errors import InputError
from s2ap_core.methods.base import Method
from s2ap_core.methods.channels import HarpChannels, HydraChannels
from s2ap_core.methods.harp import Harp
from s2ap_core.methods.harp_units import HarpHeads, HarpUnits
from s2ap_core.methods.hydra import Hydra
from s2ap_core.methods.hydra_by_layer import HydraErk, HydraSpectral
from s2ap_core.methods.mad import Mad
from s2ap_core.methods.magnitude import Magnitude
from s2ap_core.methods.magnitude_erk import MagnitudeErk
from s2ap_core.methods.magnitude_global import MagnitudeGlobal
from s2ap_core.methods.random import Random
from s2ap_core.methods.rlth import Rlth
from s2ap_core.methods.snip import Snip
from s2ap_core.methods.taylor import Taylor

METHODS: Registry[Callable[..., Method]] = Registry("method", None, {
    "hydra": Hydra,
    "harp": Harp,
    "rlth": Rlth,
    "hydra-erk": HydraErk,
    "hydra-spectral": HydraSpectral,
    "harp-units": HarpUnits,
    "harp-heads": HarpHeads,
    "hydra-channels": HydraChannels,
    "harp-channels": HarpChannels,
    "magnitude": Magnitude,
    "magnitude-global": MagnitudeGlobal,
    "magnitude-erk": MagnitudeErk,
    "random": Random,
    "snip": Snip,
    "taylor": Taylor,
    "mad": Mad,
})  # fmt: skip


def build_method(settings: MethodSettings) -> Method:
    """Build the method that settings name.

    Raises:
        InputError: if there is none of that name, it takes no such option, or it raises or is no Method.
    """
    what = f"method {settings.name}"
    method = call(what, METHODS.find(settings.name), settings, offered={}, options=settings.options)
    if not isinstance(method, Method):
        raise InputError(f"{what}: returns a {type(method).__name__}; return an s2ap_core.methods.Method")
    return method


__all__ = ["METHODS", "Method", "MethodSettings", "build_method"]
