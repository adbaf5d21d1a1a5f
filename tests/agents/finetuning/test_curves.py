from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.finetuning.curves import Curves, tiled
from agents.finetuning.trainer import StepRecord
from rewards.measurement import Measurement


def test_images_are_tiled_in_rows() -> None:
    images = np.stack([np.full((2, 3, 3), i + 1, dtype=np.uint8) for i in range(6)])
    assert tiled(images, 5)[::2, ::3, 0].tolist() == [[1, 2, 3], [4, 5, 0]]
    assert tiled(images, 9)[::2, ::3, 0].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert np.array_equal(tiled(images, 1), images[0])


def test_a_resumed_run_shows_what_was_before(tmp_path: Path) -> None:
    metrics = {
        "kid": Measurement(2.0, -0.1, 1.0, 3.0, 9, False),
        "membership": Measurement(None, 0.5, None, None, 0, False, "too few"),
    }
    grid = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    first = Curves(tmp_path)
    first.trained(StepRecord(10, 0.5, 1e-3, 2.0))
    first.trained(StepRecord(20, 0.4, 1e-3, None))
    first.validated(20, metrics, grid, 1.5)
    first.close()
    for file in (tmp_path / "tensorboard").iterdir():
        file.unlink()

    second = Curves(tmp_path, first.history)
    assert second.history == first.history
    assert second.has_validated(20)
    assert not second.has_validated(10)
    second.trained(StepRecord(30, 0.3, 1e-3, 1.0))
    second.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("training/loss")] == [
        (10, 0.5),
        (20, np.float32(0.4)),
        (30, np.float32(0.3)),
    ]
    assert [e.step for e in events.Scalars("training/gradient_norm")] == [10, 30]
    assert events.Scalars("validation/kid/value")[0].value == 2.0
    assert events.Scalars("validation/membership/null")[0].value == 0.5
    assert "validation/membership/value" not in events.Tags()["scalars"]
    (image,) = events.Images("samples")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(image.encoded_image_string))), grid)
