"""A pipeline's folder on disk: which pipeline it is, what it lacks, its hash, and its models in full."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from rewards.errors import InputError

# Loading a pipeline draws three bars of its own through the progress of a run.
diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()

INDEX = "model_index.json"
FLAT_WEIGHTS = "diffusion_pytorch_model*.safetensors"
"""Weights of a pipeline whose one model lies beside its index, as google/ddpm-cifar10-32 has it."""
_PARTS = ("vae", "text_encoder", "unet", "tokenizer", "scheduler")
_PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth")


def pipeline_class(folder: Path, path: str | Path) -> str:
    """The name of the diffusers class that the folder's index names; ``path`` is what a user called the folder.

    Raises:
        InputError: If there is no index, or it names none.
    """
    _check_index(folder, path)
    try:
        return str(json.loads((folder / INDEX).read_text(encoding="utf-8"))["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"backbone.path={path} does not load: {INDEX} names no pipeline", "mend the file") from error


def check_parts(folder: Path, path: str | Path, models: Sequence[str], *, also: Sequence[Sequence[str]] = ()) -> None:
    """Looks whether everything is there, before anything large is read.

    Args:
        folder: The pipeline's.
        path: What a user called it.
        models: Parts that have a configuration and weights.
        also: Sets of files of which one has to be there in full.

    Raises:
        InputError: If something is missing, or weights are there as pickles only.
    """
    _check_index(folder, path)
    for part in models:
        _need(folder, path, _inside(folder, part, "config.json"))
        place = part_folder(folder, part)
        if not weight_files(place):
            pickles = sorted(file.name for pattern in _PICKLES for file in place.glob(pattern))
            if pickles:
                raise InputError(
                    f"backbone.path={path} holds {part} as a pickle only ({pickles[0]}), which may run any code",
                    "if you trust it, load it and save it again: save_pretrained(<folder>, safe_serialization=True)",
                )
            raise _lacks(path, _inside(folder, part, "*.safetensors"))
    _need(folder, path, _inside(folder, "scheduler", "scheduler_config.json"))
    if also and not any(all((folder / name).is_file() for name in names) for names in also):
        raise _lacks(path, " or ".join(" and ".join(names) for names in also))


def part_folder(folder: Path, part: str) -> Path:
    """Where a part lies: its own folder or, where there is none, the pipeline's (diffusers reads both)."""
    return folder / part if part_of_several(folder) else folder


def part_of_several(folder: Path) -> bool:
    """Whether the pipeline's parts have folders of their own."""
    return any((folder / part).is_dir() for part in _PARTS)


def weight_files(place: Path) -> list[Path]:
    """The safetensors files that loading a model from its folder reads: in full precision if there are such."""
    files = sorted(file for file in place.glob("*.safetensors") if ".non_ema" not in file.name)
    half = [file for file in files if ".fp16" in file.name]
    return [file for file in files if file not in half] or half


def load_whole(kind: Any, place: Path) -> nn.Module:
    """A model in fp32 with every weight from its file: one missing there would be drawn at random, with a warning.

    Args:
        kind: A model's class in diffusers or transformers.
        place: The model's folder.

    Raises:
        ValueError: If a weight is missing.
    """
    model: nn.Module
    half = all(".fp16" in file.name for file in weight_files(place))
    dtype = {"dtype" if issubclass(kind, PreTrainedModel) else "torch_dtype": torch.float32}
    model, report = kind.from_pretrained(
        place,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        variant="fp16" if half else None,
        **dtype,
    )
    if report["missing_keys"]:
        raise ValueError(f"{place.name} lacks the weights {', '.join(sorted(report['missing_keys']))}")
    return model


@contextmanager
def loading(path: str | Path) -> Iterator[None]:
    """Makes whatever diffusers, transformers and safetensors raise one line about the user's path."""
    try:
        yield
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"backbone.path={path} does not load: {reason}", "check its parts") from error


def folder_sha256(folder: Path) -> str:
    """Hash of everything in a pipeline folder that decides what it computes: configs, vocabularies and weights."""
    digest = hashlib.sha256()
    places = [folder / part for part in _PARTS] if part_of_several(folder) else []
    inside = [file for place in places for file in place.rglob("*") if file.suffix in (".json", ".txt")]
    inside += [file for place in places or [folder] for file in weight_files(place)]
    if not places:
        inside += [file for name in ("config.json", "scheduler_config.json") if (file := folder / name).is_file()]
    for file in sorted((folder / INDEX, *inside)):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0")
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _check_index(folder: Path, path: str | Path) -> None:
    _need(folder, path, INDEX)


def _inside(folder: Path, part: str, name: str) -> str:
    return (part_folder(folder, part) / name).relative_to(folder).as_posix()


def _need(folder: Path, path: str | Path, name: str) -> None:
    if not (folder / name).is_file():
        raise _lacks(path, name)


def _lacks(path: str | Path, name: str) -> InputError:
    return InputError(f"backbone.path={path} holds no {name}", "point it at a diffusers pipeline folder in safetensors")
