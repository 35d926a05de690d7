"""What follows from a config for its run: its stages and epochs, what it can share, its arm, its last entries.

All this depends on the config and the method alone, and is derived here and nowhere else. What a run costs is
counted in :mod:`s2ap_core.runs.passes` and :mod:`s2ap_core.runs.disk`.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Literal

from s2ap_core.config import Config
from s2ap_core.methods import METHODS, Method, build_method

Stage = Literal["pretrain", "prune", "finetune"]

TRAINED_STAGES: tuple[Stage, ...] = ("pretrain", "prune", "finetune")


Until = Literal["pretrain", "warmup", "prune", "end"]


def trained(config: Config, until: Until = "end") -> tuple[Stage, ...]:
    """Name, in order, the stages that a run goes through up to ``until``.

    Nothing is trained beyond the last stage that is evaluated; where none is evaluated, no stage is left out. The
    pretraining of some methods hands on untrained weights.
    """
    if until == "pretrain":
        return ("pretrain",)
    wanted = config.evaluation.stages or TRAINED_STAGES
    stages: list[Stage] = ["pretrain"]
    if until != "end" or "prune" in wanted or "finetune" in wanted:
        stages.append("prune")
    if until == "end" and "finetune" in wanted and _method(config).finetuned:
        stages.append("finetune")
    return tuple(stages)


def evaluated(config: Config, until: Until = "end") -> list[Stage]:
    """Name the stages whose result is evaluated: those asked for that are trained; none where the run ends early."""
    return [stage for stage in config.evaluation.stages if until == "end" and stage in trained(config)]


def expected(config: Config) -> list[str]:
    """Name the entries of ``results.json`` that a complete run has; they are written last."""
    return [f"evaluate-{stage}" for stage in evaluated(config)] or [trained(config)[-1]]


def epochs(config: Config, stage: Stage, since: Until | None = None, until: Until = "end") -> range:
    """Return the epochs, from 1, that a run trains of a stage between the beginning it goes on from and its end."""
    if stage not in trained(config, until):
        return range(1, 1)
    match stage:
        case "pretrain":
            given = config.pretrain.checkpoint is not None or not _method(config).pretrained
            return range(1, 1 if given or since is not None else config.pretrain.epochs + 1)
        case "prune":
            shared = min(config.minimizer.warmup, search_epochs(config))
            last = shared if until == "warmup" else search_epochs(config)
            done = {None: 0, "pretrain": 0, "warmup": shared}.get(since, last)
            return range(done + 1, last + 1)
        case "finetune":
            return range(1, config.finetune.epochs + 1)


def search_epochs(config: Config) -> int:
    """Count the epochs of the search; 0 where the first mask is the last."""
    return config.prune.epochs if _method(config).searches else 0


def warmup(config: Config) -> int:
    """Count the search's first epochs, which are not perturbed; 0 where no epoch is."""
    return 0 if config.minimizer.name == "none" else min(config.minimizer.warmup, search_epochs(config))


def perturbed(config: Config) -> range:
    """Return the epochs of the search, from 1, that are perturbed."""
    last = 0 if config.minimizer.name == "none" else search_epochs(config)
    return range(warmup(config) + 1, last + 1)


def arm(config: Config) -> str:
    """Name the arm of the comparison: what perturbs the search, and whether the finetuning goes with it.

    The paper finetunes Orig. plainly and S2AP with AWP; ``orig-awp`` and ``s2ap-plain`` are crossed. A search that
    nothing is finetuned after is ``orig``, ``s2ap`` or ``awp`` alone. However S2AP's perturbation is made, it is
    S2AP: see :func:`as_published`.
    """
    searched = "orig" if config.minimizer.name == "none" else config.minimizer.name
    if "finetune" not in trained(config):
        return searched
    crossed = {("orig", True): "orig-awp", ("s2ap", False): "s2ap-plain"}
    return crossed.get((searched, config.finetune.awp), searched)


def as_published(config: Config) -> bool:
    """Return whether the search steps as in the experiments behind the paper's tables.

    It does not with a cheaper perturbation, one of another radius or direction, one that is carried on or steps
    otherwise, or the update as printed.
    """
    minimizer = config.minimizer
    if minimizer.update != "method":
        return False
    if minimizer.name == "none":
        return True
    cheaper = minimizer.source != "pass" or minimizer.subset < 1 or minimizer.every > 1
    another = isinstance(minimizer.gamma, str) or minimizer.direction != "gradient"
    return not cheaper and not another and not minimizer.carry and minimizer.eta_z == math.inf


