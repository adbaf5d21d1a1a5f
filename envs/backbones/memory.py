"""How much memory a fine-tune and its sampling need, worked out before it starts, and what would need less."""

from __future__ import annotations

import copy
import dataclasses
import resource
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from envs.backbones.base import Backbone, rows_at_once
from envs.backbones.execution import Execution

GIB = 2**30


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that one evaluation holds on its device; libraries' workspaces come on top.

    Attributes:
        weights: Of the whole backbone, and of the denoiser once more: what it is restored from.
        gradients: Of everything that may learn.
        optimizer: AdamW's two moments of the same.
        activations: The most that a training step's forward and backward pass hold besides.
        sampling: The most that a pass of the sampler holds.
        batch_size: Of the training step.
        execution: How it computes.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    sampling: int
    batch_size: int
    execution: Execution

    @property
    def total(self) -> int:
        """Bytes at the worst moment: training or sampling, which come one after the other."""
        return self.weights + max(self.gradients + self.optimizer + self.activations, self.sampling)

    def __str__(self) -> str:
        training = ("weights", "gradients", "optimizer", "activations")
        parts = ", ".join(f"{name} {getattr(self, name) / GIB:.2f}" for name in training)
        return f"{parts}, sampling {self.sampling / GIB:.2f}: {self.total / GIB:.2f} GiB"


def plan_memory(
    backbone: Backbone,
    learning: Mapping[str, Tensor],
    *,
    batch_size: int,
    sampled: int,
    guided: bool,
    execution: Execution,
) -> MemoryPlan:
    """What a fine-tune and its sampling need, worked out on tensors that have shapes and no content.

    Args:
        backbone: With a method attached.
        learning: Everything that the method can train, by name.
        batch_size: Of a training step.
        sampled: Images that are sampled.
        guided: Whether each pass of the sampler is made with and without its caption.
        execution: How it would compute.
    """
    denoiser = backbone.denoiser
    trained = sum(_bytes(parameter) for parameter in learning.values())
    everything = sum(_bytes(p) for module in backbone.modules for p in (*module.parameters(), *module.buffers()))
    copied = sum(_bytes(p) for p in (*denoiser.parameters(), *denoiser.buffers()))
    rows = min(sampled, rows_at_once(backbone.latent_shape[-1]))
    return MemoryPlan(
        weights=everything + copied,
        gradients=trained,
        optimizer=2 * trained,
        activations=_peak(backbone, denoiser, learning, batch_size, execution),
        # Without the method: what it adds to a pass without gradients is small.
        sampling=_peak(backbone, None, {}, rows * (2 if guided else 1), execution),
        batch_size=batch_size,
        execution=execution,
    )


def fitting(plan: MemoryPlan, available: int, replan: Callable[[int, Execution], MemoryPlan]) -> str:
    """The settings nearest to a plan's own that fit in so many bytes, as a user would give them.

    Args:
        plan: That does not fit.
        available: Bytes.
        replan: Of a batch size and an execution, the plan.

    Returns:
        Empty if none does.
    """
    for candidate in _alternatives(plan.batch_size, plan.execution):
        if replan(*candidate).total <= available:
            return _as_settings(plan, *candidate)
    return ""


def available_memory(device: torch.device) -> int:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has held so far: of tensors on a GPU, of anything on the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


def smaller(execution: Execution, batch_size: int, *, training: bool) -> str:
    """The next setting that needs less memory, as a user would give it.

    Args:
        execution: As it was.
        batch_size: As it was.
        training: Whether it was training that needed too much: a batch's size helps there only.
    """
    if training and batch_size > 1:
        return f"inner.batch_size={batch_size // 2}"
    if training and not execution.gradient_checkpointing:
        return "backbone.gradient_checkpointing=true"
    if execution.precision == "fp32":
        return "backbone.precision=bf16"
    return "evaluator.workers=1, or take a method that trains less or a device with more memory"


def _alternatives(batch_size: int, execution: Execution) -> Iterator[tuple[int, Execution]]:
    """The exact ones first: those that change no number, then smaller batches, then a lower precision."""
    for precision in dict.fromkeys((execution.precision, "bf16")):
        size = batch_size
        while size:
            for checkpointing in dict.fromkeys((execution.gradient_checkpointing, True)):
                yield (
                    size,
                    dataclasses.replace(execution, precision=precision, gradient_checkpointing=checkpointing),
                )
            size //= 2


def _as_settings(plan: MemoryPlan, batch_size: int, execution: Execution) -> str:
    before = plan.execution.options
    changed = {f"backbone.{name}": value for name, value in execution.options.items() if before.get(name) != value}
    if batch_size != plan.batch_size:
        changed["inner.batch_size"] = batch_size
    return " ".join(f"{name}={str(value).lower()}" for name, value in changed.items())


def _peak(
    backbone: Backbone, denoiser: nn.Module | None, learning: Mapping[str, Tensor], rows: int, execution: Execution
) -> int:
    """Bytes at the worst moment of a pass over ``rows`` latents, backwards too if something learns."""
    tokens = backbone.encode_captions([""]).shape[1:]
    model: Any
    with FakeTensorMode(allow_non_fake_inputs=True):
        if denoiser is None:
            model = type(backbone.denoiser).from_config(backbone.denoiser.config)
        else:
            model = copy.deepcopy(denoiser, _without_content(denoiser))
        model.requires_grad_(False)
        for name, parameter in model.named_parameters():
            if name in learning:
                parameter.requires_grad_(True)
                # Gradients have a line of their own.
                parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
        if execution.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        else:
            model.disable_gradient_checkpointing()
        with torch.set_grad_enabled(bool(learning)), _Held() as held:
            noisy, t = torch.empty(rows, *backbone.latent_shape), torch.zeros(rows, dtype=torch.long)
            states = torch.empty(rows, *tokens)
            # Of what device does not matter for sizes, and autocast exists for the CPU everywhere.
            with execution.autocast(torch.device("cpu")):
                output = backbone._output(model, noisy, t, states)
            if learning:
                output.float().square().mean().backward()
    return int(held.peak)


class _Held(TorchDispatchMode):
    """Counts the bytes of tensors that operations have made and that are still alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.peak: int = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        inputs = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self._known | inputs:
                    self._known.add(storage._cdata)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _free(self, storage: int, size: int) -> None:
        self._known.discard(storage)
        self.now -= size


def _without_content(module: nn.Module) -> dict[int, Any]:
    """A memo for `copy.deepcopy` under which each tensor becomes one of its shape and type, and nothing is copied."""
    tensors = [leaf for part in module.modules() for leaf in tree_leaves(vars(part)) if isinstance(leaf, Tensor)]
    return {id(tensor): _fake(tensor) for tensor in tensors}


def _fake(tensor: Tensor) -> Tensor:
    fake = torch.empty(tensor.shape, dtype=tensor.dtype)
    return nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
