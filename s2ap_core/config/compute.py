"""Settings of how a run computes: arithmetic, several processes."""

from typing import Literal

from s2ap_core.config.base import Settings


class ComputeSettings(Settings):
    """How a run computes.

    Attributes:
        precision: of the matrix products in training: ``tf32`` is float32 with TensorFloat-32 on GPUs that have it,
            torch's default for convolutions; ``bfloat16`` runs attack and loss under autocast. Scores, weights and
            their updates, validation, evaluation and curvature are float32 with all of them.
        deterministic: a GPU's convolutions give the same bits each time, so that a resumed run is the uninterrupted
            one; on a CPU it always is.
    """

    precision: Literal["float32", "tf32", "bfloat16"] = "tf32"
    deterministic: bool = False


class DistributedSettings(Settings):
    """How several processes work on one run.

    Attributes:
        batch_norm: BatchNorm in train mode normalises over the whole batch (``sync``), which makes the result
            independent of the number of processes, or over each process's own images (``local``).
    """

    batch_norm: Literal["sync", "local"] = "sync"
