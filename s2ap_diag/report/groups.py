"""Which runs stand beside which: cards of one data set and network, facets of one setting, arms in one order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from s2ap_core.config import Config
from s2ap_core.runs import course
from s2ap_core.runs.identity import flat
from s2ap_diag.comparison.arms import INCIDENTAL, seed_of
from s2ap_diag.comparison.metrics import Seed
from s2ap_diag.reading.results import Run

UNREAD = (*INCIDENTAL, "tracking", "evaluation", "distributed")
"""Settings in which the runs of one arm may differ."""

REFERENCE = "orig"
"""The arm that others are held against, where there is one."""

BySeed = Mapping[Seed, Run]


@dataclass(frozen=True)
class Facet:
    """The runs of one method and budget, by arm and seed."""

    title: str
    arms: Mapping[str, BySeed]


@dataclass(frozen=True)
class Group:
    """What one card shows: runs of one data set and network.

    Attributes:
        arms: all that its facets have; the first is the reference.
        marks: the numbers of its arms, which decide colours and markers.
        left_out: runs that say the same as another one: of two with all settings and the seed in common the first
            counts.
    """

    title: str
    arms: Sequence[str]
    facets: Sequence[Facet]
    left_out: Sequence[Run]
    marks: Mapping[str, int]

    @property
    def runs(self) -> list[Run]:
        """All its runs."""
        return [run for facet in self.facets for arm in facet.arms.values() for run in arm.values()]


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Sort pruned runs into groups.

    Of one data set and network, the settings that have several arms make one group, with a facet for each method and
    budget. Methods that have a single arm, as masks that take no search, make another, with the methods for arms,
    beside what the first group is held against.

    Raises:
        InputError: if a fold is not a number.
    """
    by_network: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if "prune" in run.results:
            by_network.setdefault((run.config.data.name, course.network(run.config)), []).append(run)
    groups = []
    for (data, network), found in by_network.items():
        title = f"{network} on {data}"
        placed = _place(sorted(found, key=lambda run: (run.config.method.name, -_kept(run))))
        arms: dict[str, set[str]] = {}
        for one in placed:
            arms.setdefault(one.setting, set()).add(one.arm)
        paired = [one for one in placed if len(arms[one.setting]) > 1]
        alone = [one for one in placed if len(arms[one.setting]) == 1]
        if paired:
            groups.append(_group(title, [(one.setting, one.arm, one.run) for one in paired]))
        if alone:
            budgets = {_budget(one.run) for one in alone}
            references = [one for one in paired if one.arm == REFERENCE and _budget(one.run) in budgets]
            beside = [(_budget(one.run), one.method, one.run) for one in (*references, *alone)]
            groups.append(_group(f"{title}: methods" if paired else title, beside))
    marks = {arm: mark for mark, arm in enumerate(dict.fromkeys(arm for group in groups for arm in group.arms))}
    return [replace(group, marks=marks) for group in groups]


@dataclass(frozen=True)
class Mark:
    """What decides the colour and marker of a run: the number of its arm.

    Attributes:
        own: its arm's in the first group that it is in.
        method: method and arm, where those of several methods stand beside each other, and their number.
    """

    own: int
    method: tuple[str, int]


def marks_of(groups: Sequence[Group]) -> dict[str, Mark]:
    """Give each run of the groups, by its path, its mark: a name has one colour and marker in the whole page.

    Where one method alone has an arm, the two together are marked as the arm is.
    """
    arms: dict[str, list[tuple[str, int]]] = {}
    methods: dict[str, str] = {}
    users: dict[str, set[str]] = {}
    for group in groups:
        for facet in group.facets:
            for arm, seeds in facet.arms.items():
                for run in seeds.values():
                    path, method = run.path.as_posix(), run.config.method.name
                    arms.setdefault(path, []).append((arm, group.marks[arm]))
                    methods[path] = method
                    users.setdefault(arms[path][0][0], set()).add(method)
    numbers = dict(groups[0].marks) if groups else {}
    found = {}
    for path, ours in arms.items():
        (first, own), method = ours[0], methods[path]
        name = next((arm for arm, _ in ours if arm == method or arm.startswith(f"{method} ")), f"{method} {first}")
        if name not in numbers and len(users[first]) == 1:
            numbers[name] = own
        found[path] = Mark(own, (name, numbers.setdefault(name, max(numbers.values()) + 1)))
    return found


