"""A run's settings: typed, checked, written as TOML."""

from typing import Any, Literal, get_args, get_origin

import tomli_w
from pydantic import Field, ValidationError, model_validator

from s2ap_core.config.base import AttackNorm, NetworkNorm, Settings
from s2ap_core.config.compute import ComputeSettings, DistributedSettings
from s2ap_core.config.measurement import EvaluationSettings, TrackingSettings
from s2ap_core.config.search import MethodSettings, MinimizerSettings
from s2ap_core.config.setting import DataSettings, NetworkSettings, ObjectiveSettings
from s2ap_core.config.stages import FinetuneSettings, PretrainSettings, PruneSettings, StageSettings
from s2ap_core.errors import InputError, did_you_mean

__all__ = [
    "AttackNorm",
    "ComputeSettings",
    "Config",
    "DataSettings",
    "DistributedSettings",
    "EvaluationSettings",
    "FinetuneSettings",
    "MethodSettings",
    "MinimizerSettings",
    "NetworkNorm",
    "NetworkSettings",
    "ObjectiveSettings",
    "PretrainSettings",
    "PruneSettings",
    "StageSettings",
    "TrackingSettings",
    "parse_config",
    "setting_names",
    "setting_values",
]


class Config(Settings):
    """Everything that a run depends on, but for the device.

    Attributes:
        title: what the run is called where runs are shown.
        seed: what all that depends on chance is a function of, with the stage, epoch and iteration.
    """

    title: str = ""
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    data: DataSettings = DataSettings()
    network: NetworkSettings = NetworkSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    method: MethodSettings = MethodSettings()
    minimizer: MinimizerSettings = MinimizerSettings()
    pretrain: PretrainSettings = PretrainSettings()
    prune: PruneSettings = PruneSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    tracking: TrackingSettings = TrackingSettings()
    distributed: DistributedSettings = DistributedSettings()
    compute: ComputeSettings = ComputeSettings()

    @model_validator(mode="before")
    @classmethod
    def _the_training_s_norm_is_not_said_twice(cls, settings: Any) -> Any:
        # Runs of before said it: they are of one setting with those that follow the training's.
        objective, evaluation = settings.get("objective", {}), settings.get("evaluation", {})
        if not (isinstance(objective, dict) and isinstance(evaluation, dict)):
            return settings
        said = evaluation.get("norm") == objective.get("norm", "Linf")
        return settings | {"evaluation": {k: v for k, v in evaluation.items() if k != "norm"}} if said else settings

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the parts that a run is made of: data set, network, method, objective, metrics."""
        names = (self.data.name, self.network.name, self.method.name, self.objective.name)
        return (*names, *self.tracking.metrics)

    def to_toml(self) -> str:
        """Write the resolved settings; what is None is left out, as TOML has no null."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def parse_config(settings: dict[str, Any], source: str) -> Config:
    """Check settings; ``source`` is named where one does not fit.

    Raises:
        InputError: naming the key, its value and what is allowed.
    """
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("function", "constrained")))
        if first["type"] == "extra_forbidden":
            raise InputError(f"{source}: {key}: no such setting; {_meant(key)}") from error
        raise InputError(f"{source}: {key}: {first['msg']} (got {_shown(first['input'])})") from error


def setting_names() -> list[str]:
    """Name all settings, those of a section by dotted key, in the order of a ``config.toml``."""
    names: list[str] = []
    for name, value in Config():
        names += [f"{name}.{field}" for field in type(value).model_fields] if isinstance(value, Settings) else [name]
    return names


def setting_values(key: str) -> list[str]:
    """List the values that a setting can have, by dotted key, as TOML writes them, where they are words."""
    section, _, name = key.rpartition(".")
    group = getattr(Config(), section, None) if section else Config()
    field = type(group).model_fields.get(name) if isinstance(group, Settings) else None
    return [] if field is None else _words(field.annotation)


def _words(annotation: Any) -> list[str]:
    if annotation is bool:
        return ["false", "true"]
    if get_origin(annotation) is Literal:
        return [value for value in get_args(annotation) if isinstance(value, str)]
    return [] if get_origin(annotation) is list else [word for part in get_args(annotation) for word in _words(part)]


def _meant(key: str) -> str:
    """Say which setting was meant: one of the section that is close, the same word elsewhere, or what there is."""
    section, _, word = key.rpartition(".")
    names = setting_names()
    beside = [name.rpartition(".")[2] for name in names if name.rpartition(".")[0] == section]
    same = [name for name in names if name.rpartition(".")[2] == word]
    if section and beside:
        return did_you_mean(key, [f"{section}.{name}" for name in beside], f"{section} has {', '.join(beside)}", 0.75)
    if same:
        return f"did you mean {' or '.join(same)}?"
    sections = dict.fromkeys(name.partition(".")[0] for name in names)
    return did_you_mean(key.partition(".")[0], sections, f"there are {', '.join(sections)}")


def _shown(value: Any) -> str:
    """Write a value as Python writes it, its middle left out where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of more digits than Python converts, lists within lists
        return "a value that is too long to be shown"
    return text if len(text) <= 200 else f"{text[:100]} ... {text[-50:]}"
