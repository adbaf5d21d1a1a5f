"""Features that are computed once an image."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import tempfile
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from rewards.errors import InputError
from rewards.features.images import check_images
from rewards.features.protocol import Embedding


class CachedEmbedding:
    """An embedding that looks an image's features up by content before it computes them, the same to the last bit.

    The key covers the embedding's fingerprint, the image, and what rounding depends on: the release of torch, the
    device and the number of threads.

    In memory the features used last are kept: 4 x d bytes an image. With a folder they are kept there as well, one
    safetensors file an image, readable by the owner alone, written whole or not at all. A damaged file is computed
    again. **Features of private images are private**: images can be recognised, and partly reconstructed, from them;
    hence no folder unless one is asked for.

    Args:
        embedding: What computes the features.
        folder: Where they outlive the process, created if missing. None: nowhere.
        max_images: At most so many stay in memory, at least 1.

    Raises:
        InputError: If the folder cannot be created or ``max_images`` is below 1.
    """

    def __init__(self, embedding: Embedding, folder: Path | None = None, max_images: int = 4096) -> None:
        if max_images < 1:
            raise InputError(f"max_images={max_images}", "keep at least 1 image's features in memory")
        self._embedding = embedding
        self._folder = folder
        self._max_images = max_images
        self._memory: OrderedDict[str, Tensor] = OrderedDict()
        if folder is not None:
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise _unwritable(folder, error) from error

    @property
    def name(self) -> str:
        """See `Embedding`."""
        return self._embedding.name

    @property
    def dimensions(self) -> int:
        """See `Embedding`."""
        return self._embedding.dimensions

    @property
    def fingerprint(self) -> str:
        """See `Embedding`."""
        return self._embedding.fingerprint

    def __call__(self, images: Tensor) -> Tensor:
        """See `Embedding`.

        Raises:
            InputError: If the embedding raises it, or a file cannot be written.
            ValueError: If ``images`` has another shape or type.
        """
        check_images(images)
        keys = self._keys(images)
        found: dict[str, Tensor] = {}
        missing: dict[str, int] = {}
        for index, key in enumerate(keys):
            if key in found or key in missing:
                continue
            features = self._known(key)
            if features is None:
                missing[key] = index
            else:
                found[key] = features
        if missing:
            computed = self._embedding(images[list(missing.values())])
            for key, row in zip(missing, computed, strict=True):
                found[key] = row.clone()  # a view would keep the whole batch in memory
                self._write(key, found[key])
        for key in keys:
            self._remember(key, found[key])
        return torch.stack([found[key] for key in keys]) if keys else torch.empty(0, self.dimensions)

    def _keys(self, images: Tensor) -> list[str]:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()
        machine = f"{torch.__version__} {platform.machine()} {device} {torch.get_num_threads()}"
        prefix = hashlib.sha256(f"{self.fingerprint} {machine} {tuple(images.shape[1:])}\0".encode())
        keys = []
        for image in images.cpu():
            digest = prefix.copy()
            digest.update(image.contiguous().numpy().data)
            keys.append(digest.hexdigest())
        return keys

    def _known(self, key: str) -> Tensor | None:
        features = self._memory.get(key)
        return self._read(key) if features is None else features

    def _remember(self, key: str, features: Tensor) -> None:
        self._memory[key] = features
        self._memory.move_to_end(key)
        if len(self._memory) > self._max_images:
            self._memory.popitem(last=False)

    def _file(self, folder: Path, key: str) -> Path:
        return folder / key[:2] / f"{key}.safetensors"

    def _read(self, key: str) -> Tensor | None:
        if self._folder is None:
            return None
        try:
            stored = load(self._file(self._folder, key).read_bytes())
            features, checksum = stored["features"], stored["sha256"]
        except (OSError, KeyError, ValueError, SafetensorError):
            return None
        if features.dtype != torch.float32 or features.shape != (self.dimensions,):
            return None
        return features if torch.equal(checksum, _checksum(key, features)) else None

    def _write(self, key: str, features: Tensor) -> None:
        if self._folder is None:
            return
        file = self._file(self._folder, key)
        content = save({"features": features, "sha256": _checksum(key, features)})
        try:
            file.parent.mkdir(mode=0o700, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=file.parent, suffix=".part")  # readable by the owner alone
            try:
                with os.fdopen(handle, "wb") as stream:
                    stream.write(content)
                Path(temporary).replace(file)
            except BaseException:
                with contextlib.suppress(OSError):
                    Path(temporary).unlink()
                raise
        except OSError as error:
            raise _unwritable(file, error) from error


def _checksum(key: str, features: Tensor) -> Tensor:
    """uint8 ``(32,)``. Covers the key, so that a file under another's name is noticed."""
    digest = hashlib.sha256(key.encode() + features.numpy().tobytes()).digest()
    return torch.frombuffer(bytearray(digest), dtype=torch.uint8)


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"features cannot be kept in {path}: {error.strerror}", "name a writable folder with space, or none"
    )
