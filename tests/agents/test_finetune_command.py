"""``python -m agents.finetune`` from the call to the model that somebody else loads; small, in earnest."""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from agents.finetuning.loading import load_finetuned
from agents.finetuning.trainer import Trainer
from envs.backbones.latent import LatentBackbone, load_latent_backbone
from envs.datasets import NEAR_DUPLICATE_RADIUS, prepare_dataset
from envs.generate import Steering, denoise
from envs.judge import Judge
from tests.agents.command import Command, Double, Outcome, read_json
from tests.agents.test_bad_input import refused_in_one_line

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

IMAGES = ("env.size=32", "env.train=6", "env.heldout=12", "env.test=8", "+env.options.identities=40")
SMALL = (
    *IMAGES,
    "training.steps=8",
    "training.warmup=2",
    "training.learning_rate=0.03",
    "training.checkpoint_every=2",
    "training.validate_every=4",
    "inner.images=8",
    "inner.sampling_steps=2",
    "final.images=8",
    "validation.grid=5",
    "reward.metrics=[membership,copy_rate]",
    "reward.final_metrics=[membership,copy_rate,kid]",
)
BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("agents", "envs", "rewards", "conf"):
            raise ImportError(f"{name} is not here")
sys.meta_path.insert(0, Blocked())
"""


def finetune(*arguments: str, folder: Path, double: Double | None = None) -> Outcome:
    return Command(arguments, folder, double, name="finetune").wait(timeout=500)


def finetuned(*arguments: str, folder: Path, double: Double | None = None) -> Path:
    """The run folder of a command that must succeed."""
    folder.mkdir(exist_ok=True)
    outcome = finetune(*arguments, folder=folder, double=double)
    assert outcome.code == 0, outcome.err
    (run,) = (folder / "runs" / "finetune").glob("*/*")
    return run


def result_of(run: Path) -> dict[str, Any]:
    """``result.json`` without what differs between two equal runs."""
    result: dict[str, Any] = read_json(run / "result.json")
    result["evaluations"].pop("seconds")
    return {key: value for key, value in result.items() if key not in ("seconds", "git")}


def denoiser_of(run: Path) -> dict[str, Tensor]:
    return load_file(run / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def snippets(run: Path) -> list[str]:
    """The code of the model card, as it stands."""
    return re.findall(r"```python\n(.*?)```", (run / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def image_of(snippet: str, run: Path) -> NDArray[np.uint8]:
    """The image that a snippet saves, run in the run folder where this project cannot be imported."""
    (run / "sample.png").unlink(missing_ok=True)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", BLOCKED + snippet], cwd=run, env=env, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    with Image.open(run / "sample.png") as image:
        return np.asarray(image.convert("RGB"))


@torch.inference_mode()
def own_image(backbone: LatentBackbone) -> NDArray[np.uint8]:
    """What this project generates from the noise of the snippets."""
    noise = torch.randn((1, *backbone.latent_shape), generator=torch.Generator().manual_seed(0))
    states = backbone.encode_captions([""])
    latents = denoise(backbone.scheduler, noise, lambda x, t, _: backbone.predict(x, t, states), steps=2, generators=[])
    image: NDArray[np.uint8] = backbone.decode_latents(latents)[0]
    return image


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finetune")


@pytest.fixture(scope="module")
def small(pipeline_folder: Path) -> tuple[str, ...]:
    return (*SMALL, f"backbone.path={pipeline_folder}", "backbone.name=tiny")


@pytest.fixture(scope="module")
def lora(workplace: Path, small: tuple[str, ...]) -> Path:
    """A LoRA of two groups."""
    return finetuned(*small, "method=lora", "mask=[down_blocks.1,up_blocks.0]", folder=workplace / "lora")


def test_the_folder_is_whole(lora: Path) -> None:
    expected = {
        "result.json",
        "data.json",
        "README.md",
        "log.txt",
        "pipeline",
        "adapter",
        "checkpoints",
        "tensorboard",
        "figures",
    }
    assert {path.name for path in lora.iterdir() if not path.name.startswith(".")} == expected
    assert [path.name for path in sorted((lora / "checkpoints").iterdir())] == [
        "step-00000006.safetensors",
        "step-00000008.safetensors",
    ]
    result = read_json(lora / "result.json")
    assert (result["job"], result["status"], result["axes"]) == ("finetune", "done", None)
    assert result["selected"]["groups"] == ["down_blocks.1", "up_blocks.0"]
    assert result["selected"]["mask"] == [0, 0, 1, 0, 0, 1, 0, 0]
    assert 0 < result["selected"]["trainable_share"] < 1
    assert list(result["metrics"]) == ["membership", "copy_rate", "kid"]
    assert all(m["value"] is not None and m["null"] is not None for m in result["metrics"].values())
    assert [row["step"] for row in result["validations"]] == [0, 4, 8]
    assert result["validations"][0]["metrics"]["membership"]["value"] == 0.5, "step 0 is the base model"
    assert result["evaluations"]["distinct"] == 4


def test_tensorboard_shows_curves_and_images(lora: Path) -> None:
    events = EventAccumulator(str(lora / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("validation/membership/value")] == [0, 4, 8]
    assert {"training/loss", "training/learning_rate", "training/gradient_norm"} <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Images("samples")] == [0, 4, 8]
    with Image.open(lora / "figures" / "samples-00000008.png") as grid:
        assert grid.size == (3 * 32, 2 * 32)


def test_the_card_says_what_it_is_and_nothing_private(lora: Path) -> None:
    text = (lora / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["library_name"] == "diffusers"
    assert front["pipeline_tag"] == "text-to-image"
    result = read_json(lora / "result.json")
    for fact in (
        result["data"]["licence"],
        result["data"]["split_sha256"],
        "6 images to train on, 12 held out, 8 for the table",
        "down_blocks.1, up_blocks.0",
        f"{result['selected']['trainable_parameters']:,}",
        "Rule that ends the training: none. It was trained for 8 steps.",
        "no differential privacy",
    ):
        assert fact in text
    assert ("**Memorization is above its null**" in text) != ("**Memorization was not found to be above" in text)
    dataset = prepare_dataset(
        "phantom",
        root=None,
        size=32,
        train=6,
        heldout=12,
        test=8,
        seed=0,
        radius=NEAR_DUPLICATE_RADIUS,
        options={"identities": 40},
    )
    everything = [
        file.read_text(encoding="utf-8", errors="ignore")
        for file in lora.rglob("*")
        if file.is_file() and "tokenizer" not in file.parts
    ]
    for private in (*dataset.train.captions, *dataset.train.ids, *dataset.test.ids):
        assert not any(private in content for content in everything)


def test_the_snippets_run_where_this_project_is_not(lora: Path, pipeline_folder: Path) -> None:
    whole, adapter = snippets(lora)
    assert max(len(snippet.splitlines()) for snippet in (whole, adapter)) <= 7
    cpu = torch.device("cpu")
    expected = own_image(load_latent_backbone(lora / "pipeline", name="tuned", device=cpu))
    assert np.abs(image_of(whole, lora).astype(int) - expected).max() <= 1
    assert np.abs(image_of(adapter, lora).astype(int) - expected).max() <= 1
    base = load_latent_backbone(pipeline_folder, name="tiny", device=cpu)
    assert np.abs(own_image(base).astype(int) - expected).max() > 5, "it has learned something"
    load_finetuned(lora, base)
    assert np.abs(own_image(base).astype(int) - expected).max() <= 1


def interrupted_in_step(number: int, signal_number: int) -> None:
    """The signal arrives in the middle of a training step."""
    enter = Trainer._enter_phase

    def entering(self: Trainer, step: int) -> None:
        enter(self, step)
        if step == number:
            os.kill(os.getpid(), signal_number)

    Trainer._enter_phase = entering  # type: ignore[method-assign]


def interrupted_in_validation(signal_number: int) -> None:
    """The signal arrives while the second validation looks at the averaged weights."""
    generate, calls = Judge.generate, 0

    def generating(self: Judge, steerings: Sequence[Steering] = ()) -> NDArray[np.uint8]:
        nonlocal calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), signal_number)
        return generate(self, steerings)

    Judge.generate = generating  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("double", "kept"),
    [
        (functools.partial(interrupted_in_step, 4, signal.SIGTERM), 5),
        (functools.partial(interrupted_in_validation, signal.SIGINT), 4),
    ],
    ids=["step", "validation"],
)
def test_an_interrupted_run_ends_as_the_uninterrupted_one(
    workplace: Path, small: tuple[str, ...], lora: Path, double: Double, kept: int, request: pytest.FixtureRequest
) -> None:
    folder = workplace / request.node.callspec.id
    folder.mkdir()
    call = (*small, "method=lora", "mask=[down_blocks.1,up_blocks.0]")
    outcome = finetune(*call, folder=folder, double=double)
    (run,) = (folder / "runs" / "finetune").glob("*/*")
    assert outcome.code == 130, outcome.err
    assert outcome.err.rstrip().endswith(f"go on with resume=runs/finetune/{run.parent.name}/{run.name}")
    assert f"step-{kept:08d}.safetensors" in {path.name for path in (run / "checkpoints").iterdir()}
    assert not (run / "result.json").exists()

    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    if kept == 5:  # and it may even be torn
        newest.write_bytes(newest.read_bytes()[:-10])
    outcome = finetune(f"resume={run}", folder=folder)
    assert outcome.code == 0, outcome.err
    assert same(denoiser_of(run), denoiser_of(lora))
    assert result_of(run) == result_of(lora)


def test_a_finished_run_is_only_measured_again(workplace: Path, lora: Path) -> None:
    copied = workplace / "again" / "runs" / "finetune" / "task" / "run"
    shutil.copytree(lora, copied)
    outcome = finetune(f"resume={copied}", folder=workplace / "again")
    assert outcome.code == 0, outcome.err
    assert same(denoiser_of(copied), denoiser_of(lora))
    assert result_of(copied) == result_of(lora)


def test_two_processes_take_the_steps_of_one(workplace: Path, small: tuple[str, ...]) -> None:
    call = (*small, "training.steps=2", "training.warmup=0", "training.checkpoint_every=1", "training.validate_every=2")
    one = finetuned(*call, "mask=00100000", folder=workplace / "one")
    (workplace / "two").mkdir()
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    done = subprocess.run(
        [*launch, "-m", "agents.finetune", *call, "mask=00100000"],
        cwd=workplace / "two",
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    (two,) = (workplace / "two" / "runs" / "finetune").glob("*/*")
    pairs = [(tensor, denoiser_of(two)[name]) for name, tensor in denoiser_of(one).items()]
    assert not all(torch.equal(a, b) for a, b in pairs), "sums of halves are rounded otherwise"
    # AdamW's first step is the gradient's sign: where a gradient is nearly 0, rounding decides it.
    near = torch.cat([((a - b).abs() < 1e-4).flatten() for a, b in pairs if a.numel()])
    assert near.float().mean() > 0.99


def test_a_method_that_diffusers_does_not_know_is_not_dressed_up(workplace: Path, small: tuple[str, ...]) -> None:
    run = finetuned(*small, "method=adapter", "method.options.width=4", "mask=all", folder=workplace / "adapter")
    result = read_json(run / "result.json")
    assert (result["pipeline"], result["adapter"]) == (None, "adapter")
    assert not (run / "pipeline").exists()
    (snippet,) = snippets(run)
    done = subprocess.run([sys.executable, "-c", snippet], cwd=run, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def test_full_fine_tuning_has_no_adapter(workplace: Path, small: tuple[str, ...], pipeline_folder: Path) -> None:
    run = finetuned(*small, "mask=00100000", "ema.decay=0", "validation.grid=0", folder=workplace / "full")
    result = read_json(run / "result.json")
    assert (result["pipeline"], result["adapter"]) == ("pipeline", None)
    assert not (run / "figures").exists()
    (snippet,) = snippets(run)
    assert "pipeline" in snippet
    base = load_file(pipeline_folder / "unet" / "diffusion_pytorch_model.safetensors")
    moved = {name for name, tensor in denoiser_of(run).items() if not torch.equal(tensor, base[name])}
    assert moved
    assert all(name.startswith("down_blocks.1.") for name in moved)


def test_the_training_ends_at_the_threshold(workplace: Path) -> None:
    """The backbone that ships overfits four phantoms: membership rises from 0.5, where the base model stands."""
    call = (
        "env.train=4",
        "env.heldout=24",
        "env.test=12",
        "+env.options.identities=70",
        "mask=all",
        "training.steps=30",
        "training.validate_every=6",
        "training.learning_rate=2e-4",
        "ema.decay=0",
        "inner.images=4",
        "inner.sampling_steps=2",
        "validation.grid=0",
        "reward.metrics=[membership]",
        "reward.final_metrics=[membership]",
        "final.images=4",
        "stop.metric=membership",
    )
    run = finetuned(*call, "stop.limit=0.85", folder=workplace / "threshold")
    result = read_json(run / "result.json")
    *within, last = [(row["step"], row["metrics"]["membership"]["value"]) for row in result["validations"]]
    assert all(value <= 0.85 for _, value in within)
    assert last[1] > 0.85
    assert last[0] < 30
    assert result["stop"]["ended"]
    assert result["training"]["saved_step"] == within[-1][0] > 0
    words = f"After {last[0]} steps the limit was broken: what is saved is the model after {within[-1][0]} steps."
    assert words in (run / "README.md").read_text(encoding="utf-8")
    assert result["metrics"]["membership"]["value"] > 0.5

    run = finetuned(*call, "stop.limit=0.6", folder=workplace / "base")
    result = read_json(run / "result.json")
    assert result["training"]["saved_step"] == 0
    assert "what is saved is the base model" in result["stop"]["words"]
    assert result["metrics"]["membership"]["value"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "nothing says which groups learn"),
        (("mask=all", "policy=x"), "x and mask=all says which"),
        (("mask=none",), "nothing would be trained"),
        (("mask=0101",), "4 toggles"),
        (("mask=[mid_block,nose]",), "nose"),
        (("run=nowhere",), "run=nowhere is no finished training"),
        (("policy=nowhere",), "no policy can be read"),
        (("mask=all", "training.validate_every=9"), "training.validate_every=9"),
        (("mask=all", "training.checkpoint_every=9"), "training.checkpoint_every=9"),
        (("mask=all", "training.warmup=8"), "training.warmup=8"),
        (("mask=all", "training.accumulation=3"), "training.batch_size=8"),
        (("mask=all", "stop.metric=nope"), "stop.metric=nope"),
        (("mask=all", "training.steps=0"), "training.steps=0"),
        (("mask=10000000", "method=attention"), "no parameter in these groups"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_call_is_one_line(
    tmp_path: Path, small: tuple[str, ...], arguments: tuple[str, ...], named: str
) -> None:
    outcome = finetune(*small, *arguments, folder=tmp_path)
    refused_in_one_line(outcome.code, outcome.err, named)
    assert not (tmp_path / "runs").exists()
