"""A chest X-ray classifier of ``torchxrayvision`` as an embedding."""

from __future__ import annotations

import importlib
import sys
import warnings
from contextlib import redirect_stdout
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from rewards.errors import InputError
from rewards.features.batched import BatchedNetwork, reason
from rewards.features.images import resized

_SIZE = 224


class XRayVision(BatchedNetwork):
    """The pooled features of a DenseNet trained on chest X-rays.

    The library downloads weights at their first use, into ``~/.torchxrayvision``, and unpickles them: choosing this
    embedding is trusting its publisher. Names that are not the library's own are refused, files in particular.
    Images become gray (the mean of the channels), 224 x 224 and -1024...1024, as its networks were trained.

    Args:
        weights: For example ``densenet121-res224-all``.
        name: See `Embedding`.

    Raises:
        InputError: If the library cannot be imported, knows no such weights, or cannot load or download them.
    """

    def __init__(self, weights: str, name: str) -> None:
        models = _library(name).models
        known = [known for known in models.model_urls if known.startswith("densenet")]
        if weights not in known:
            raise InputError(
                f"embedding {name}: torchxrayvision has no such DenseNet", f"choose among {', '.join(known)}"
            )
        try:
            with warnings.catch_warnings(), redirect_stdout(sys.stderr):  # it prints its download
                model = models.DenseNet(weights=weights)
        except Exception as error:  # of network, files and pickles: they have no class in common
            raise InputError(
                f"embedding {name} does not load: {reason(error)}",
                "its first use downloads weights: go online, or delete a partial file in ~/.torchxrayvision",
            ) from error
        super().__init__(name, _Features(model.eval()), _prepared, settings=f"gray mean, {_SIZE}, {weights}")


class _Features(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> object:
        return self.model.features2(x)


def _prepared(images: Tensor) -> Tensor:
    return (resized(images, _SIZE).mean(1, keepdim=True) / 255 * 2 - 1) * 1024


def _library(name: str) -> ModuleType:
    try:
        with warnings.catch_warnings():  # some of its releases silence every warning of the process
            return importlib.import_module("torchxrayvision")
    except (ImportError, RuntimeError, OSError) as error:  # the latter two: a torchvision of another torch
        raise InputError(
            f"embedding {name} needs torchxrayvision: {reason(error)}", "pip install 'memcontrol[xrv]'"
        ) from error
