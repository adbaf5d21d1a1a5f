from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from huggingface_hub.utils._paths import filter_repo_objects
from safetensors.torch import load_file, save_file

from envs.backbones import load
from envs.backbones.folder import folder_sha256
from envs.backbones.latent import LatentBackbone
from envs.backbones.load import find_pipeline, load_backbone
from envs.backbones.pixel import PixelBackbone
from rewards.errors import InputError

CPU = torch.device("cpu")
COMMIT = "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"


def loaded(folder: Path) -> Any:
    return load_backbone(folder, name="a", device=CPU)


def in_half(folder: Path, parts: tuple[str, ...]) -> None:
    """Replaces weights by the fp16 variant's files."""
    for part in parts:
        (file,) = (folder / part).glob("*.safetensors")
        half = {name: tensor.half() for name, tensor in load_file(file).items()}
        save_file(half, file.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
        file.unlink()


def test_the_index_decides_what_is_loaded(stable_diffusion_folder: Path, ddpm_folder: Path) -> None:
    assert isinstance(loaded(stable_diffusion_folder), LatentBackbone)
    assert isinstance(loaded(ddpm_folder), PixelBackbone)


def test_the_layout_of_stable_diffusion_is_spelled_the_same(
    stable_diffusion_folder: Path, loaded_backbone: LatentBackbone
) -> None:
    captions = ["chest x-ray of a child, pneumonia", ""]
    expected = loaded_backbone.encode_captions(captions)
    torch.testing.assert_close(loaded(stable_diffusion_folder).encode_captions(captions), expected)


def test_weights_in_half_precision_are_computed_with_in_full(stable_diffusion_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(stable_diffusion_folder, tmp_path / "half"))
    in_half(folder, ("unet", "vae", "text_encoder"))
    half, full = loaded(folder), loaded(stable_diffusion_folder)
    assert {p.dtype for module in half.modules for p in module.parameters()} == {torch.float32}
    for a, b in zip(half.denoiser.parameters(), full.denoiser.parameters(), strict=True):
        assert torch.equal(a, b.half().float())


def test_only_what_is_read_is_hashed(ddpm_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ddpm_folder, tmp_path / "both"))
    before, weights = folder_sha256(folder), folder / "unet" / "diffusion_pytorch_model.safetensors"
    for other in ("fp16", "non_ema"):
        shutil.copy(weights, weights.with_suffix(f".{other}.safetensors"))
    assert folder_sha256(folder) == before == loaded(folder).sha256


def test_a_pipeline_whose_parts_have_no_folders(ddpm_folder: Path, tmp_path: Path) -> None:
    """As google/ddpm-cifar10-32 is laid out."""
    shutil.copy(ddpm_folder / "model_index.json", tmp_path)
    for part in ("unet", "scheduler"):
        for file in (ddpm_folder / part).iterdir():
            shutil.copy(file, tmp_path)
    flat, nested = loaded(tmp_path), loaded(ddpm_folder)
    noisy = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    states = flat.encode_captions(["", ""])
    assert torch.equal(flat.predict(noisy, 5, states), nested.predict(noisy, 5, states))
    before = folder_sha256(tmp_path)
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text() + " ")
    assert folder_sha256(tmp_path) != before


