"""What is used of opacus, imported without what it does to logging.

It gives the root logger a handler on import (``logging.basicConfig`` in opacus.utils.module_utils, 1.6.0): every line
that this package logs would appear on stderr as well.
"""

from __future__ import annotations

import logging

_root = logging.getLogger()
_handlers, _level = list(_root.handlers), _root.level

from opacus.accountants import RDPAccountant  # noqa: E402
from opacus.accountants.utils import get_noise_multiplier  # noqa: E402
from opacus.grad_sample import GradSampleModule  # noqa: E402
from opacus.grad_sample.grad_sample_module import GradSampleHooks  # noqa: E402
from opacus.optimizers import DPOptimizer  # noqa: E402

_root.handlers[:] = _handlers
_root.setLevel(_level)

__all__ = ["DPOptimizer", "GradSampleHooks", "GradSampleModule", "RDPAccountant", "get_noise_multiplier"]
