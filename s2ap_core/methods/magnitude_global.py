"""Global magnitude pruning: the largest weights of the network, whichever layers they are in."""

from s2ap_core.methods.magnitude import Magnitude
from s2ap_core.methods.one_shot import Global


class MagnitudeGlobal(Global, Magnitude):
    """Scores are ``|w|``, one threshold for all layers."""