def _group(title: str, placed: Sequence[tuple[str, str, Run]]) -> Group:
    facets: dict[str, dict[str, dict[Seed, Run]]] = {}
    left_out = []
    for facet, arm, run in placed:
        seeds = facets.setdefault(facet, {}).setdefault(arm, {})
        if seed_of(run) in seeds:
            left_out.append(run)
        else:
            seeds[seed_of(run)] = run
    counts: dict[str, int] = {}
    for arms in facets.values():
        for arm in arms:
            counts[arm] = counts.get(arm, 0) + 1
    order = sorted(counts, key=lambda arm: (not _is_reference(arm), -counts[arm], arm))
    ordered = [Facet(title, {arm: arms[arm] for arm in order if arm in arms}) for title, arms in facets.items()]
    return Group(title, order, ordered, left_out, {})


def _is_reference(arm: str) -> bool:
    return arm == REFERENCE or arm.endswith(f" {REFERENCE}")


def _kept(run: Run) -> float:
    return 1 / (course.flops_reduction(run.config) or 1 / run.config.method.keep)


def _setting(run: Run) -> str:
    return f"{run.config.method.name}, {_budget(run)}"


def _budget(run: Run) -> str:
    config = run.config
    reduction = course.flops_reduction(config)
    budget = f"keep {config.method.keep:g}" if reduction is None else f"{reduction:g}× fewer FLOPs"
    return budget if config.objective.name == "trades" else f"{budget}, {config.objective.name}"


@dataclass(frozen=True)
class _Placed:
    """A run, its method and budget, and its arm among the runs of its data set and network."""

    run: Run
    setting: str
    arm: str

    @property
    def method(self) -> str:
        """Method and arm; a mask that takes no search has no arm to speak of."""
        name = self.run.config.method.name
        return name if self.arm == REFERENCE and not course.search_epochs(self.run.config) else f"{name} {self.arm}"


def _place(runs: Sequence[Run]) -> list[_Placed]:
    """Name arms as the course does, with the settings by which runs of one arm and setting differ from each other.

    Of these a default is not said, but for the radius, which has no usual value.
    """
    defaults = flat(Config().model_dump(mode="json"))
    usual = {key: str(value) for key, value in defaults.items() if key != "minimizer.gamma"}
    described = [(run, _setting(run), course.arm(run.config), _settings(run)) for run in runs]
    alike: dict[tuple[str, str], list[Mapping[str, str]]] = {}
    for _, setting, arm, settings in described:
        alike.setdefault((arm, setting), []).append(settings)
    differing: dict[str, dict[str, None]] = {}
    for (arm, _), several in alike.items():
        for key in dict.fromkeys(key for settings in several for key in settings):
            if len({settings.get(key) for settings in several}) > 1:
                differing.setdefault(arm, {})[key] = None
    placed = []
    for run, setting, arm, settings in described:
        told = [key for key in differing.get(arm, ()) if settings.get(key, usual.get(key)) != usual.get(key)]
        said = [f"{key.rpartition('.')[2]} {settings[key]}" for key in told]
        placed.append(_Placed(run, setting, ", ".join([arm, *said])))
    return placed


def _settings(run: Run) -> dict[str, str]:
    """List the settings that may set an arm apart; a search without a perturbation reads none of its settings."""
    config = run.config
    unread = (*UNREAD, "method", "objective.name", *(("minimizer",) if config.minimizer.name == "none" else ()))
    return {
        key: str(value)
        for key, value in flat(config.model_dump(mode="json")).items()
        if not key.startswith(unread) or (key.startswith("method.") and key not in ("method.name", "method.keep"))
    }
