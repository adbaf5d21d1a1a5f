"""What hooks do to the steps of a long fine-tune, and what of it is resumed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from agents.finetuning.checkpoints import Checkpoints
from agents.finetuning.settings import EMASettings, TrainingSettings
from agents.finetuning.trainer import State, StepRecord, Trainer, rows_of_step
from envs.backbones.latent import LatentBackbone
from envs.batches import TrainingSet
from envs.hooks import Batch, Hooks
from envs.learner import DivergedError
from envs.mitigations.agc import LossBank
from tests.agents.finetuning.conftest import FEW
from tests.agents.finetuning.test_trainer import fresh, same, steps, trainer


class Left(Hooks):
    """Leaves the samples of these rows, before the forward pass or after it."""

    def __init__(self, rows: Sequence[int], where: str) -> None:
        self._rows, self._where = torch.tensor(rows, dtype=torch.long), where
        self.moved = 0

    def admitted(self, batch: Batch) -> Tensor | None:
        return torch.isin(batch.rows, self._rows) if self._where == "admitted" else None

    def kept(self, losses: Tensor, batch: Batch) -> Tensor | None:
        return torch.isin(batch.rows, self._rows) if self._where == "kept" else None

    def stepped(self, parameters: Sequence[nn.Parameter]) -> None:
        self.moved += 1


class Drawing(Hooks):
    """Moves text states at random, and knows whether the learner is at work."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(7)
        self.learns = False

    @contextmanager
    def learning(self) -> Iterator[None]:
        self.learns = True
        yield
        self.learns = False

    def states(self, states: Tensor, rows: Tensor) -> Tensor:
        assert self.learns
        return states + torch.randn(states.shape, generator=self._generator)

    def state(self) -> dict[str, Tensor]:
        assert not self.learns
        return {"generator": self._generator.get_state()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self._generator.set_state(state["generator"])


def bank() -> LossBank:
    """Leaves out what is below the last loss at its timestep: half of what comes again."""
    return LossBank(FEW, 1.0, 0.0)


def one_step(
    backbone: LatentBackbone, data: TrainingSet, training: TrainingSettings, passes: int, *hooks: Hooks
) -> StepRecord:
    short = dataclasses.replace(training, steps=1, warmup=0, accumulation=passes)
    (record,) = steps(trainer(fresh(backbone), data, short, hooks=hooks), 1)
    assert record is not None
    return record


def resumed(
    make: Callable[[LatentBackbone], Trainer], backbone: LatentBackbone, folder: Path, number: int, stopped: int
) -> tuple[Trainer, Trainer]:
    """A trainer after so many steps, and another that was stopped on the way and went on in another process."""
    whole, half, rest = (make(fresh(backbone)) for _ in range(3))
    steps(whole, number)
    steps(half, stopped)
    Checkpoints(folder, 2).save(half.state())
    state = Checkpoints(folder, 2).last()
    assert state is not None
    rest.load(state)
    steps(rest, number - stopped)
    return whole, rest


def same_states(one: Trainer, other: Trainer) -> bool:
    return same(one.state().tensors, other.state().tensors) and one.state().numbers == other.state().numbers


def figures(trained: Trainer) -> dict[str, float]:
    return {name: value for hook in trained.hooks for name, value in hook.figures().items()}


@pytest.mark.parametrize("passes", [1, 2])
def test_hooks_that_do_nothing_are_plain_training_bit_by_bit(
    backbone: LatentBackbone, data: TrainingSet, training: TrainingSettings, ema: EMASettings, passes: int
) -> None:
    training = dataclasses.replace(training, accumulation=passes)
    plain, hooked = (trainer(fresh(backbone), data, training, ema, hooks=hooks) for hooks in ((), (Hooks(), Hooks())))
    assert steps(plain, 6) == steps(hooked, 6)
    assert same_states(plain, hooked)


def test_what_is_left_out_is_as_if_it_had_never_been_in_the_batch_in_any_number_of_passes(
    backbone: LatentBackbone, data: TrainingSet, training: TrainingSettings
) -> None:
    """Three samples of four: of two passes one sees two of them and the other one, of four one sees none."""
    rows = rows_of_step(0, 4, 5, 3).tolist()[:3]
    assert len(set(rows)) == 3
    plain = one_step(backbone, data, training, 1)
    found = [
        one_step(backbone, data, training, passes, Left(rows, where))
        for passes in (1, 2, 4)
        for where in ("admitted", "kept")
    ]
    assert found[0].gradient_norm is not None
    assert abs(found[0].loss - plain.loss) > 1e-3 * plain.loss
    for record in found[1:]:
        assert record.loss == pytest.approx(found[0].loss, rel=1e-5)
        assert record.gradient_norm == pytest.approx(found[0].gradient_norm, rel=1e-4)


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("where", ["admitted", "kept"])
def test_a_step_with_no_sample_left_changes_nothing(
    backbone: LatentBackbone, data: TrainingSet, training: TrainingSettings, ema: EMASettings, where: str, passes: int
) -> None:
    hook = Left(range(5), where)
    trained = trainer(backbone, data, dataclasses.replace(training, accumulation=passes), ema, hooks=[hook])
    steps(trained, 2)
    before = {name: tensor.clone() for name, tensor in trained.state().tensors.items()}
    numbers = trained.state().numbers
    assert any(name.startswith("optimizer/") for name in before)
    hook._rows = torch.tensor([], dtype=torch.long)
    assert steps(trained, 1) == [None]
    assert same(trained.state().tensors, before)
    assert trained.state().numbers == numbers | {"step": 3}
    assert hook.moved == 2
    hook._rows = torch.arange(5)
    steps(trained, 1)
    assert not same(trained.state().tensors, before), "and then it goes on"
    assert hook.moved == 3


@pytest.mark.parametrize("make", [bank, Drawing])
@pytest.mark.parametrize("stopped", [2, 5])
def test_what_hooks_remember_is_resumed(
    few: LatentBackbone,
    data: TrainingSet,
    training: TrainingSettings,
    ema: EMASettings,
    tmp_path: Path,
    make: Callable[[], Hooks],
    stopped: int,
) -> None:
    def trained(backbone: LatentBackbone) -> Trainer:
        return trainer(backbone, data, training, ema, hooks=[Hooks(), make()])

    whole, rest = resumed(trained, few, tmp_path, 6, stopped)
    assert same_states(whole, rest)
    assert figures(whole) == figures(rest)


def test_the_loss_bank_matters_and_so_does_what_it_remembers(
    few: LatentBackbone, data: TrainingSet, training: TrainingSettings
) -> None:
    whole, plain, half, rest = (
        trainer(fresh(few), data, training, hooks=hooks) for hooks in ([bank()], [], [bank()], [bank()])
    )
    steps(whole, 6)
    steps(plain, 6)
    assert 0 < figures(whole)["agc.skipped_share"] < 1
    assert not same(whole.snapshot(), plain.snapshot())
    steps(half, 3)
    kept = half.state()
    means = [name for name in kept.tensors if name.endswith("/means")]
    assert means == ["hooks/0/means"]
    rest.load(State(kept.tensors | {"hooks/0/means": torch.zeros(FEW, dtype=torch.float64)}, kept.numbers))
    steps(rest, 3)
    assert not same(rest.snapshot(), whole.snapshot()), "a bank that forgot would keep everything"


def test_a_model_that_diverged_is_not_left_out_in_silence(
    few: LatentBackbone, data: TrainingSet, training: TrainingSettings
) -> None:
    wild = dataclasses.replace(training, learning_rate=1e30, clip=None)
    with pytest.raises(DivergedError, match="the losses of a batch are not finite"):
        steps(trainer(few, data, wild, hooks=[bank()]), 6)