def gamma(config: Config) -> float | None:
    """Return the relative radius of the search's perturbations, or else of the finetuning's; None where none is."""
    if config.minimizer.name != "none":
        return None if isinstance(config.minimizer.gamma, str) else config.minimizer.gamma
    return finetuning_gamma(config) if "finetune" in trained(config) else None


def finetuning_gamma(config: Config) -> float | None:
    """Return the radius that weights are perturbed by in the finetuning, None where it is plain."""
    if not config.finetune.awp:
        return None
    gamma = config.finetune.gamma or config.minimizer.gamma
    assert not isinstance(gamma, str)  # the config asks for a number then
    return gamma


def flops_reduction(config: Config) -> float | None:
    """Return how many times fewer FLOPs pruning leaves, None for a method that counts weights."""
    return config.method.flops_reduction if _method(config).counts_flops else None


def beginnings(config: Config) -> list[Until]:
    """Name the points, in order, from which another run could go on instead of beginning anew."""
    possible: list[Until] = ["pretrain"]
    if "prune" in trained(config) and 0 < config.minimizer.warmup < search_epochs(config):
        possible.append("warmup")
    if "finetune" in trained(config):
        possible.append("prune")
    return possible


def network(config: Config) -> str:
    """Name the network, with its normalisation where it is not its own: another one is another network."""
    name, norm = config.network.name, config.network.norm
    return name if norm == "batch" else f"{name} with {norm} norm"


def batch_norm_modes(config: Config) -> Sequence[str]:
    """Name the readings that tracking makes each time: one for each mode of BatchNorm, one of a network without it."""
    modes = config.tracking.batch_norm
    return modes if has_batch_norm(config) else modes[:1]


def has_batch_norm(config: Config) -> bool:
    """Return whether the network has BatchNorm, as far as its config tells."""
    return config.network.norm == "batch" and config.network.name != "vit"


def uniform(config: Config) -> bool:
    """Return whether the method keeps the same fraction of each layer."""
    return bool(_method(config).uniform)


TRAITS = ("pretrained", "searches", "uniform", "finetuned", "counts_flops")
"""What of a method the course of a run depends on, and whoever reads the run."""


def traits(config: Config) -> dict[str, bool]:
    """Collect :data:`TRAITS` of a method that is not one of ours, for who reads the run without it."""
    if config.method.name in METHODS:
        return {}
    method = build_method(config.method)
    return {trait: bool(getattr(method, trait)) for trait in TRAITS}


def _method(config: Config) -> Any:
    """Build the method; where its code is not named, as for runs read later, return what the run noted of it."""
    if METHODS.knows(config.method.name):
        return build_method(config.method)
    noted = config.method.noted
    return SimpleNamespace(**{trait: noted.get(trait, getattr(Method, trait)) for trait in TRAITS})


def beginning(config: Config, until: Until, *, defaults: bool = True) -> dict[str, Any]:
    """Collect the settings on which a run depends up to ``until``: two configs that agree in them share that part.

    Args:
        defaults: whether settings at their default are named too.
    """
    return _beginning(config, until, config.model_dump(mode="json", exclude_defaults=not defaults))


def _beginning(config: Config, until: Until, settings: dict[str, Any]) -> dict[str, Any]:
    """Keep, of all settings, those that a run depends on up to ``until``."""
    settings = {key: value for key, value in settings.items() if key != "title"}
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


def digest(config: Config, until: Until = "end") -> str:
    """Hash :func:`beginning` to eight hexadecimal digits: the same for runs that share that part.

    A setting that a later version adds changes nothing as long as it is left at its default.
    """
    return digests(config, [until])[0]


def digests(config: Config, points: Sequence[Until]) -> list[str]:
    """Compute the digests up to several points, see :func:`digest`; the settings are collected once."""
    settings = config.model_dump(mode="json", exclude_defaults=True)
    texts = [json.dumps([until, _beginning(config, until, settings)], sort_keys=True, default=str) for until in points]
    return [hashlib.sha256(text.encode()).hexdigest()[:8] for text in texts]
