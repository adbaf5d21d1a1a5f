"""A TorchScript file as an embedding, SSCD's published one for example."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from rewards.errors import InputError
from rewards.features.batched import BatchedNetwork, reason
from rewards.features.preprocessing import Preprocessing

SUFFIXES = (".pt", ".pth", ".ts", ".torchscript", ".pt2")
"""Names of files that need no ``torchscript:`` in front."""

_SAVE = "save it with torch.jit.save(torch.jit.trace(model.eval(), example), path)"
_TOUCHES_FILES = re.compile(rb"\b(?:save|from_file|load_tensor)\b|getattr\s*\([^)]*\\")
"""Operations that write or read files, and an escaped name that could hide one."""


class TorchScript(BatchedNetwork):
    """A network saved by ``torch.jit.save`` that maps float32 ``(n, 3, h, w)`` to ``(n, d)``.

    Nothing of a file is unpickled by Python: plain checkpoints are refused, and so are ``torch.export`` programs,
    whose loader unpickles whatever a file contains. TorchScript itself is a program, run by an interpreter of its own:
    files that name operations on files are refused, but take one only from those you trust.

    Args:
        spec: ``path`` or ``path?size=224&mean=0.485,0.456,0.406&std=0.229,0.224,0.225``, see `Preprocessing`.
        name: See `Embedding`.

    Raises:
        InputError: If the file cannot be read or is not TorchScript, an option is wrong, or the network does not map
            images to float ``(n, d)``.
    """

    def __init__(self, spec: str, name: str) -> None:
        path, _, options = spec.partition("?")
        preprocessing = Preprocessing.parse(options, name)
        try:
            content = Path(path).expanduser().read_bytes()
        except OSError as error:
            raise InputError(
                f"embedding {name}: {error.strerror}", "name a TorchScript file that can be read"
            ) from error
        _refuse_other_files(content, name)
        super().__init__(
            name,
            _Interpreted(_loaded(content, name)),
            preprocessing,
            settings=repr(preprocessing),
            weights=hashlib.sha256(content).hexdigest(),
        )


class _Interpreted(nn.Module):
    """Without the optimiser, which rewrites a graph after its first runs and so changes the last bits."""

    def __init__(self, script: nn.Module) -> None:
        super().__init__()
        self.script = script

    def forward(self, x: Tensor) -> object:
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            return self.script(x)


def _refuse_other_files(content: bytes, name: str) -> None:
    if content.startswith(b"\x80"):
        raise _checkpoint(name)
    try:
        # Torch's own reader: another one could see other records of a crafted archive than the loader does.
        reader = torch._C.PyTorchFileReader(io.BytesIO(content))
        records = set(reader.get_all_records())
        code = [reader.get_record(record) for record in sorted(records) if record.endswith(".py")]
    except (RuntimeError, ValueError) as error:
        raise InputError(f"embedding {name} is not a TorchScript file, or a damaged one", _SAVE) from error
    if "archive_format" in records:
        raise InputError(f"embedding {name} is a torch.export program, whose loader would run its pickles", _SAVE)
    if "constants.pkl" not in records:
        raise _checkpoint(name)
    if any(_TOUCHES_FILES.search(source) for source in code):
        raise InputError(f"embedding {name} names operations that write or read files", "use a network without them")


def _checkpoint(name: str) -> InputError:
    return InputError(
        f"embedding {name} is a pickled checkpoint, which cannot run without its architecture",
        f"load it into its model where it was made, and {_SAVE}",
    )


def _loaded(content: bytes, name: str) -> nn.Module:
    try:
        with warnings.catch_warnings():
            # Deprecated in favour of torch.export, but the only one of torch's formats that can be loaded safely.
            warnings.simplefilter("ignore", DeprecationWarning)
            script: nn.Module = torch.jit.load(io.BytesIO(content), map_location="cpu")
        return script.eval()
    except Exception as error:  # of C++, in whatever class it arrives
        raise InputError(f"embedding {name} does not load: {reason(error)}", _SAVE) from error
