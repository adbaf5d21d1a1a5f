"""Text-image alignment: do generated images show what their prompts say?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics.utilities import dim_zero_cat

from rewards.calibration import bootstrap_mean
from rewards.errors import InputError
from rewards.estimate import Estimate
from rewards.features import Embedding, embedding
from rewards.metric import RewardMetric
from rewards.reference import Reference
from rewards.sample import Sample


def text_image_alignment(image_embeddings: Tensor, text_embeddings: Tensor) -> Estimate:
    """Mean cosine of the angle between each image and its own text, in [-1, 1].

    CLIPScore (Hessel et al. 2021, arXiv:2104.08718, section 3) without its factor of 2.5 and without cutting negative
    cosines to 0: neither changes which model is better, and the cut would bias the mean. The interval is the
    bootstrap's over images.

    Args:
        image_embeddings: Float ``(n, d)``, n > 1, in the space that images and texts share.
        text_embeddings: Float ``(n, d)``: of each image's prompt.

    Raises:
        ValueError: If the shapes differ.
    """
    if image_embeddings.shape != text_embeddings.shape:
        shapes = tuple(image_embeddings.shape), tuple(text_embeddings.shape)
        raise ValueError(f"each image has one text in the same space, got shapes {shapes}")
    return bootstrap_mean(functional.cosine_similarity(image_embeddings.double(), text_embeddings.double(), dim=1))


class TextImageAlignment(RewardMetric):
    """`text_image_alignment` of embeddings given in pieces; needs generated images and their prompts.

    It has no null: which captions the judge's images have is not known here.

    A model trained on photographs need not tell one X-ray's caption from another's: choose one trained on such images.

    Args:
        model: A folder or a name on the Hub of a ``CLIPModel`` of ``transformers`` in safetensors, with its tokenizer
            and image processor, see `rewards.features.TransformersVision` for the latter, for ``HF_HUB_OFFLINE`` and
            for options. Without one it is not measured.

    Raises:
        InputError: If it is no such model.
    """

    name = "text_image_alignment"
    higher_is_better = True
    needs = frozenset({"images", "prompts"})
    plot_lower_bound = -1.0
    plot_upper_bound = 1.0

    images: list[Tensor]
    texts: list[Tensor]

    def __init__(self, model: str = "") -> None:
        super().__init__()
        self.model = model
        if model:
            _towers(model)
        self.add_state("images", default=[], dist_reduce_fx="cat")
        self.add_state("texts", default=[], dist_reduce_fx="cat")

    def update(self, image_embeddings: Tensor, text_embeddings: Tensor) -> None:
        """Adds embeddings ``(n, d)`` of generated images and of their prompts."""
        self.images.append(image_embeddings)
        self.texts.append(text_embeddings)

    def compute(self) -> Tensor:
        """The value so far."""
        return torch.tensor(text_image_alignment(dim_zero_cat(self.images), dim_zero_cat(self.texts)).value)

    def shortfall(self, sample: Sample) -> str:
        """See `RewardMetric`."""
        if not self.model:
            return f"no model embeds both images and texts: set {self.name}.model to a CLIP model's folder or Hub name"
        prompts = len(_prompts(sample))
        if prompts != sample.size:
            return f"needs one prompt an image, got {prompts} prompts and {sample.size} images"
        return f"needs 2 generated images, got {sample.size}" if sample.size < 2 else ""

    def estimate(self, sample: Sample) -> Estimate:
        """See `RewardMetric`."""
        of_images, of_text = _towers(self.model)
        prompts = _prompts(sample)
        texts = {prompt: of_text(prompt) for prompt in dict.fromkeys(prompts)}
        return text_image_alignment(of_images(sample.images), torch.stack([texts[prompt] for prompt in prompts]))

    def null(self, reference: Reference) -> None:
        """See `RewardMetric`: there is none."""
        return None


def _prompts(sample: Sample) -> Sequence[str]:
    prompts = sample.evidence.prompts
    assert prompts is not None
    return prompts


@cache
def _towers(model: str) -> tuple[Embedding, Callable[[str], Tensor]]:
    """What embeds images and what embeds one text ``(d,)``, loaded once a process."""
    source = model.partition("?")[0]
    images, texts = embedding(f"transformers:{model}"), _Texts(source)
    if images.dimensions != texts.dimensions:
        raise _unsuited(source, f"images have {images.dimensions} features and texts {texts.dimensions}")
    return images, texts


class _Texts:
    """The projected text features of a CLIP model; one text at a time, so that none changes another's last bits."""

    def __init__(self, source: str) -> None:
        from transformers import AutoConfig, CLIPModel, CLIPTokenizer  # seconds, and only this metric needs them
        from transformers.utils import logging

        folder = Path(source).expanduser()
        local = folder.is_dir()
        name = str(folder) if local else source
        logging.disable_progress_bar()
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # it reports what is refused below
        try:
            kind = AutoConfig.from_pretrained(name, local_files_only=local, trust_remote_code=False).model_type
            if kind != "clip":
                raise _unsuited(source, f"it is of kind {kind}")
            self._tokenizer: Any = CLIPTokenizer.from_pretrained(name, local_files_only=local)
            pair: Any = CLIPModel
            model, report = pair.from_pretrained(
                name, use_safetensors=True, local_files_only=local, output_loading_info=True, dtype=torch.float32
            )
        except InputError:
            raise
        except Exception as error:  # of files, JSON, safetensors and network: they have no class in common
            raise _unsuited(source, " ".join(str(error).split())[:300]) from error
        finally:
            logging.set_verbosity(verbosity)
        if report["missing_keys"]:
            raise _unsuited(source, f"it lacks weights ({', '.join(sorted(report['missing_keys'])[:3])})")
        # A tokenizer without vocabulary loads, and spells nothing.
        known, embedded = len(self._tokenizer), model.config.text_config.vocab_size
        if not 2 < known <= embedded:
            raise _unsuited(source, f"its tokenizer has {known} tokens for {embedded} embeddings")
        del model.vision_model  # the embedding of images has its own
        self._model = model.eval()
        self._longest = model.config.text_config.max_position_embeddings
        self.dimensions = int(model.config.projection_dim)

    @torch.inference_mode()
    def __call__(self, text: str) -> Tensor:
        tokens = self._tokenizer([text], truncation=True, max_length=self._longest, return_tensors="pt")
        features: Tensor = self._model.get_text_features(**tokens).pooler_output[0]
        return features


def _unsuited(source: str, why: str) -> InputError:
    return InputError(
        f"text_image_alignment.model={source!r}: {why}",
        "give a folder or Hub name of a CLIPModel in safetensors; with HF_HUB_OFFLINE=1 one that is there already",
    )
