"""The composed configuration as checked, typed values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue
from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from agents.practice.settings import PracticeSettings
from agents.ranges import Count, Rate, Weight
from envs.backbones.execution import Execution, Precision
from envs.task import InnerBudget
from rewards.errors import InputError
from rewards.objective import Scalarization


@dataclass(frozen=True)
class DataSettings:
    """Where data sets are looked for first; see `envs.datasets.load_dataset` for the other places."""

    root: str | None = None


@dataclass(frozen=True)
class EnvSettings:
    """A data set and how it is split.

    Attributes:
        name: Of the data set.
        size: Height and width in pixels.
        train: Private images to fine-tune on.
        heldout: Images that a search compares with.
        test: Images that the final table compares with.
        seed: Of the split.
        radius: Near-duplicate radius, L2 / sqrt(CHW) on a [0, 1] scale; None for the default.
        options: Of the data set's loader.
    """

    name: str
    size: Count
    train: Count
    heldout: Count
    test: Count
    seed: Annotated[int, Field(ge=0)] = 0
    radius: Weight | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BackboneSettings:
    """A diffusion model, and how it computes.

    Attributes:
        name: For people.
        path: A pipeline's folder or Hub id; None for the one that ships.
        local_files_only: False lets a Hub id be downloaded.
        revision: Branch, tag or commit of a Hub id; None for its main branch.
        precision: Of the denoiser's forward and backward pass; see `Execution`, as for the next two.
        gradient_checkpointing: Slower, with less memory.
        compile: Trains through ``torch.compile``.
    """

    name: str
    path: str | None = None
    local_files_only: bool = True
    revision: str | None = None
    precision: Precision = "fp32"
    gradient_checkpointing: bool = False
    compile: bool = False

    @property
    def execution(self) -> Execution:
        """How it computes."""
        return Execution(self.precision, self.gradient_checkpointing, self.compile)


@dataclass(frozen=True)
class NamedSettings:
    """A choice that has no settings of its own yet."""

    name: str


@dataclass(frozen=True)
class MethodSettings:
    """An adaptation method.

    Attributes:
        name: Of the method.
        options: Its settings, see the method's class in `envs.methods`; what is missing has its default.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluatorSettings:
    """How evaluations are computed.

    Attributes:
        name: ``finetune``, ``tabular`` or ``synthetic``.
        workers: Processes; None for one a GPU, or one a core without one. 0 evaluates in the main process.
        threads: Of torch in each. More workers of one thread beat fewer of more; another number rounds differently, so
            it is part of a task's identity.
        table: Of ``tabular``: the file; None for a known one that fits the task.
    """

    name: str
    workers: Annotated[int, Field(ge=0)] | None = None
    threads: Count = 1
    table: str | None = None


@dataclass(frozen=True)
class RewardSettings:
    """What is measured and how it becomes a number.

    Attributes:
        metrics: Everything measured in each evaluation of the search.
        final_metrics: Everything measured on the test split in the end.
        quality: Metrics of the quality axis.
        privacy: Metrics of the privacy axis.
        scalarization: ``chebyshev`` or ``weighted_sum``.
        rho: Weight of the augmentation term of the Chebyshev scalarization.
        failure_penalty: Reward of a failed evaluation.
    """

    metrics: list[str]
    final_metrics: list[str]
    quality: list[str]
    privacy: list[str]
    scalarization: Scalarization = "chebyshev"
    rho: float = 0.05
    failure_penalty: FiniteFloat = -1.0


@dataclass(frozen=True)
class PPOSettings:
    """PPO that learns from real evaluations alone, sized for tens of them rather than millions of steps.

    Attributes:
        name: ``ppo``.
        rollout: Episodes between two updates, all evaluated at once.
        learning_rate: Adam's.
        epochs: Passes over a rollout.
        clip_range: PPO's epsilon.
        entropy: Coefficient of the entropy bonus.
        value: Coefficient of the value loss.
        max_episodes: Episodes after which a search ends even if the budget is not spent, as a multiple of the budget: a
            policy that has made up its mind asks for the same masks again and again.
        width: Of the policy's hidden layers.
    """

    name: Literal["ppo"]
    rollout: int
    learning_rate: Rate
    epochs: Count
    clip_range: Rate
    entropy: Weight
    value: Weight
    max_episodes: Count
    width: Count


@dataclass(frozen=True)
class DynaPPOSettings:
    """PPO that practises in a model of the evaluations; see `agents.search.dyna_ppo.DynaPPO`.

    Attributes:
        name: ``dyna_ppo``.
        practice: Of the policy that comes out, in the model of its task.
        elsewhere: Of a policy that learns on other tasks first.
        round_updates: Of the policy after each round of real evaluations.
        draws: Of the belief for each decision on what to measure.
        proposals: Masks that the policy proposes in each round, where there are too many to list them all.
    """

    name: Literal["dyna_ppo"]
    practice: PracticeSettings
    elsewhere: PracticeSettings
    round_updates: Annotated[int, Field(ge=0)]
    draws: Count
    proposals: Count


