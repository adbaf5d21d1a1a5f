"""From a path or a Hub id to a backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from envs.backbones.base import Backbone
from envs.backbones.execution import Execution
from envs.backbones.folder import FLAT_WEIGHTS, part_folder, pipeline_class, weight_files
from envs.backbones.latent import load_latent_backbone
from envs.backbones.pixel import load_pixel_backbone
from rewards.errors import InputError

_LOADERS: Mapping[str, Callable[..., Backbone]] = {
    "StableDiffusionPipeline": load_latent_backbone,
    "DDPMPipeline": load_pixel_backbone,
}
# Beside the parts' own folders some repositories hold the whole model once more in one large file.
_WANTED = ["*.json", "*.txt", "*/*.safetensors", FLAT_WEIGHTS]
_UNWANTED = ["safety_checker/*", "feature_extractor/*", "*.non_ema*"]


def load_backbone(path: str | Path, *, name: str, device: torch.device, execution: Execution | None = None) -> Backbone:
    """Loads a pipeline folder of a kind that is known, see `load_latent_backbone` and `load_pixel_backbone`.

    Raises:
        InputError: If it is no pipeline's folder, another pipeline's, or does not load.
    """
    kind = pipeline_class(Path(path), path)
    if kind not in _LOADERS:
        raise InputError(f"backbone.path={path} is a {kind}", f"give a {' or a '.join(_LOADERS)}")
    return _LOADERS[kind](path, name=name, device=device, execution=execution)


def find_pipeline(path: str, *, local_files_only: bool = True, revision: str | None = None) -> Path:
    """The pipeline's folder: the path if it is one, else the Hub's repository of that name in the local cache.

    Args:
        path: A folder, or a Hub id as ``stable-diffusion-v1-5/stable-diffusion-v1-5``.
        local_files_only: False downloads what the cache lacks: safetensors and the texts beside them, nothing else.
        revision: Branch, tag or commit of the repository; None for its main branch.

    Raises:
        InputError: If it is neither, or cannot be downloaded.
    """
    if Path(path).is_dir():
        return Path(path)

    def fetch(unwanted: list[str]) -> Path:
        return Path(
            snapshot_download(
                path,
                revision=revision,
                local_files_only=local_files_only,
                allow_patterns=_WANTED,
                ignore_patterns=unwanted,
            )
        )

    at = f" at revision {revision}" if revision else ""
    try:
        folder = fetch([*_UNWANTED, "*.fp16*"])
        if not local_files_only and not weight_files(part_folder(folder, "unet")):
            folder = fetch(_UNWANTED)
        return folder
    except IncompleteSnapshotError as error:  # what other files it lacks is seen when it is loaded
        return Path(error.snapshot_path)
    except HFValidationError as error:
        raise InputError(f"backbone.path={path} is no folder", "give a pipeline's folder or a Hub id") from error
    except GatedRepoError as error:
        remedy = f"accept its terms at https://huggingface.co/{path}, then log in with hf auth login"
        raise InputError(f"backbone.path={path} is gated on the Hub", remedy) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        remedy = "check the name and the revision; a private repository needs hf auth login"
        raise InputError(f"backbone.path={path}{at} is no folder and not on the Hub", remedy) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        if local_files_only:
            what = f"backbone.path={path}{at} is no folder and not in the Hub's local cache"
            remedy = "give a pipeline's folder, or download it with backbone.local_files_only=false"
        else:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            what = f"backbone.path={path}{at} cannot be downloaded: {reason}"
            remedy = "mend the connection (HF_HUB_OFFLINE forbids it), or copy the folder here and give its path"
        raise InputError(what, remedy) from error
