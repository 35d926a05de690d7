"""Settings without effect given a config's other settings: they are refused, so that nobody relies on them.

A default is never refused, nor is a setting of how far or on what a run is computed: the settings of stages that
``evaluation.stages`` leaves out, ``minimizer.warmup`` without a perturbation (where sweeps let Orig. and S2AP part),
``distributed.batch_norm`` in one process, ``objective.eps`` of clean training (the radius of later evaluations).
"""

from collections.abc import Iterable, Iterator
from typing import Any

from s2ap_core.config import Config
from s2ap_core.data.own import is_path
from s2ap_core.errors import InputError
from s2ap_core.methods import build_method
from s2ap_core.models import chooses_norm, takes
from s2ap_core.runs import course

UNREAD = {"clean": ("beta", "norm", "eps", "step", "steps"), "pgd-at": ("beta",), "fast-at": ("beta", "step", "steps")}
"""Settings that an objective does not read."""


SUCH_AS = {
    "Linf": {"eps": "8/255", "step": "2/255"}, "L2": {"eps": "0.5", "step": "0.1"}, "L1": {"eps": "12", "step": "2.4"},
}  # fmt: skip
"""A radius and step of each norm that are usual on CIFAR-10, for messages."""


def without_effect(config: Config) -> dict[str, str]:
    """Find the settings that are not at their default and change nothing, by dotted key; why, in words."""
    reasons: dict[str, str] = {}
    for key, why in _unread(config):
        section, name = key.split(".")
        if getattr(getattr(config, section), name) != _default(config, section, name):
            reasons.setdefault(key, why)
    return reasons


Unread = Iterator[tuple[str, str]]
"""Settings that a run does not read, whatever their values, each with the reason."""


def _unread(config: Config) -> Unread:
    yield from _unread_choices(config)
    yield from _unread_before_the_search(config)
    yield from _unread_without_a_search(config)
    yield from _unread_in_the_search(config)
    yield from _unread_after_the_search(config)
    yield from _unread_by_the_tracking(config)


def _unread_choices(config: Config) -> Unread:
    """Name what the data set, network, objective and method that are chosen do not read."""
    network, method, name = config.network, build_method(config.method), config.method.name
    if config.data.name == "digits":
        yield "data.root", "data.name = digits is embedded in a library"
    if is_path(config.data.name):
        yield "data.root", f"data.name = {config.data.name} is a path itself"
    for field in ("width", "norm_affine"):
        if not takes(network.name, field):
            yield f"network.{field}", f"network.name = {network.name} takes no {field}"
    if not chooses_norm(network.name):
        yield "network.norm", f"network.name = {network.name} has one normalisation of its own"
    if not course.has_batch_norm(config):
        said = f"network.norm = {network.norm}" if network.norm != "batch" else f"network.name = {network.name}"
        yield "distributed.batch_norm", f"{said} has no BatchNorm"
        yield "tracking.batch_norm", f"{said} has no BatchNorm, and one reading"
    for field in {*UNREAD.get(config.objective.name, ())} - {"eps", "norm"}:
        yield f"objective.{field}", f"objective.name = {config.objective.name} does not read it"
    choice = {"only", "skip", *(("keep_layers", "embeddings") if "keep" in method.reads else ())}
    for field in type(config.method).model_fields.keys() - {"name", *choice, *method.reads}:
        yield f"method.{field}", f"method.name = {name} does not read it"


def _unread_before_the_search(config: Config) -> Unread:
    method, name = build_method(config.method), config.method.name
    if config.pretrain.checkpoint is not None:
        why = "pretrain.checkpoint takes the place of the training"
        yield from _all_of("pretrain", config, why, but=("checkpoint",))
        yield "method.init", "pretrain.checkpoint takes the place of the untrained weights"
    elif not method.pretrained:
        yield from _all_of("pretrain", config, f"method.name = {name} prunes untrained weights", but=("checkpoint",))


def _unread_without_a_search(config: Config) -> Unread:
    """Name what is not read where the first mask is the last: by the method, or as ``prune.epochs`` is 0."""
    if course.search_epochs(config):
        return
    method, name = build_method(config.method), config.method.name
    why = "prune.epochs = 0 searches nothing" if method.searches else f"method.name = {name} does not search"
    read = ("batch_size", "epochs") if method.searches else ("batch_size",)  # the mask is validated
    yield from _all_of("prune", config, why, but=read)
    yield from _all_of("minimizer", config, why, but=() if not _perturbed_later(config) else ("gamma",))
    yield from _all_of("tracking", config, why, but=("tensorboard",))
    if "penalty" in method.reads:
        yield "method.penalty", why


