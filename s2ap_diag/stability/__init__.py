"""Mask stability: how much masks differ, and how far scores are from flipping their entries.

Masks are mappings from a layer's weight name to a binary array or tensor of any shape, as
:func:`s2ap_core.masks.masking.masks` gives them, or the same packed. Only :mod:`s2ap_diag.stability.margins`, which
reads scores, needs torch and is not imported here.
"""

from s2ap_core.files.packed import PackedMask
from s2ap_diag.stability.distances import Hamming, hamming, trajectory
from s2ap_diag.stability.packed import Masks, PackedMasks

__all__ = ["Hamming", "Masks", "PackedMask", "PackedMasks", "hamming", "trajectory"]
