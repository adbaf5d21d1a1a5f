from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from rewards.errors import InputError
from rewards.features import TransformersVision, embedding

TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
}
TEXT: dict[str, Any] = {**TINY, "vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
CONVOLUTIONS: dict[str, Any] = {"hidden_sizes": [8, 16], "depths": [1, 1]}
PLAIN: dict[str, Any] = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 32, "width": 32},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.3, 0.2, 0.1],
}


def made(kind: str) -> Any:
    torch.manual_seed(0)
    text = {key: value for key, value in TEXT.items() if key != "image_size"}
    vision = {**TINY, "patch_size": 8}
    models: dict[str, Callable[[], Any]] = {
        "vit": lambda: transformers.ViTModel(transformers.ViTConfig(**vision)),
        "vit with a classifier": lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**vision)),
        "vit without a pooler": lambda: transformers.ViTModel(
            transformers.ViTConfig(**vision), add_pooling_layer=False
        ),
        "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**vision)),
        "clip vision": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**vision)),
        "clip": lambda: transformers.CLIPModel(
            transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
        ),
        "resnet": lambda: transformers.ResNetModel(
            transformers.ResNetConfig(**CONVOLUTIONS, embedding_size=8, layer_type="basic")
        ),
        "convnext": lambda: transformers.ConvNextModel(transformers.ConvNextConfig(**CONVOLUTIONS, num_stages=2)),
        "mae": lambda: transformers.ViTMAEModel(transformers.ViTMAEConfig(**vision)),
        "bert": lambda: transformers.BertModel(transformers.BertConfig(**text)),
    }
    return models[kind]().eval()


def saved(folder: Path, kind: str = "vit", processor: dict[str, Any] | None = PLAIN) -> Path:
    made(kind).save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


PICKS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "vit": lambda model, x: model(x).pooler_output,
    "vit with a classifier": lambda model, x: model.vit(x).last_hidden_state[:, 0],
    "vit without a pooler": lambda model, x: model(x).last_hidden_state[:, 0],
    "dinov2": lambda model, x: model(x).pooler_output,
    "clip vision": lambda model, x: model(x).pooler_output,
    "clip": lambda model, x: model.visual_projection(model.vision_model(x).pooler_output),
    "resnet": lambda model, x: model(x).last_hidden_state.mean((2, 3)),
    "convnext": lambda model, x: model(x).pooler_output,
}


@pytest.mark.parametrize("kind", PICKS)
def test_the_features_are_the_models(kind: str, tmp_path: Path, random_images: Callable[..., Tensor]) -> None:
    images = random_images(19, size=32)
    name = f"transformers:{saved(tmp_path, kind)}"
    embed = embedding(name)
    mean, std = torch.tensor([0.5, 0.4, 0.3])[:, None, None], torch.tensor([0.3, 0.2, 0.1])[:, None, None]
    with torch.inference_mode():
        expected = PICKS[kind](made(kind), (images.float() / 255 - mean) / std)
    features = embed(images)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    assert features.shape == (19, embed.dimensions)
    assert embed.name == name
    order = torch.randperm(19, generator=torch.Generator().manual_seed(2))
    assert torch.equal(embed(images[order]), features[order])
    assert torch.equal(torch.cat([embed(images[:3]), embed(images[3:4]), embed(images[4:])]), features)


@pytest.mark.parametrize(
    "processor",
    [
        PLAIN,
        {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 40}, "crop_size": 32},
        {"feature_extractor_type": "CLIPFeatureExtractor", "size": 32, "crop_size": 32, "resample": 3},
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 32}, "crop_pct": 0.875},
    ],
    ids=["size", "shortest edge and crop", "of an old release", "crop share"],
)
def test_images_of_any_size_are_prepared_as_the_model_says(
    processor: dict[str, Any], tmp_path: Path, random_images: Callable[..., Tensor]
) -> None:
    embed = embedding(f"transformers:{saved(tmp_path, processor=processor)}")
    for images in (random_images(2, size=64), random_images(2, size=16), random_images(2)[:, :, :40]):
        assert embed(images).shape == (2, 32)
    images = torch.tensor([0, 10, 250], dtype=torch.uint8)[:, None, None, None].expand(3, 3, 48, 48)
    dark, _, light = embed(images)
    assert embed(images[1:2]).isfinite().all()
    assert not torch.equal(dark, light)


def test_bytes_are_cast_before_the_mean_is_subtracted(tmp_path: Path) -> None:
    embed = embedding(f"transformers:{saved(tmp_path)}")
    pixels = embed._prepare(torch.full((1, 3, 32, 32), 10, dtype=torch.uint8))  # type: ignore[attr-defined]
    expected = (10 / 255 - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.3, 0.2, 0.1])
    torch.testing.assert_close(pixels[0, :, 5, 5], expected)