def _perturbed_later(config: Config) -> bool:
    """Return whether the finetuning perturbs by the search's gamma."""
    finetune = config.finetune
    return build_method(config.method).finetuned and finetune.awp and finetune.gamma is None


def _unread_in_the_search(config: Config) -> Unread:
    network, minimizer, prune = config.network, config.minimizer, config.prune
    method = build_method(config.method)
    if minimizer.name == "none":
        why = "minimizer.name = none perturbs nothing"
        yield from _all_of("minimizer", config, why, but=("name", "gamma", "warmup", "update"))
        if not _perturbed_later(config):
            yield "minimizer.gamma", "neither minimizer.name nor finetune.awp perturbs anything by it"
    for kind in ("flips", "rise"):
        if minimizer.gamma != kind:
            yield f"minimizer.{kind}", f"minimizer.gamma = {minimizer.gamma} does not read it"
    if minimizer.direction == "shuffled":
        yield "minimizer.source", "minimizer.direction = shuffled takes the last iteration's gradient"
    if minimizer.direction == "random":
        yield from ((f"minimizer.{field}", "minimizer.direction = random is drawn") for field in ("source", "subset"))
    if minimizer.source == "attack":
        yield "minimizer.subset", "minimizer.source = attack makes no extra pass"
    frozen = prune.freeze_norm or not network.norm_affine
    if not network.norm_affine:
        yield "prune.freeze_norm", "network.norm_affine = false leaves the normalisation layers no parameters"
    if minimizer.update == "normalized" and frozen and "penalty" not in method.reads:
        why = "minimizer.update = normalized steps the scores without it, and nothing else is trained"
        yield from ((f"prune.{field}", why) for field in ("momentum", "weight_decay", "decay_norms"))
    if frozen:
        yield "prune.decay_norms", "neither biases nor parameters of normalisation layers are searched"
    for stage in ("pretrain", "prune", "finetune"):
        if getattr(config, stage).weight_decay == 0:
            yield f"{stage}.decay_norms", f"{stage}.weight_decay = 0 decays nothing"


def _unread_after_the_search(config: Config) -> Unread:
    """Name what finetuning and evaluation do not read."""
    evaluation, name = config.evaluation, config.method.name
    if not build_method(config.method).finetuned:
        yield from _all_of("finetune", config, f"method.name = {name} does not finetune")
    if not config.finetune.awp:
        yield "finetune.gamma", "finetune.awp = false perturbs nothing"
    if not evaluation.stages:
        yield from _all_of("evaluation", config, "evaluation.stages is empty", but=("stages",))
    if evaluation.attack == "none":
        yield from ((f"evaluation.{field}", "evaluation.attack = none attacks nothing") for field in ("norm", "eps"))


def _unread_by_the_tracking(config: Config) -> Unread:
    tracking = config.tracking
    if not tracking.every:
        yield from _all_of("tracking", config, "tracking.every = 0 reads nothing", but=("every", "tensorboard"))
    if not tracking.metrics:
        yield "tracking.every", "tracking.metrics is empty"
    if config.minimizer.name != "none":
        yield "tracking.along_z", f"minimizer.name = {config.minimizer.name} has a z of its own, which is read anyway"
    elif tracking.along_z is None:
        yield "tracking.by_layer", "there is neither a perturbation nor tracking.along_z"
    if tracking.recipe == "paper":
        yield "tracking.tolerance", "tracking.recipe = paper makes all of tracking.iterations"


def _all_of(section: str, config: Config, why: str, but: Iterable[str] = ()) -> Unread:
    for field in type(getattr(config, section)).model_fields.keys() - set(but):
        yield f"{section}.{field}", why


def _default(config: Config, section: str, name: str) -> Any:
    return type(getattr(config, section)).model_fields[name].get_default(call_default_factory=True)


def at_default(config: Config, keys: Iterable[str]) -> Config:
    """Return the same config with these settings, by dotted key, at their defaults."""
    changes: dict[str, dict[str, Any]] = {}
    for key in keys:
        section, name = key.split(".")
        changes.setdefault(section, {})[name] = _default(config, section, name)
    return config.model_copy(
        update={section: getattr(config, section).model_copy(update=change) for section, change in changes.items()}
    )


