from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel, CLIPTokenizer

from rewards.errors import InputError
from rewards.evidence import Evidence
from rewards.metric import RewardMetric
from rewards.quality.text_image_alignment import TextImageAlignment, text_image_alignment
from rewards.reference import Reference
from rewards.sample import Sample

PROMPTS = ["a chest radiograph", "a skin lesion", "a chest radiograph", "normal, " * 40]
TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


def embeddings(n: int, d: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def images(n: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (n, 3, 40, 40), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def tokenizer() -> CLIPTokenizer:
    """Spells every text in bytes: there are no merges."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=32)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP model that nobody trained."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    words = tokenizer()
    text = {
        "vocab_size": len(words),
        "max_position_embeddings": 32,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    config = CLIPConfig(
        text_config=TINY | text, vision_config=TINY | {"image_size": 32, "patch_size": 8}, projection_dim=24
    )
    CLIPModel(config).eval().save_pretrained(folder)
    words.save_pretrained(folder)
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_size": 32,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.3, 0.2, 0.1],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def sample(generated: Tensor, prompts: list[str] | None) -> Sample:
    bare = Reference(
        train_images=images(2),
        judge_size=2,
        labels=torch.arange(2),
        train={},
        flipped_train={},
        judge={},
        judge_neighbors={},
        train_neighbors={},
        nulls={"text_image_alignment": None},
    )
    return Sample(bare, generated, {}, {}, Evidence(prompts=prompts))


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 20), seed=st.integers(0, 99))
def test_is_the_mean_cosine(n: int, seed: int) -> None:
    a, b = embeddings(n, seed=seed), embeddings(n, seed=seed + 100)
    x, y = a.double().numpy(), b.double().numpy()
    cosines = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    estimate = text_image_alignment(a, b)
    assert estimate.value == pytest.approx(cosines.mean())
    assert estimate.n == n
    assert estimate.low is not None
    assert estimate.high is not None
    assert -1 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_extremes_whatever_the_lengths() -> None:
    texts = embeddings(6)
    assert text_image_alignment(3 * texts, texts).value == pytest.approx(1)
    assert text_image_alignment(-texts, 0.1 * texts).value == pytest.approx(-1)
    assert text_image_alignment(torch.eye(4), torch.eye(4).roll(1, 0)).value == 0


@pytest.mark.parametrize("shape", [(5, 5), (6, 4)])
def test_images_and_texts_are_pairs(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="one text"):
        text_image_alignment(embeddings(6), torch.zeros(shape))


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(1, 9), seed=st.integers(0, 99))
def test_neither_order_nor_pieces_matter(cut: int, seed: int) -> None:
    a, b = embeddings(10, seed=seed), embeddings(10, seed=seed + 100)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(seed))
    metric = TextImageAlignment()
    metric.update(a[order][cut:], b[order][cut:])
    metric.update(a[order][:cut], b[order][:cut])
    assert float(metric.compute()) == pytest.approx(text_image_alignment(a, b).value, abs=1e-6)
    assert text_image_alignment(a[order], b[order]).low == pytest.approx(text_image_alignment(a, b).low)


def test_embeddings_are_the_models(clip: Path) -> None:
    generated = images(4)
    model = CLIPModel.from_pretrained(clip)
    words = tokenizer()(PROMPTS, padding="max_length", max_length=32, truncation=True, return_tensors="pt")
    pixels = torch.nn.functional.interpolate(generated.float(), (32, 32), mode="bicubic", antialias=True).clamp(0, 255)
    mean, std = torch.tensor([0.5, 0.4, 0.3])[:, None, None], torch.tensor([0.3, 0.2, 0.1])[:, None, None]
    with torch.inference_mode():
        output = model(**words, pixel_values=(pixels.round() / 255 - mean) / std)
    expected = float(torch.nn.functional.cosine_similarity(output.image_embeds, output.text_embeds).mean())
    measured = TextImageAlignment(str(clip)).measure(sample(generated, PROMPTS))
    assert measured.value == pytest.approx(expected, abs=2e-3)
    assert measured.null is None
    assert measured.n == 4
    order = torch.tensor([2, 0, 3, 1])
    shuffled = TextImageAlignment(str(clip)).measure(sample(generated[order], [PROMPTS[i] for i in order]))
    assert shuffled.value == pytest.approx(measured.value, abs=1e-12)
    swapped = TextImageAlignment(str(clip)).measure(sample(generated[order], PROMPTS))
    assert swapped.value != pytest.approx(measured.value, abs=1e-6)


def test_what_is_lacking_is_said(clip: Path) -> None:
    metric = TextImageAlignment(str(clip))
    notes = {
        "no image was generated": metric.measure(sample(images(0), [])),
        "there are no prompts": metric.measure(sample(images(4), None)),
        "needs one prompt an image, got 3 prompts and 4 images": metric.measure(sample(images(4), PROMPTS[:3])),
        "needs 2 generated images, got 1": metric.measure(sample(images(1), PROMPTS[:1])),
        "no model embeds both images and texts: set text_image_alignment.model to a CLIP model's folder or Hub name": (
            TextImageAlignment().measure(sample(images(4), PROMPTS))
        ),
    }
    for note, measured in notes.items():
        assert measured.note == note
        assert measured.value is None


def test_there_is_no_null_and_more_is_better() -> None:
    metric: RewardMetric = TextImageAlignment()
    assert metric.null(sample(images(0), None).reference) is None
    assert TextImageAlignment.higher_is_better is True


def without(clip: Path, folder: Path, *names: str) -> Path:
    shutil.copytree(clip, folder)
    for name in names:
        (folder / name).unlink()
    return folder


def test_another_or_an_incomplete_model_is_refused(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        TextImageAlignment(str(tmp_path / "nowhere"))
    words = [file.name for file in clip.iterdir() if "token" in file.name or file.name in ("vocab.json", "merges.txt")]
    with pytest.raises(InputError, match=r"text_image_alignment\.model="):
        TextImageAlignment(str(without(clip, tmp_path / "no tokenizer", *words)))
    with pytest.raises(InputError, match="preprocessor_config"):
        TextImageAlignment(str(without(clip, tmp_path / "no processor", "preprocessor_config.json")))
    pickled = without(clip, tmp_path / "pickled", "model.safetensors")
    torch.save(CLIPModel.from_pretrained(clip).state_dict(), pickled / "pytorch_model.bin")
    with pytest.raises(InputError, match="does not load"):
        TextImageAlignment(str(pickled))


def test_a_model_of_texts_alone_is_refused(tmp_path: Path) -> None:
    BertModel(BertConfig(**TINY, vocab_size=30)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="does not take images"):
        TextImageAlignment(f"{tmp_path}?size=32")
