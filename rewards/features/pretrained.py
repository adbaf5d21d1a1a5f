"""A vision model of ``transformers`` as an embedding."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rewards.errors import InputError
from rewards.features.batched import BatchedNetwork, reason
from rewards.features.preprocessing import Preprocessing

_CLASS_TOKENS = {"cls_token", "class_token", "class_embedding"}


class TransformersVision(BatchedNetwork):
    """ViT, DINOv2, CLIP, SigLIP, RAD-DINO, ResNet, ConvNeXt and their like, from safetensors alone.

    The features are the first there is of

    1. the projected image features of a model of images and texts (CLIP, SigLIP),
    2. ``pooler_output``, unless the weights of the pooler are not in the file (a model saved with a classifier),
    3. the class token of ``last_hidden_state``,
    4. its mean over tokens or positions.

    No code of a repository is run. A name on the Hub is downloaded at the first use, not with ``HF_HUB_OFFLINE=1``.
    Images are prepared as the model's ``preprocessor_config.json`` says, by Pillow, so that an installed torchvision
    changes nothing.

    Args:
        spec: A folder of ``save_pretrained`` or an identifier on the Hub; with options, ``folder?size=224``, images are
            prepared as `Preprocessing` says and no ``preprocessor_config.json`` is read.
        name: See `Embedding`.

    Raises:
        InputError: If it cannot be loaded, lacks weights, is no vision model, or an option is wrong.
    """

    def __init__(self, spec: str, name: str) -> None:
        path, _, options = spec.partition("?")
        folder = Path(path).expanduser()
        local = folder.is_dir()
        if not local and path.startswith(("/", ".", "~")):
            raise InputError(f"embedding {name}: there is no such folder", "name a folder or a model on the Hub")
        source = str(folder) if local else path
        prepare: Callable[[Tensor], Tensor]
        if options:
            prepare = Preprocessing.parse(options, name)
            prepared_by = repr(prepare)
        else:
            prepare = _Processor(source, name, local=local)
            prepared_by = prepare.settings
        model, missing = _loaded(source, name, local=local)
        features = _Features(model, pooled=not missing)
        # Where it was loaded from and by which release are no part of what it computes.
        config = {k: v for k, v in model.config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
        settings = f"{type(model).__name__} {features.kind} {json.dumps(config, sort_keys=True, default=str)}"
        super().__init__(name, features, prepare, settings=f"{settings} {prepared_by}")


class _Features(nn.Module):
    """Picks the features, see `TransformersVision`."""

    def __init__(self, model: Any, *, pooled: bool) -> None:
        super().__init__()
        self.model = model
        self.pooled = pooled
        self.of_pair = hasattr(model, "get_image_features")
        self.has_class_token = any(key.rpartition(".")[2] in _CLASS_TOKENS for key, _ in model.named_parameters())

    @property
    def kind(self) -> str:
        return f"pair={self.of_pair} pooled={self.pooled} token={self.has_class_token}"

    def forward(self, pixels: Tensor) -> object:
        if self.of_pair:
            projected = self.model.get_image_features(pixel_values=pixels)
            return projected if isinstance(projected, Tensor) else projected.pooler_output
        output = self.model(pixel_values=pixels)
        pooled = getattr(output, "pooler_output", None)
        if self.pooled and pooled is not None:
            return pooled.flatten(1)
        last = output.last_hidden_state
        if last.ndim == 4:
            return last.mean((2, 3))
        return last[:, 0] if self.has_class_token else last.mean(1)


class _Processor:
    """A model's own image processor, by Pillow: uint8 ``(n, 3, h, w)`` to the model's input."""

    def __init__(self, source: str, name: str, *, local: bool) -> None:
        from transformers import AutoImageProcessor  # seconds, and only this embedding needs it

        with _as_one_line(name, "check its preprocessor_config.json, or give ?size=...&mean=...&std=..."):
            self._processor = AutoImageProcessor.from_pretrained(
                source, backend="pil", trust_remote_code=False, local_files_only=local
            )
            self.settings: str = self._processor.to_json_string()

    def __call__(self, images: Tensor) -> Tensor:
        pixels: Tensor = self._processor(list(images), return_tensors="pt", input_data_format="channels_first")[
            "pixel_values"
        ]
        return pixels


def _loaded(source: str, name: str, *, local: bool) -> tuple[Any, set[str]]:
    """The model and the weights of a pooler that its file lacks."""
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it reports the classifier that is left out
    try:
        with _as_one_line(name, "give a vision model in safetensors; with HF_HUB_OFFLINE=1 one that is there already"):
            model, report = AutoModel.from_pretrained(
                source,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=local,
                output_loading_info=True,
                dtype=torch.float32,
            )
    finally:
        logging.set_verbosity(verbosity)
    if not hasattr(model, "get_image_features") and model.main_input_name != "pixel_values":
        raise InputError(f"embedding {name}: {type(model).__name__} does not take images", "give a vision model")
    missing = set(report["missing_keys"])
    poolers = {key for key in missing if "pooler" in key.split(".")}
    if missing - poolers:
        # They would be drawn at random.
        lacking = ", ".join(sorted(missing - poolers)[:3])
        raise InputError(f"embedding {name} lacks weights ({lacking})", "give a complete model")
    return model.eval(), poolers


@contextmanager
def _as_one_line(name: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of files, JSON, safetensors and network: they have no class in common
        raise InputError(f"embedding {name} does not load: {reason(error)}", remedy) from error