def refusals(config: Config, keys: Iterable[str], source: str) -> dict[str, str]:
    """Say, for each setting among ``keys`` without effect, where it is set, why it has none, and the remedy."""
    reasons, values = without_effect(config), config.model_dump(mode="json")
    said: dict[str, str] = {}
    for key in sorted(reasons.keys() & set(keys)):
        section, name = key.split(".")
        said[key] = f"{source}: {key} = {values[section][name]} has no effect: {reasons[key]}; leave it out"
    return said


def check_effect(config: Config, keys: Iterable[str], source: str) -> None:
    """Refuse settings that contradict each other, and those among ``keys`` that have no effect.

    Raises:
        InputError: naming ``source``, the setting, why, and the remedy.
    """
    check_sense(config, source)
    for message in refusals(config, keys, source).values():
        raise InputError(message)


def check_sense(config: Config, source: str) -> None:
    """Refuse settings that contradict each other, so that a run would not do what it says.

    Raises:
        InputError: naming ``source``, the settings and the remedy.
    """
    minimizer, evaluation = config.minimizer, config.evaluation
    _check_perturbation(config, source)
    searches = build_method(config.method).searches
    for stage in ("pretrain", "prune", "finetune") if course.search_epochs(config) else ("pretrain", "finetune"):
        settings = getattr(config, stage)
        if settings.lr_warmup >= settings.epochs:
            raise InputError(
                f"{source}: {stage}.lr_warmup = {settings.lr_warmup} leaves nothing of {stage}.epochs = "
                f"{settings.epochs}; lower the one or raise the other"
            )
    for field, plain in (("optimizer", "sgd"), ("clip", None)):
        value = getattr(config.prune, field)
        if minimizer.update == "normalized" and value != plain:
            raise InputError(
                f"{source}: minimizer.update = normalized is a plain step of a given length, which prune.{field} = "
                f"{value} is not; leave one of them out"
            )
    if searches and minimizer.name != "none" and minimizer.warmup >= config.prune.epochs:
        raise InputError(
            f"{source}: minimizer.name = {minimizer.name} has no effect: minimizer.warmup = {minimizer.warmup} leaves "
            f"nothing of prune.epochs = {config.prune.epochs}; lower the one or raise the other"
        )
    _check_radii(config, source)
    if evaluation.stages == ["finetune"] and not build_method(config.method).finetuned:
        raise InputError(
            f"{source}: evaluation.stages = finetune leaves nothing to evaluate: method.name = {config.method.name} "
            "does not finetune; name prune"
        )


def _check_perturbation(config: Config, source: str) -> None:
    """Refuse a perturbation that asks for what the run does not have."""
    minimizer = config.minimizer
    finetuned = config.finetune.awp and "finetune" in course.trained(config)
    if finetuned and config.finetune.gamma is None and isinstance(minimizer.gamma, str):
        raise InputError(
            f"{source}: finetune.awp = true has no radius, as minimizer.gamma = {minimizer.gamma} is no number; set "
            "finetune.gamma, such as 0.001"
        )
    if minimizer.name == "none":
        return
    if minimizer.source == "attack" and config.objective.name == "clean":
        raise InputError(
            f"{source}: minimizer.source = attack, but objective.name = clean makes no attack; choose another source"
        )
    still = config.prune.momentum == 0 or minimizer.update == "normalized"
    if minimizer.source == "momentum" and still:
        raise InputError(
            f"{source}: minimizer.source = momentum, but the scores are stepped without momentum (prune.momentum, "
            "minimizer.update); choose another source"
        )


def _check_radii(config: Config, source: str) -> None:
    """Refuse a radius or step of Linf for another norm."""
    objective, evaluation = config.objective, config.evaluation
    attacked = bool(evaluation.stages) and evaluation.attack != "none"
    for name in ("eps", "step"):
        value, read = getattr(objective, name), name not in UNREAD.get(objective.name, ())
        read = read or (name == "eps" and attacked and evaluation.eps is None)
        if objective.norm != "Linf" and read and value == _default(config, "objective", name):
            raise InputError(
                f"{source}: objective.norm = {objective.norm} has no objective.{name}: {value} is Linf's; set it, such "
                f"as {SUCH_AS[objective.norm][name]}"
            )
    if attacked and evaluation.norm is not None and evaluation.eps is None:
        raise InputError(
            f"{source}: evaluation.norm = {evaluation.norm} has no evaluation.eps: the training's radius is that of "
            f"{objective.norm}; set it, such as {SUCH_AS[evaluation.norm]['eps']}"
        )