@pytest.mark.parametrize(
    ("index", "named"),
    [
        (
            {"_class_name": "StableDiffusionXLPipeline"},
            "is a StableDiffusionXLPipeline — give a StableDiffusionPipeline",
        ),
        ({}, "model_index.json names no pipeline"),
        ([], "model_index.json names no pipeline"),
    ],
)
def test_another_pipeline_is_refused(tmp_path: Path, index: Any, named: str) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=named):
        loaded(tmp_path)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"num_class_embeds": 4}, "class labels"),
        ({"in_channels": 4, "out_channels": 4}, "4 channels in and 4 out"),
        ({"out_channels": 6}, "3 channels in and 6 out"),
        ({"sample_size": (16, 32)}, "size"),
    ],
)
def test_a_denoiser_that_does_not_serve_is_refused(
    make_ddpm: Callable[..., Path], config: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        loaded(make_ddpm(**config))


def test_half_a_vocabulary_is_refused(stable_diffusion_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(stable_diffusion_folder, tmp_path / "broken"))
    (folder / "tokenizer" / "merges.txt").unlink()
    with pytest.raises(InputError, match=r"or tokenizer/vocab.json and tokenizer/merges.txt"):
        loaded(folder)


def test_a_hub_id_is_found_in_the_cache(ddpm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--ddpm"
    shutil.copytree(ddpm_folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for revision in (None, "main", COMMIT):
        folder = find_pipeline("someone/ddpm", revision=revision)
        assert loaded(folder).sha256 == folder_sha256(ddpm_folder)
    with pytest.raises(
        InputError, match=r"someone/ddpm at revision v2 is no folder and not in .* cache — .*local_files_o"
    ):
        find_pipeline("someone/ddpm", revision="v2")


def test_a_folder_stays_where_it_is(tmp_path: Path) -> None:
    assert find_pipeline(str(tmp_path)) == tmp_path


RESPONSE: Any = mock.Mock(headers={}, request=None)


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (
            GatedRepoError("403", response=RESPONSE),
            "is gated on the Hub — accept its terms at https://huggingface.co/a/b",
        ),
        (RepositoryNotFoundError("404", response=RESPONSE), "is no folder and not on the Hub — check the name"),
        (OSError("no route\nto host"), "cannot be downloaded: no route to host — mend the connection"),
    ],
)
def test_what_may_go_wrong_on_the_way_is_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception, named: str
) -> None:
    def fail(*args: Any, **kwargs: Any) -> str:
        raise error

    monkeypatch.setattr(load, "snapshot_download", fail)
    with pytest.raises(InputError) as caught:
        find_pipeline("a/b", local_files_only=False)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["/nowhere/at/all", "a/b/c", "spaces in it"])
def test_what_is_neither_folder_nor_id(path: str) -> None:
    with pytest.raises(InputError, match="is no folder"):
        find_pipeline(path)


# What stable-diffusion-v1-5/stable-diffusion-v1-5 has.
FILES = [
    "README.md", "model_index.json", "v1-5-pruned.ckpt", "v1-5-pruned.safetensors", "v1-5-pruned-emaonly.safetensors",
    "v1-inference.yaml", "feature_extractor/preprocessor_config.json", "safety_checker/config.json",
    "safety_checker/model.safetensors", "safety_checker/pytorch_model.bin", "scheduler/scheduler_config.json",
    "text_encoder/config.json", "text_encoder/model.safetensors", "text_encoder/model.fp16.safetensors",
    "text_encoder/pytorch_model.bin", "tokenizer/merges.txt", "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json", "tokenizer/vocab.json", "unet/config.json",
    "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.non_ema.safetensors",
    "vae/config.json", "vae/diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.safetensors",
]  # fmt: skip
WANTED = {name for name in FILES if name.count("/") and not name.startswith(("feature", "safety"))}
WANTED = {"model_index.json", *(name for name in WANTED if not name.endswith(".bin") and "non_ema" not in name)}


@pytest.mark.parametrize("only_half", [False, True])
def test_nothing_is_downloaded_that_is_not_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, only_half: bool
) -> None:
    there = [name for name in FILES if not only_half or ".fp16" in name or not name.endswith(".safetensors")]
    calls = []

    def download(path: str, **kwargs: Any) -> str:
        call = SimpleNamespace(**kwargs)
        calls.append(call)
        for name in filter_repo_objects(
            there, allow_patterns=call.allow_patterns, ignore_patterns=call.ignore_patterns
        ):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        return str(tmp_path)

    monkeypatch.setattr(load, "snapshot_download", download)
    assert find_pipeline("a/b", local_files_only=False, revision="v1") == tmp_path
    found = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()}
    assert found == {name for name in WANTED if name in there and (only_half or ".fp16" not in name)}
    assert {call.revision for call in calls} == {"v1"}
    assert len(calls) == 1 + only_half