def test_options_stand_in_for_a_missing_processor(tmp_path: Path, random_images: Callable[..., Tensor]) -> None:
    folder = saved(tmp_path, processor=None)
    with pytest.raises(InputError, match=r"does not load: .* — check its preprocessor_config.json, or give"):
        embedding(f"transformers:{folder}")
    embed = embedding(f"transformers:{folder}?size=32&mean=0.5,0.5,0.5&std=0.5,0.5,0.5")
    images = random_images(3, size=32)
    with torch.inference_mode():
        expected = made("vit")(images.float() / 127.5 - 1).pooler_output
    torch.testing.assert_close(embed(images), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match=r"does not run: .*32"):
        embedding(f"transformers:{folder}?size=48")


def test_the_fingerprint_follows_weights_and_preprocessing_but_not_the_folder(tmp_path: Path) -> None:
    def fingerprint(folder: Path, options: str = "") -> str:
        return TransformersVision(f"{folder}{options}", "any").fingerprint

    first = saved(tmp_path / "first")
    assert fingerprint(first) == fingerprint(saved(tmp_path / "second"))
    other = saved(tmp_path / "processor", processor={**PLAIN, "resample": 3})
    trained = saved(tmp_path / "weights")
    weights = load_file(trained / "model.safetensors")
    weights["pooler.dense.bias"] = weights["pooler.dense.bias"] + 1e-3
    save_file(weights, trained / "model.safetensors", metadata={"format": "pt"})
    config = saved(tmp_path / "config")
    changed = json.loads((config / "config.json").read_text()) | {"hidden_act": "relu"}
    (config / "config.json").write_text(json.dumps(changed))
    prints = [fingerprint(folder) for folder in (first, other, trained, config)]
    assert len({*prints, fingerprint(first, "?size=32")}) == 5


def test_a_random_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gave one image two different features"):
        embedding(f"transformers:{saved(tmp_path, 'mae')}")


def test_a_model_of_texts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="BertModel does not take images"):
        embedding(f"transformers:{saved(tmp_path, 'bert')}")


def test_missing_weights_are_not_drawn(tmp_path: Path) -> None:
    weights = load_file(saved(tmp_path) / "model.safetensors")
    lacking = {key: value for key, value in weights.items() if not key.startswith("layernorm")}
    assert len(lacking) < len(weights)
    save_file(lacking, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks weights \(layernorm.bias, layernorm.weight\)"):
        embedding(f"transformers:{tmp_path}")


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"\x80\x04broken"])
def test_a_damaged_file_is_one_line(file: str, content: bytes, tmp_path: Path) -> None:
    (saved(tmp_path) / file).write_bytes(content)
    with pytest.raises(InputError, match="does not load") as caught:
        embedding(f"transformers:{tmp_path}")
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_never_read(tmp_path: Path, malicious: tuple[object, Path]) -> None:
    trap, created = malicious
    folder = saved(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    for write in (lambda file: torch.save({"w": trap}, file), lambda file: file.write_bytes(pickle.dumps(trap))):
        for file in ("pytorch_model.bin", "model.pt", "adapter_model.bin"):
            write(folder / file)
        with pytest.raises(InputError, match="does not load"):
            embedding(f"transformers:{folder}")
    (folder / "model.safetensors").write_bytes(pickle.dumps(trap))
    with pytest.raises(InputError, match="does not load"):
        embedding(f"transformers:{folder}")
    assert not created.exists()


def test_code_of_a_repository_is_never_run(tmp_path: Path) -> None:
    created, folder = tmp_path / "created", saved(tmp_path / "model")
    (folder / "modeling.py").write_text(f"import pathlib\npathlib.Path({str(created)!r}).touch()\nclass Model: ...\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "unheard of", "auto_map": {"AutoConfig": "modeling.Model", "AutoModel": "modeling.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    processor = PLAIN | {"image_processor_type": "Own", "auto_map": {"AutoImageProcessor": "modeling.Model"}}
    with pytest.raises(InputError, match="does not load"):
        embedding(f"transformers:{folder}?size=32")
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    with pytest.raises(InputError, match="does not load"):
        embedding(f"transformers:{folder}")
    assert not created.exists()


@pytest.mark.parametrize("name", ["/nowhere/model", "./model", "~/no such model"])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(name: str) -> None:
    with pytest.raises(InputError, match="there is no such folder"):
        embedding(f"transformers:{name}")


def test_offline_a_model_of_the_hub_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for options in ("", "?size=224"):
        with pytest.raises(InputError, match="does not load") as caught:
            embedding(f"transformers:nobody/nothing{options}")
        assert "\n" not in str(caught.value)
