from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from rewards.errors import InputError
from rewards.features import XRayVision


class DenseNet(nn.Module):
    """As much of torchxrayvision's as is used."""

    def __init__(self, weights: str) -> None:
        super().__init__()
        print("Downloading weights...")
        if weights == "densenet121-res224-rsna":
            raise ConnectionError("no route\nto host")
        torch.manual_seed(len(weights))
        self.features = nn.Conv2d(1, 8, 7, stride=7)
        self.dropout = nn.Dropout(0.5)

    def features2(self, x: Tensor) -> Tensor:
        assert x.shape[1:] == (1, 224, 224)
        assert float(x.min()) >= -1024
        assert float(x.max()) <= 1024
        features: Tensor = self.dropout(self.features(x).mean((2, 3)))
        return features


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["densenet121-res224-all", "densenet121-res224-rsna", "densenet121-res224-nih", "resnet50-res512-all"]
    models = SimpleNamespace(DenseNet=DenseNet, model_urls=dict.fromkeys(names))
    monkeypatch.setitem(sys.modules, "torchxrayvision", SimpleNamespace(models=models))


@pytest.mark.usefixtures("library")
def test_gray_images_are_scaled_as_its_networks_were_trained(
    random_images: Callable[..., Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    embed, images = XRayVision("densenet121-res224-all", "xrv:densenet121-res224-all"), random_images(18, size=224)
    assert capsys.readouterr().out == ""  # what commands print is theirs
    gray = images.double().mean(1, keepdim=True) / 255 * 2048 - 1024
    with torch.inference_mode():
        expected = DenseNet("densenet121-res224-all").eval().features2(gray.float())
    features = embed(images)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-3)
    assert torch.equal(torch.cat([embed(images[:7]), embed(images[7:])]), features)
    extremes = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 3, 64, 64)
    assert embed(extremes).isfinite().all()
    assert embed.fingerprint != XRayVision("densenet121-res224-nih", "xrv").fingerprint


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("weights", ["resnet50-res512-all", "all", "/tmp/weights.pt", "https://example.org/w.pt"])
def test_weights_that_are_not_the_librarys_are_refused(weights: str) -> None:
    with pytest.raises(InputError, match="has no such DenseNet — choose among densenet121-res224-all"):
        XRayVision(weights, f"xrv:{weights}")


@pytest.mark.usefixtures("library")
def test_a_download_that_fails_is_one_line() -> None:
    with pytest.raises(
        InputError, match="does not load: no route to host — its first use downloads weights: go online"
    ):
        XRayVision("densenet121-res224-rsna", "xrv:densenet121-res224-rsna")


def test_without_the_library_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchxrayvision", None)
    with pytest.raises(InputError, match=r"needs torchxrayvision: .* — pip install 'memcontrol\[xrv\]'"):
        XRayVision("densenet121-res224-all", "xrv:densenet121-res224-all")
