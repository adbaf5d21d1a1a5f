from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rewards.errors import InputError
from rewards.features import TorchScript, embedding

SaveScript = Callable[..., Path]


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.dropout(self.norm(self.convolution(x)).relu().mean((2, 3)))
        return features


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class Positions(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(3)


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.mean((2, 3)), x.mean((2, 3))])


class Undefined(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) - 1 + (x.mean((2, 3)) - 100).log()


class OneAtATime(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)).view(1, 3)


class WritesAFile(nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: Tensor) -> Tensor:
        torch.save(x, self.path)
        return x.mean((2, 3))


class WritesWhenLoaded(nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        self.training = state[1]
        torch.save(torch.zeros(1), self.path)

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


@pytest.fixture
def pooled(tmp_path: Path, save_script: SaveScript) -> Path:
    return save_script(Pooled().eval(), tmp_path / "pooled.pt")


@pytest.mark.parametrize("suffix", ["pt", "pth", "ts", "torchscript", "TS"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_file_embeds_as_the_network_does(
    suffix: str, compiled: bool, tmp_path: Path, save_script: SaveScript, random_images: Callable[..., Tensor]
) -> None:
    # Compiled in training mode: it has to be switched to evaluation.
    network = Pooled().train(compiled)
    path = save_script(network, tmp_path / f"pooled.{suffix}", compiled=compiled)
    images = random_images(20, size=32)
    name = f"{path}?size=32&mean=0.5,0.4,0.3&std=0.3,0.2,0.1"
    embed = embedding(name)
    mean, std = torch.tensor([0.5, 0.4, 0.3])[:, None, None], torch.tensor([0.3, 0.2, 0.1])[:, None, None]
    with torch.inference_mode():
        expected = network.eval()((images.float() / 255 - mean) / std)
    torch.testing.assert_close(embed(images), expected)
    assert (embed.name, embed.dimensions) == (name, 8)


def test_a_frozen_network_embeds_as_before(tmp_path: Path, pooled: Path, random_images: Callable[..., Tensor]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        frozen = torch.jit.freeze(torch.jit.script(Pooled().eval()))
        torch.jit.save(frozen, tmp_path / "frozen.ts")
    features = embedding(str(tmp_path / "frozen.ts"))(random_images(3))
    torch.testing.assert_close(features, embedding(str(pooled))(random_images(3)))


def test_the_first_and_later_calls_agree_to_the_last_bit(pooled: Path, random_images: Callable[..., Tensor]) -> None:
    images, embed = random_images(33), embedding(f"torchscript:{pooled}?size=48")
    calls = [embed(images) for _ in range(4)]
    assert all(torch.equal(call, calls[0]) for call in calls)
    order = torch.randperm(33, generator=torch.Generator().manual_seed(1))
    assert torch.equal(embed(images[order]), calls[0][order])
    assert torch.equal(torch.cat([embed(images[:1]), embed(images[1:])]), calls[0])


def test_bytes_are_cast_before_the_mean_is_subtracted(tmp_path: Path, save_script: SaveScript) -> None:
    path = save_script(Mean(), tmp_path / "mean.ts")
    images = torch.tensor([10, 250], dtype=torch.uint8)[:, None, None, None].expand(2, 3, 40, 40)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (torch.tensor([[10.0], [250.0]]) / 255 - mean) / std
    torch.testing.assert_close(embedding(str(path))(images), expected)


@pytest.mark.parametrize(
    "options",
    [
        *("size=0", "size=9999", "size=x", "size=", "width=3", "size=32&size=32"),
        *("mean=1", "mean=a,b,c", "mean=inf,0,0", "std=0,1,1", "std=1,1,nan"),
    ],
)
def test_options_out_of_range_are_one_line(options: str, pooled: Path) -> None:
    with pytest.raises(InputError, match=r"embedding .*— write \?size=224&mean="):
        embedding(f"{pooled}?{options}")


def test_the_fingerprint_follows_file_and_options_but_not_the_path(
    pooled: Path, tmp_path: Path, save_script: SaveScript
) -> None:
    copied = tmp_path / "copied.pt"
    copied.write_bytes(pooled.read_bytes())
    mean = save_script(Mean(), tmp_path / "mean.pt")
    names = [f"{pooled}", f"{pooled}?size=32", f"{pooled}?mean=0,0,0", f"{pooled}?std=1,1,1", f"{mean}"]
    prints = [TorchScript(name, name).fingerprint for name in names]
    assert len(set(prints)) == len(names)
    assert TorchScript(str(copied), "copied").fingerprint == prints[0]
    assert TorchScript(f"{pooled}?size=224", "spelled out").fingerprint == prints[0]


@pytest.mark.parametrize("network", [Positions(), Twice()], ids=["not two dimensions", "twice as many"])
def test_output_of_another_shape_is_one_line(network: nn.Module, tmp_path: Path, save_script: SaveScript) -> None:
    path = save_script(network, tmp_path / "wrong.ts")
    with pytest.raises(InputError, match=r"returned torch.float32 .* — use a network that returns float"):
        embedding(str(path))


def test_features_that_are_no_numbers_are_one_line(
    tmp_path: Path, save_script: SaveScript, random_images: Callable[..., Tensor]
) -> None:
    embed = embedding(str(save_script(Undefined(), tmp_path / "undefined.ts")))
    with pytest.raises(InputError, match=r"undefined.ts: the features of 3 of 3 images are NaN"):
        embed(random_images(3))


def test_a_network_traced_for_one_image_gets_one_at_a_time(
    tmp_path: Path, save_script: SaveScript, random_images: Callable[..., Tensor]
) -> None:
    embed = embedding(f"{save_script(OneAtATime(), tmp_path / 'one.ts', batch=1)}?mean=0,0,0&std=1,1,1&size=64")
    images = random_images(5)
    torch.testing.assert_close(embed(images), images.float().mean((2, 3)) / 255)


def test_a_network_that_does_not_run_is_one_line(tmp_path: Path, save_script: SaveScript) -> None:
    path = save_script(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)), tmp_path / "fixed.ts")
    with pytest.raises(InputError, match=r"does not run: .*mat1") as caught:
        embedding(str(path))
    assert "\n" not in str(caught.value)
    assert embedding(f"{path}?size=32").dimensions == 4


@pytest.mark.parametrize("name", ["missing.pt", "torchscript:missing.bin", "torchscript:."])
def test_a_file_that_cannot_be_read_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="name a TorchScript file that can be read"):
        embedding(name)


@pytest.mark.parametrize("damage", ["empty", "text", "half", "an end", "another zip", "a flipped table"])
def test_a_file_that_is_no_torchscript_is_one_line(damage: str, tmp_path: Path, pooled: Path) -> None:
    content, path = pooled.read_bytes(), tmp_path / "damaged.ts"
    if damage == "another zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "hello")
    else:
        damaged = {"empty": b"", "text": b"hello", "half": content[: len(content) // 2], "an end": content[-900:]}
        path.write_bytes(damaged.get(damage, content.replace(b"PK\1\2", b"PK\1\3")))
    with pytest.raises(InputError, match=r"damaged\.ts .*— ") as caught:
        embedding(str(path))
    assert "\n" not in str(caught.value)


def test_a_plain_checkpoint_is_refused_with_what_to_do(tmp_path: Path) -> None:
    for name, new in (("new.pt", True), ("old.pth", False)):
        torch.save(Pooled().state_dict(), tmp_path / name, _use_new_zipfile_serialization=new)
        with pytest.raises(InputError, match=r"pickled checkpoint, which cannot run .* — load it into its model"):
            embedding(str(tmp_path / name))


def replaced(source: Path, target: Path, record: str, content: bytes) -> Path:
    """A copy of an archive with one record replaced, or added."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        root = old.namelist()[0].partition("/")[0]
        for name in old.namelist():
            if name != f"{root}/{record}":
                new.writestr(name, old.read(name))
        new.writestr(f"{root}/{record}", content)
    return target


def exported(path: Path) -> Path:
    program = torch.export.export(Pooled().eval(), (torch.zeros(2, 3, 32, 32),))
    torch.export.save(program, path)
    return path


def test_no_pickle_is_run_by_any_route(tmp_path: Path, pooled: Path, malicious: tuple[object, Path]) -> None:
    trap, created = malicious
    files = [tmp_path / f"trap{i}{suffix}" for i, suffix in enumerate((".pt", ".pth", ".ts", ".torchscript", ".pt2"))]
    for file in files:
        file.write_bytes(pickle.dumps(trap))
    for protocol in (0, 2):
        files.append(tmp_path / f"protocol{protocol}.pt")
        files[-1].write_bytes(pickle.dumps(trap, protocol))
    for new in (True, False):
        files.append(tmp_path / f"saved{new}.pt")
        torch.save({"weight": trap}, files[-1], _use_new_zipfile_serialization=new)
    for record in ("data.pkl", "constants.pkl", "traced_inputs.pkl"):
        files.append(replaced(pooled, tmp_path / f"{record}.ts", record, pickle.dumps(trap, 2)))
    program = exported(tmp_path / "program.pt2")
    files.append(program)
    files.append(replaced(program, tmp_path / "program.ts", "data/sample_inputs/model.pt", pickle.dumps(trap)))
    for file in files:
        for name in (str(file), f"torchscript:{file}", f"transformers:{file}", f"xrv:{file}"):
            try:
                embedding(name)
            except InputError:
                continue
            finally:
                assert not created.exists(), name
            assert "traced_inputs" in name  # nobody reads that record


@pytest.mark.parametrize("network", [WritesAFile, WritesWhenLoaded])
def test_a_program_that_would_write_a_file_is_refused_before_it_is_loaded(
    network: Callable[[str], nn.Module], tmp_path: Path, save_script: SaveScript
) -> None:
    written = tmp_path / "written"
    path = save_script(network(str(written)), tmp_path / "writes.ts", compiled=True)
    written.unlink(missing_ok=True)
    with pytest.raises(InputError, match="names operations that write or read files"):
        embedding(str(path))
    assert not written.exists()
