"""Caption noise: captions that are never quite the same cannot become the key of one image."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from envs.backbones.base import Backbone
from envs.backbones.latent import LatentBackbone
from envs.datasets.base import ImageSet
from envs.hooks import Hooks
from envs.mitigations.base import Mitigation, Situation, Stage, Treatment, within
from envs.mitigations.caption_pull import check_captions
from envs.seeding import torch_generator
from rewards.errors import InputError

KINDS = ("add", "replace", "repeat")
"""What can be done to a caption, see `altered`."""

_WORD = re.compile(r"([a-z]{3,})</w>")
"""A token of a CLIP tokenizer that ends a word and is most likely one."""


@dataclass(frozen=True)
class CaptionNoise(Mitigation):
    """Random words in captions and Gaussian noise on their text states, both drawn anew at every step.

    Somepalli et al., NeurIPS 2023, arXiv 2305.20086, section 6, who try one at a time: ``probability=0`` leaves the
    words alone and ``std=0`` the states. Words that are not the caption's own come from the tokenizer's vocabulary, as
    in the published code. There "replace" stands for four random tokens in place of the whole caption; here words of
    it are replaced, as the paper describes it. A caption that is as long as the text encoder reads loses at its end
    what is put into it. Empty captions stay as they are, and so does the empty caption that guidance starts from.

    Attributes:
        kind: What happens to a caption that is altered: ``add``, ``replace``, ``repeat``, or ``any`` of the three, each
            as likely.
        probability: That a caption is altered, in [0, 1]; the paper has 0.1.
        words: That are added, replaced or repeated, 1 or more; the paper has 2.
        std: Of the noise, whatever the states' own scale; the paper has 0.1.
    """

    kind: str = "any"
    probability: float = 0.1
    words: int = 2
    std: float = 0.1
    name: ClassVar[str] = "caption_noise"
    stage: ClassVar[Stage] = Stage.BATCH
    source: ClassVar[str] = "Somepalli et al., NeurIPS 2023, arXiv 2305.20086"
    needs_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.kind not in (*KINDS, "any"):
            raise self.refused("kind", f"choose {', '.join(KINDS)} or any")
        if not within(self.probability, 0.0, 1.0):
            raise self.refused("probability", "set it to 0 to 1")
        if isinstance(self.words, bool) or not isinstance(self.words, int) or self.words < 1:
            raise self.refused("words", "set it to a whole number of 1 or more")
        if not within(self.std, 0.0, 1e6):
            raise self.refused("std", "set it to 0 or more: text states are of the order of 1")

    def check(self, backbone: Backbone, images: ImageSet, method: str) -> None:
        """See `Mitigation.check`."""
        super().check(backbone, images, method)
        check_captions(self.name, images)

    def treatment(self, situation: Situation) -> Treatment:
        """See `Mitigation.treatment`."""
        if self.probability == 0 and self.std == 0:
            return Treatment()
        vocabulary = words_of(situation.backbone) if self.probability > 0 else []
        return Treatment(hooks=(lambda number: NoisyCaptions(self, situation, vocabulary, number),))


class NoisyCaptions(Hooks):
    """See `CaptionNoise`.

    Args:
        settings: What is done.
        situation: Its images have the captions.
        vocabulary: Random words come from it.
        number: Of the learner: each draws its own.
    """

    def __init__(self, settings: CaptionNoise, situation: Situation, vocabulary: Sequence[str], number: int) -> None:
        self._settings, self._vocabulary = settings, vocabulary
        self._backbone, self._captions = situation.backbone, situation.images.captions
        self._words = torch_generator(situation.seed, settings.name, number, "words")
        self._noise = torch_generator(situation.seed, settings.name, number, "states")
        self._seen = self._altered = 0

    def states(self, states: Tensor, rows: Tensor) -> Tensor:
        """See `Hooks.states`."""
        settings = self._settings
        captions = [self._captions[row] for row in rows.tolist()]
        captioned = torch.tensor([bool(caption.strip()) for caption in captions], dtype=torch.bool)
        if settings.probability > 0:
            lots = torch.rand(len(rows), generator=self._words)
            chosen = torch.nonzero(captioned & (lots < settings.probability)).flatten().tolist()
            if chosen:
                new = [self._altered_one(captions[i]) for i in chosen]
                states = states.clone()
                # Hardly any of them comes twice, the vocabulary being what it is, so none is kept for later.
                states[chosen] = self._backbone.encode_captions(new).to(states.dtype)
            self._seen, self._altered = self._seen + int(captioned.sum()), self._altered + len(chosen)
        if settings.std > 0:
            noise = torch.randn(states.shape, generator=self._noise) * captioned[:, None, None]
            states = states + settings.std * noise.to(states)
        return states

    def figures(self) -> dict[str, float]:
        """See `Hooks.figures`."""
        return {"caption_noise.altered_share": self._altered / max(self._seen, 1)}

    def state(self) -> dict[str, Tensor]:
        """See `Hooks.state`."""
        counts = torch.tensor([self._seen, self._altered])
        return {"words": self._words.get_state(), "noise": self._noise.get_state(), "counts": counts}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """See `Hooks.load`."""
        self._words.set_state(state["words"])
        self._noise.set_state(state["noise"])
        self._seen, self._altered = state["counts"].tolist()

    def _altered_one(self, caption: str) -> str:
        settings = self._settings
        kind = settings.kind if settings.kind != "any" else KINDS[_below(len(KINDS), self._words)]
        return altered(caption, kind, settings.words, self._vocabulary, self._words)


def altered(caption: str, kind: str, words: int, vocabulary: Sequence[str], generator: torch.Generator) -> str:
    """A caption with random words in it.

    Args:
        caption: Of one word or more.
        kind: ``add`` puts random words at random places, ``repeat`` words of the caption, and ``replace`` puts random
            words in the place of as many of the caption, or of all if it has fewer.
        words: How many.
        vocabulary: Random words, at least one.
        generator: On the CPU; where and which.
    """
    own = caption.split()
    found = list(own)
    if kind == "replace":
        for place in torch.randperm(len(own), generator=generator)[:words].tolist():
            found[place] = vocabulary[_below(len(vocabulary), generator)]
        return " ".join(found)
    source = own if kind == "repeat" else vocabulary
    for _ in range(words):
        word = source[_below(len(source), generator)]
        found.insert(_below(len(found) + 1, generator), word)
    return " ".join(found)


def words_of(backbone: Backbone) -> list[str]:
    """Words that a backbone's tokenizer has a token for, in alphabetical order.

    Raises:
        InputError: If it has none.
    """
    tokens = backbone.tokenizer.get_vocab() if isinstance(backbone, LatentBackbone) else ()
    words = sorted({match[1] for token in tokens if (match := _WORD.fullmatch(token))})
    if not words:
        raise InputError(
            f"mitigation.caption_noise.probability draws words, and the tokenizer of {backbone.name} has none",
            "set it to 0, which leaves the noise on text states",
        )
    return words


def _below(n: int, generator: torch.Generator) -> int:
    """A whole number from 0 to n - 1."""
    return int(torch.randint(n, (1,), generator=generator))
