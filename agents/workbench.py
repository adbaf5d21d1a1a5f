"""From settings to the things that a search needs: tasks, features and evaluators."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from agents.lookup import find_table
from agents.memory import memory_lines
from agents.probing import invented_probes, seen_by_policy, trainable_counts
from agents.settings import BackboneSettings, DataSettings, EnvSettings, TrainSettings
from envs.backbones import EMBEDDED
from envs.backbones.base import Backbone, check_guidance
from envs.backbones.load import find_pipeline, load_backbone
from envs.datasets import NEAR_DUPLICATE_RADIUS, prepare_dataset
from envs.datasets.base import ImageSet, SplitDataset
from envs.evaluators.base import Evaluator
from envs.evaluators.finetune import FineTuneFactory
from envs.evaluators.pool import PoolEvaluator, cores
from envs.evaluators.synthetic import SyntheticEvaluator
from envs.evaluators.table import EvaluationTable
from envs.evaluators.tabular import TabularEvaluator
from envs.features import GROUP_FEATURES, TASK_FEATURES, feature_matrix, task_vector, with_mitigations
from envs.groups import LayerGroup, find_groups
from envs.methods import Method, find_method
from envs.mitigations import Mitigation, find_mitigations, prepared_images, toggle_name
from envs.task import SelectionTask
from rewards.errors import InputError
from rewards.objective import Objective
from rewards.suite import Suite

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Workbench:
    """One task, ready to search.

    Attributes:
        search: The task as the search sees it: judged by the held-out split.
        final: The same judged by the test split, with a seed and a sample size of its own.
        group_features: ``(g, f)``, columns named by ``group_feature_names``.
        task_features: ``(t,)``, entries named by ``task_feature_names``.
        objective: What the search maximises, not yet anchored.
        data: The ``data`` entry of ``result.json``.
        dataset: The images; None where none are looked at: with the synthetic and the tabular evaluator.
        make_factory: Builds, for a task, what works inside a worker; None where nothing is fine-tuned.
        make_evaluator: Builds the evaluator of a task; the caller closes it.
        memory: What an evaluation needs of its device, for people; nothing for the backbone that ships.
        table: Where evaluations are looked up, if they are.
        parallel: How many evaluations go on side by side.
        judged_by: What the final table stands on, for people: the test split, or the table that was searched.
    """

    search: SelectionTask
    final: SelectionTask
    group_features: NDArray[np.float32]
    group_feature_names: tuple[str, ...]
    task_features: NDArray[np.float32]
    task_feature_names: tuple[str, ...]
    objective: Objective
    data: dict[str, Any]
    dataset: SplitDataset | None
    make_factory: Callable[[SelectionTask], FineTuneFactory] | None
    make_evaluator: Callable[[SelectionTask], Evaluator]
    memory: tuple[str, ...] = ()
    judged_by: str = "the test split"
    table: EvaluationTable | None = None
    parallel: int = 1


def prepare(settings: TrainSettings) -> Workbench:
    """Loads and checks everything before anything is trained or written.

    Raises:
        InputError: If a name is unknown, data is missing or wrong, or settings do not fit together.
    """
    method = find_method(settings.method.name, settings.method.options)
    mitigations = find_mitigations(settings.mitigation)
    for metrics in (settings.reward.metrics, settings.reward.final_metrics):
        Suite(metrics)
    if settings.evaluator.name == "synthetic":
        if mitigations:
            named = ",".join(each.name for each in mitigations)
            raise InputError(
                f"mitigation={named} with evaluator=synthetic", "it trains nothing: set evaluator=finetune"
            )
        return _synthetic(settings, method)
    if settings.evaluator.name == "tabular":
        return _tabular(settings)
    if settings.evaluator.name != "finetune":
        raise InputError(
            f"evaluator={settings.evaluator.name} is no evaluator", "choose finetune, tabular or synthetic"
        )
    env = settings.env
    dataset = prepare_images(env, settings.data)
    backbone, path = prepare_backbone(settings.backbone, env)
    check_guidance(backbone, settings.inner.guidance_scale, "inner.guidance_scale")
    check_captions(backbone, dataset, env)
    groups = find_groups(backbone.denoiser, settings.groups.name)
    toggles = method.toggles(groups)
    devices = tuple(f"cuda:{i}" for i in range(torch.cuda.device_count())) or ("cpu",)
    threads = settings.evaluator.threads
    # To find out whether it fits, before anything is paid for. Nothing is lost on gradients: none are measured.
    attachment = method(backbone.denoiser, groups, calibration=lambda: ())
    check_mitigations(mitigations, backbone, dataset.train, settings)
    group_features, task_features = seen_by_policy(
        # Without the method's modules, and where gradients are cheap.
        prepare_backbone(settings.backbone, env, torch.device(devices[0]))[0],
        dataset,
        toggles,
        trainable_counts(attachment),
        settings.inner,
        threads=threads,
        seed=settings.seed,
    )
    torch.cuda.empty_cache()  # workers need the memory
    search = SelectionTask(
        env=env.name,
        split_sha256=dataset.split_sha256,
        backbone=settings.backbone.name,
        backbone_sha256=backbone.sha256,
        method=settings.method.name,
        scheme=settings.groups.name,
        groups=(*(toggle.name for toggle in toggles), *map(toggle_name, settings.mitigation_toggles)),
        inner=settings.inner,
        metrics=tuple(settings.reward.metrics),
        seed=settings.seed,
        options={
            "device": torch.device(devices[0]).type,
            "threads": threads,
            **method_options(method),
            **mitigation_options(mitigations, settings.mitigation_toggles),
            **backbone_options(settings.backbone),
        },
    )
    workers = settings.evaluator.workers
    if workers is None:
        workers = len(devices) if devices[0] != "cpu" else cores()
    memory: tuple[str, ...] = ()
    if settings.backbone.path:
        # The denoiser holds the method now: workers load another.
        learning = attachment.selected((True,) * len(toggles))
        memory = memory_lines(settings, backbone, learning, torch.device(devices[0]), -(-workers // len(devices)))

    def make_factory(task: SelectionTask) -> FineTuneFactory:
        return FineTuneFactory(task, dataset, path, devices, threads)

    def make_evaluator(task: SelectionTask) -> Evaluator:
        return PoolEvaluator(make_factory(task), workers, task.groups)

    return Workbench(
        search=search,
        final=_final(search, settings),
        group_features=with_mitigations(group_features, settings.mitigation_toggles),
        group_feature_names=(*GROUP_FEATURES, *(f"mitigation_{name}" for name in settings.mitigation_toggles)),
        task_features=task_features,
        task_feature_names=TASK_FEATURES,
        objective=_objective(settings),
        data=described(dataset),
        dataset=dataset,
        make_factory=make_factory,
        make_evaluator=make_evaluator,
        memory=memory,
        parallel=max(workers, 1),
    )


def prepare_images(env: EnvSettings, data: DataSettings) -> SplitDataset:
    """The data set, split and checked.

    Raises:
        InputError: If it is unknown, missing, or has too few images.
    """
    return prepare_dataset(
        env.name,
        root=Path(data.root) if data.root else None,
        size=env.size,
        train=env.train,
        heldout=env.heldout,
        test=env.test,
        seed=env.seed,
        radius=NEAR_DUPLICATE_RADIUS if env.radius is None else env.radius,
        options=env.options,
    )


def check_mitigations(
    mitigations: Sequence[Mitigation], backbone: Backbone, images: ImageSet, settings: TrainSettings
) -> None:
    """Finds out before anything is paid for whether they can act.

    Raises:
        InputError: If one cannot.
    """
    if mitigations and settings.horizon > 1:
        raise InputError(
            f"horizon={settings.horizon} with mitigation={','.join(each.name for each in mitigations)}",
            "mitigations act on a fine-tune of one phase: set horizon=1",
        )
    prepared_images(mitigations, backbone, images, settings.method.name, settings.seed)


def described(dataset: SplitDataset) -> dict[str, Any]:
    """The ``data`` entry of ``result.json``."""
    return {
        "source": dataset.card.source,
        "licence": dataset.card.licence,
        "train": len(dataset.train),
        "heldout": len(dataset.heldout),
        "test": len(dataset.test),
        "split_sha256": dataset.split_sha256,
        "synthetic": dataset.card.synthetic,
    }


def prepare_backbone(
    settings: BackboneSettings, env: EnvSettings, device: torch.device = _CPU
) -> tuple[Backbone, Path]:
    """The backbone, on the CPU if it is to be looked at only, and where workers find it.

    Raises:
        InputError: If it is not found or does not load, or makes images of another size than the data set's.
    """
    path = EMBEDDED
    if settings.path:
        path = find_pipeline(settings.path, local_files_only=settings.local_files_only, revision=settings.revision)
    backbone = load_backbone(path, name=settings.name, device=device, execution=settings.execution)
    if backbone.image_size != env.size:
        raise InputError(
            f"env.size={env.size} but the backbone makes {backbone.image_size} px images",
            f"set env.size={backbone.image_size}",
        )
    return backbone, path


def check_captions(backbone: Backbone, dataset: SplitDataset, env: EnvSettings) -> None:
    """Raises InputError if a backbone learns from captions and no training image has one, unless that was said."""
    if backbone.conditional and not any(dataset.train.captions) and "caption" not in env.options:
        raise InputError(
            f"env={env.name} has no captions, and backbone={backbone.name} learns from them",
            "name them in the column text of the data's table, or give one for all with +env.options.caption=<text>, "
            "where '' trains without",
        )


def _objective(settings: TrainSettings) -> Objective:
    reward = settings.reward
    return Objective(tuple(reward.quality), tuple(reward.privacy), reward.scalarization, reward.rho)


def _final(search: SelectionTask, settings: TrainSettings) -> SelectionTask:
    judge: Literal["test"] = "test"
    return dataclasses.replace(
        search,
        judge=judge,
        seed=search.seed + settings.final.seed_offset,
        metrics=tuple(settings.reward.final_metrics),
        inner=dataclasses.replace(search.inner, images=settings.final.images),
    )


def method_options(method: Method) -> dict[str, Any]:
    """Of a method, for a task's options; nothing without settings: the ids of such tasks are older than settings."""
    return {"method": dict(method.settings)} if method.settings else {}


