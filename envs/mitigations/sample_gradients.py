"""Gradients of single samples by opacus, in the layers of our methods too."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from envs.backbones.base import Backbone
from envs.batches import TrainingSet, draw_batch
from envs.hooks import Batch
from envs.losses import sample_losses
from envs.methods import Attachment
from envs.mitigations.opacus_parts import GradSampleHooks, GradSampleModule
from envs.seeding import torch_generator
from rewards.errors import InputError

Sampler = Callable[[Any, list[Tensor], Tensor], dict[nn.Parameter, Tensor]]
_HARMLESS = "Full backward hook is firing"
"""torch's warning at layers whose input needs no gradient, where opacus asks only for that of the output."""
_CLOSE = 1e-3
"""What rounding may make of the difference, as a share of a sample's whole gradient."""
_LINE = 200
_LEFT_BEHIND = {
    *("activations", "max_batch_len", "autograd_grad_sample_hooks"),  # in modules
    *("grad_sample", "summed_grad", "_forward_counter", "_current_grad_sample"),  # in parameters
}


class _Unwatched(nn.Module):
    """A layer's computation without the layer's own hooks, opacus' among them."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layer.forward(x)
        return output


def tuner_gradients(layer: nn.Module, activations: list[Tensor], slopes: Tensor) -> dict[nn.Parameter, Tensor]:
    """Of the adapters of a peft layer, by differentiating its whole forward pass for each sample.

    opacus looks at the modules inside, which a layer that computes with a weight of its own making never calls.

    Args:
        layer: Of peft, or one of our tuners.
        activations: Its input, ``(n, ...)``, as the only one.
        slopes: Gradient of the samples' losses by its output, ``(n, ...)``.
    """
    learning = {f"layer.{name}": p for name, p in layer.named_parameters() if p.requires_grad}
    unwatched = _Unwatched(layer)

    def projected(values: dict[str, Tensor], x: Tensor, slope: Tensor) -> Tensor:
        output: Tensor = functional_call(unwatched, values, (x[None],))
        return (output * slope[None]).sum()

    values = {name: p.detach() for name, p in learning.items()}
    found = vmap(grad(projected), in_dims=(None, 0, 0))(values, activations[0], slopes)
    return {p: found[name] for name, p in learning.items()}


class SampleGradients(GradSampleHooks):  # type: ignore[misc]
    """opacus' hooks, with peft's layers watched as a whole.

    Unlike its own they work in evaluation mode too, in which denoisers are fine-tuned here.
    """

    GRAD_SAMPLERS: ClassVar[dict[type[nn.Module], Sampler]] = dict(GradSampleModule.GRAD_SAMPLERS)

    def iterate_submodules(self, module: nn.Module) -> Iterator[nn.Module]:
        """The modules to watch: those that have parameters that learn, and of peft's the outermost."""
        if isinstance(module, BaseTunerLayer):
            if any(parameter.requires_grad for parameter in module.parameters()):
                self.GRAD_SAMPLERS.setdefault(type(module), tuner_gradients)
                yield module
            return
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            yield module
            if type(module) not in self.GRAD_SAMPLERS:
                return  # it is differentiated as a whole
        for child in module.children():
            yield from self.iterate_submodules(child)

    def capture_activations_hook(self, module: nn.Module, inputs: Sequence[Tensor], output: Tensor) -> None:
        """Remembers a layer's input, without opacus' condition of training mode."""
        if not (self.hooks_enabled and torch.is_grad_enabled()):
            return
        if not hasattr(module, "activations"):
            module.activations = []  # type: ignore[assignment]
        kept: Any = module.activations
        # opacus 1.6.0 unfolds a convolution's input by strides that only a contiguous one has: without an error,
        # the gradients of a channels_last input are wrong.
        kept.append([tensor.detach().contiguous() for tensor in inputs])
        for parameter in module.parameters():
            if parameter.requires_grad:
                counted: Any = parameter
                counted._forward_counter += 1


@contextmanager
def sample_gradients(denoiser: nn.Module) -> Iterator[None]:
    """Inside, a backward pass of a mean over samples leaves ``grad_sample``, ``(n, *shape)``, in what learns.

    Raises:
        NotImplementedError: From opacus, for layers with buffers.
    """
    hooks: SampleGradients | None = None
    try:
        hooks = SampleGradients(denoiser)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", _HARMLESS)
            yield
    finally:
        if hooks is not None:
            hooks.remove_hooks()
        # Also what a forward pass without a backward pass, or an error in between, left behind.
        for holder in (*denoiser.modules(), *denoiser.parameters()):
            for name in _LEFT_BEHIND & vars(holder).keys():
                delattr(holder, name)


def check_sample_gradients(backbone: Backbone, attachment: Attachment, method: str, data: TrainingSet) -> None:
    """Compares opacus with autograd, which is given one sample at a time.

    Args:
        backbone: With the method attached.
        attachment: All of whose parameters are tried, together.
        method: Its name, for the error.
        data: Of which two images are looked at.

    Raises:
        InputError: If opacus cannot take the gradients of single samples, or takes others.
    """
    parameters = {name: p for toggle in attachment.parameters for name, p in toggle.items()}
    batch = draw_batch(
        data,
        torch.arange(min(2, len(data.latents))),
        torch_generator(0, "sample gradients"),
        caption_dropout=0.0,
        timesteps=backbone.timesteps,
    )
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    try:
        wrong = _difference(backbone, parameters, batch)
    except (RuntimeError, NotImplementedError, ValueError) as error:  # whatever a layer does not go with
        wrong = " ".join(str(error).split())[:_LINE]
    finally:
        for parameter in parameters.values():
            parameter.requires_grad_(False)
            parameter.grad = None
    if wrong:
        raise InputError(
            f"mitigation=dp_sgd with method={method}, which opacus cannot take gradients of single images of: {wrong}",
            "choose another method",
        )


def _difference(backbone: Backbone, parameters: Mapping[str, nn.Parameter], batch: Batch) -> str:
    """What is wrong with opacus' gradients; empty if nothing is."""
    with sample_gradients(backbone.denoiser):
        sample_losses(backbone, batch).mean().backward()
        found: dict[str, Any] = {name: getattr(p, "grad_sample", None) for name, p in parameters.items()}
    if missing := [name for name, gradient in found.items() if gradient is None]:
        return f"{missing[0]} gets none"
    for i in range(len(batch.t)):
        alone = sample_losses(backbone, batch.take(torch.arange(len(batch.t)) == i)).mean()
        expected = torch.autograd.grad(alone, list(parameters.values()), allow_unused=True, materialize_grads=True)
        errors = [(found[name][i] - gradient).norm() for name, gradient in zip(parameters, expected, strict=True)]
        whole = torch.stack([gradient.norm() for gradient in expected]).norm()
        worst = max(range(len(errors)), key=lambda j: float(errors[j]))
        if not float(errors[worst]) <= _CLOSE * float(whole):
            return f"that of {list(parameters)[worst]} differs from autograd's"
    return ""
