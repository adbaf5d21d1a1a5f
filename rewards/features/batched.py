"""Any network as an embedding: the rules that all embeddings keep stand here once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor, nn

from rewards.errors import InputError
from rewards.features.images import check_images


class BatchedNetwork:
    """A network that sees a fixed number of images at once, so that nobody's company changes anybody's features.

    Sums round differently at other batch sizes, on some devices at other places of a batch as well, and a copy must be
    at distance 0. So a batch is filled up with black images, and before the first use it is tried on noise whether
    place and company matter to the last bit; where they do, images go one by one.

    The network runs on a GPU where there is one, without TF32; preparing stays on the CPU, the same on every machine.

    Args:
        name: See `Embedding`.
        network: In evaluation mode: what ``prepare`` returns to floating-point ``(n, d)``.
        prepare: uint8 ``(n, 3, h, w)`` to the network's input, each image by itself.
        settings: Everything besides the weights that decides the features, as text for the fingerprint.
        weights: SHA-256 of the weights' file. None: of the network's state.

    Raises:
        InputError: If the network does not run, returns another shape, or is random.
    """

    name: str
    dimensions: int

    _BATCHES = (16, 1)

    def __init__(
        self,
        name: str,
        network: nn.Module,
        prepare: Callable[[Tensor], Tensor],
        *,
        settings: str,
        weights: str | None = None,
    ) -> None:
        self.name = name
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = network.to(self._device)
        self._prepare = prepare
        self._settings, self._weights = settings, weights
        self._batch, self.dimensions = self._steady_batch()

    @cached_property
    def fingerprint(self) -> str:
        """See `Embedding`."""
        weights = self._weights or _state_sha256(self._network)
        return hashlib.sha256(f"{type(self).__name__}\0{self._settings}\0{weights}".encode()).hexdigest()

    def __call__(self, images: Tensor) -> Tensor:
        """See `Embedding`."""
        check_images(images)
        batches = (
            [self._features(part, self._batch) for part in torch.split(images, self._batch)] if len(images) else []
        )
        if any(batch.shape[1] != self.dimensions for batch in batches):
            widths = sorted({batch.shape[1] for batch in batches})
            raise InputError(f"embedding {self.name} returned features of {widths} dimensions", "use another network")
        features = torch.cat([torch.empty(0, self.dimensions), *batches])
        broken = int((~features.isfinite()).any(1).sum())
        if broken:
            raise InputError(
                f"embedding {self.name}: the features of {broken} of {len(images)} images are NaN or infinite",
                "check its preprocessing and weights, or choose another embedding",
            )
        return features

    def _steady_batch(self) -> tuple[int, int]:
        """The largest batch in which neither place nor company changes a bit, and the features' dimensions."""
        noise = torch.randint(0, 256, (max(self._BATCHES), 3, 64, 64), generator=torch.Generator().manual_seed(0))
        noise = noise.to(torch.uint8)
        for batch in self._BATCHES:
            images = noise[:batch]
            try:
                first = self._features(images, batch)
                moved = self._features(images.roll(1, 0), batch).roll(-1, 0)
                alone = self._features(images[:1], batch)
            except InputError:
                if batch == min(self._BATCHES):
                    raise
                continue
            if _same_bits(first, moved) and _same_bits(first[:1], alone):
                return batch, first.shape[1]
        raise InputError(
            f"embedding {self.name} gave one image two different features", "use a network without dropout or sampling"
        )

    @torch.inference_mode()
    def _features(self, images: Tensor, batch: int) -> Tensor:
        # Filled anew: the caller's memory layout would choose other kernels.
        padded = torch.zeros(batch, *images.shape[1:], dtype=torch.uint8)
        padded[: len(images)] = images
        try:
            with _exact(self._device):
                features = self._network(self._prepare(padded).to(self._device))
        except (RuntimeError, ValueError, TypeError, IndexError, torch.jit.Error) as error:
            raise InputError(
                f"embedding {self.name} does not run: {reason(error)}", "check its preprocessing and its device"
            ) from error
        if (
            not isinstance(features, Tensor)
            or not features.is_floating_point()
            or features.ndim != 2
            or len(features) != batch
            or not features.shape[1]
        ):
            found = f"{features.dtype} {tuple(features.shape)}" if isinstance(features, Tensor) else type(features)
            raise InputError(
                f"embedding {self.name} returned {found} for {batch} images", "use a network that returns float (n, d)"
            )
        return features[: len(images)].to("cpu", torch.float32)


def reason(error: BaseException) -> str:
    """An exception's message as one line of at most 300 characters; of an interpreter's trace the last line."""
    text = str(error).strip() or type(error).__name__
    if "Traceback" in text:
        text = text.splitlines()[-1]
    text = " ".join(text.split())
    return text if len(text) <= 300 else f"{text[:299]}…"


@contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """Float32 arithmetic that repeats itself, whatever the caller has set."""
    with torch.autocast(device.type, enabled=False):
        if device.type != "cuda":
            yield
            return
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


def _state_sha256(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