def mitigation_options(mitigations: Sequence[Mitigation], toggled: Sequence[str] = ()) -> dict[str, Any]:
    """For a task's options; without any nothing, as for methods."""
    if not mitigations:
        return {}
    chosen = {each.name: dict(each.settings) for each in mitigations}
    return {"mitigations": chosen, **({"mitigation_toggles": list(toggled)} if toggled else {})}


def backbone_options(settings: BackboneSettings) -> dict[str, Any]:
    """For a task's options; by default nothing, as for methods."""
    options = settings.execution.options
    return {"backbone": options} if options else {}


def _tabular(settings: TrainSettings) -> Workbench:
    """Evaluations that were measured before: neither images nor a backbone are needed."""
    if settings.horizon > 1:
        raise InputError(f"horizon={settings.horizon}", "tables hold masks of one phase: set horizon=1")
    table = find_table(settings)
    return Workbench(
        search=table.task,
        final=dataclasses.replace(table.task),
        group_features=table.group_features,
        group_feature_names=table.group_feature_names,
        task_features=table.task_features,
        task_feature_names=table.task_feature_names,
        objective=_objective(settings),
        data=dict(table.card["data"]),
        dataset=None,
        make_factory=None,
        make_evaluator=lambda task: TabularEvaluator(table),
        judged_by="the table that was searched",
        table=table,
    )


