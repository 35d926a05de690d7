"""What a config implies for its run: stages, beginnings that it can share, arm, gamma."""

import hashlib
import json
from typing import Any, Literal

from s2ap_core.config import Config
from s2ap_core.methods import build_method

TRAINED_STAGES = ("pretrain", "prune", "finetune")


Until = Literal["pretrain", "warmup", "prune", "end"]


BEGINNINGS: tuple[Until, ...] = ("pretrain", "warmup", "prune")
"""Where a run may end so that others go on from it, in the order of the stages."""


def beginning(config: Config, until: Until, *, defaults: bool = True) -> dict[str, Any]:
    """The settings on which a run depends up to there: two configs that agree in them share that part.

    Args:
        defaults: whether settings at their default are named too.
    """
    settings = config.model_dump(mode="json", exclude_defaults=not defaults)
    settings.pop("title", None)
    if until == "end":
        return settings
    minimizer, method = settings.get("minimizer", {}), settings.get("method", {})
    shared = ["seed", "data", "network", "objective", "pretrain", "distributed", "compute"]
    if until != "pretrain":
        shared += ["method", "prune", "tracking"]
    kept = {key: settings.get(key) for key in shared}
    if not build_method(config.method).pretrained:
        kept["untrained"] = [method.get("name"), method.get("init")]
    if until == "warmup":
        kept["minimizer"] = {key: minimizer.get(key) for key in ("warmup", "update")}
    if until == "prune":
        searched = config.minimizer.name != "none"
        kept["minimizer"] = minimizer if searched else {"update": minimizer.get("update")}
    return kept


def fingerprint(config: Config, until: Until = "end") -> str:
    """Eight hexadecimal digits of :func:`beginning`: the same for runs that share that part.

    A setting that a later version adds changes nothing as long as it is left at its default.
    """
    text = json.dumps([until, beginning(config, until, defaults=False)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