@dataclass(frozen=True)
class BudgetSettings:
    """How many distinct inner fine-tunes the search may pay for (the two anchors come on top)."""

    evaluations: int


@dataclass(frozen=True)
class StoreSettings:
    """Where evaluations are kept, for every run to use."""

    path: str


@dataclass(frozen=True)
class FinalSettings:
    """The last table: the chosen mask and both anchors, fine-tuned anew and measured on the test split.

    Attributes:
        images: Generated for each.
        seed_offset: Added to the run's seed, so that the choice is not judged by the luck it was chosen by.
    """

    images: Count
    seed_offset: Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class ReportSettings:
    """``images`` shows private images in figures and TensorBoard; by default they stay out of every file."""

    images: bool = False


@dataclass(frozen=True)
class TrainSettings:
    """Everything ``python -m agents.train`` is told.

    Attributes:
        frozen: Names of toggles that stay off, whatever an agent would choose.
        mitigation: Settings of each mitigation that fine-tunes are given, by name; see `envs.mitigations`.
        mitigation_toggles: Names of those among them that a mask may leave out.
    """

    env: EnvSettings
    data: DataSettings
    backbone: BackboneSettings
    method: MethodSettings
    groups: NamedSettings
    inner: InnerBudget
    evaluator: EvaluatorSettings
    reward: RewardSettings
    agent: Annotated[PPOSettings | DynaPPOSettings, Field(discriminator="name")]
    budget: BudgetSettings
    store: StoreSettings
    final: FinalSettings
    report: ReportSettings
    preference: float
    horizon: int
    seed: int
    run_dir: str
    frozen: list[str] = field(default_factory=list)
    mitigation: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    mitigation_toggles: list[str] = field(default_factory=list)
    resume: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.preference <= 1:
            raise InputError(f"preference={self.preference}", "set it between 0 (quality only) and 1 (privacy only)")
        if self.horizon < 1 or self.horizon > self.inner.steps:
            raise InputError(f"horizon={self.horizon}", f"set it between 1 and inner.steps={self.inner.steps}")
        if self.seed < 0:
            raise InputError(f"seed={self.seed}", "set it to 0 or more")
        if self.budget.evaluations < 1:
            raise InputError(f"budget.evaluations={self.budget.evaluations}", "set it to 1 or more")
        if isinstance(self.agent, PPOSettings):
            self._check_rollout(self.agent.rollout)
        elif self.horizon > 1:
            raise InputError(f"horizon={self.horizon}", "agent=dyna_ppo chooses one mask: set horizon=1, or agent=ppo")
        if unknown := [name for name in self.mitigation_toggles if name not in self.mitigation]:
            raise InputError(f"mitigation_toggles={unknown}", f"choose among the mitigations: {list(self.mitigation)}")
        unmeasured = sorted({*self.reward.quality, *self.reward.privacy} - set(self.reward.metrics))
        if unmeasured:
            raise InputError(f"the reward uses {', '.join(unmeasured)}", "add it to reward.metrics")

    def _check_rollout(self, rollout: int) -> None:
        if rollout < 2:
            raise InputError(f"agent.rollout={rollout}", "set it to 2 or more: PPO normalises advantages")
        if self.budget.evaluations < rollout:
            raise InputError(
                f"budget.evaluations={self.budget.evaluations} fills no rollout of {rollout} episodes",
                "raise budget.evaluations or lower agent.rollout",
            )


Settings = TypeVar("Settings")


def read_settings(config: DictConfig, schema: type[Settings]) -> Settings:
    """Checks names, types and ranges of a composed configuration.

    Pydantic does it rather than OmegaConf's structured configs, which cannot fill a frozen dataclass.

    Raises:
        InputError: With the key and what is wrong with it.
    """
    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        return TypeAdapter(schema).validate_python(values, extra="forbid")
    except MissingMandatoryValue as error:
        raise InputError(f"{error.full_key} is not given", "give it on the command line as key=value") from error
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, InputError):
            raise cause from error
        key, given = _key_and_value(first)
        raise InputError(f"{key}={given!r}: {first['msg']}", "see --cfg job for every key") from error


def _key_and_value(error: ErrorDetails) -> tuple[str, Any]:
    """The configuration's key: in a choice between classes, Pydantic also names the class by its ``name``."""
    place = list(error["loc"])
    if error["type"] == "union_tag_invalid":
        return ".".join(map(str, [*place, "name"])), error["ctx"]["tag"]
    if place[0] == "agent" and len(place) > 1:
        del place[1]
    return ".".join(map(str, place)), error["input"]