def _synthetic(settings: TrainSettings, method: Method) -> Workbench:
    """Invented numbers in microseconds: to try the machinery, never to learn anything about a data set."""
    invented = ("kid", "membership")
    unknown = sorted({*settings.reward.quality, *settings.reward.privacy} - set(invented))
    if unknown:
        raise InputError(f"the synthetic evaluator has no {', '.join(unknown)}", f"reward {' and '.join(invented)}")
    blocks = [("input", 0), *[("down", i) for i in range(3)], ("mid", 2), *[("up", i) for i in (2, 1, 0)]]
    names = tuple(f"{kind} {level}" for kind, level in blocks)
    evaluator = SyntheticEvaluator(names, seed=settings.seed)
    groups = [
        LayerGroup(name, (), kind, i / (len(blocks) - 1), 0.5**level, 32 * 2**level, parameters)
        for i, (name, (kind, level), parameters) in enumerate(zip(names, blocks, evaluator.parameters, strict=True))
    ]
    group_probes, task_probes = invented_probes(evaluator.parameters, settings.seed)
    search = SelectionTask(
        env="synthetic",
        split_sha256="",
        backbone="synthetic",
        backbone_sha256="",
        method=settings.method.name,
        scheme="synthetic",
        groups=names,
        inner=settings.inner,
        metrics=invented,
        seed=settings.seed,
        options=method_options(method),
    )
    return Workbench(
        search=search,
        final=dataclasses.replace(_final(search, settings), metrics=search.metrics),
        group_features=feature_matrix(groups, group_probes, evaluator.parameters, sum(evaluator.parameters)),
        group_feature_names=GROUP_FEATURES,
        task_features=task_vector(settings.env.train, settings.inner, task_probes, 1.0),
        task_feature_names=TASK_FEATURES,
        objective=_objective(settings),
        data={
            "source": "none: closed-form numbers for trying the machinery",
            "licence": "none",
            "train": 0,
            "heldout": 0,
            "test": 0,
            "split_sha256": "",
            "synthetic": True,
        },
        dataset=None,
        make_factory=None,
        make_evaluator=lambda task: SyntheticEvaluator(names, seed=settings.seed),
    )
