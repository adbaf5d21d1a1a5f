"""The wheel, installed outside the repository, is whole: code, configurations and the embedded backbone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from omegaconf import OmegaConf

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("agents", "conf", "envs", "rewards")
NOT_SOURCE = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the working tree, so that building leaves nothing behind and finds nothing left by an earlier build."""
    copy = tmp_path_factory.mktemp("source") / "memcontrol"
    shutil.copytree(ROOT, copy, ignore=NOT_SOURCE)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel, and sees this one's libraries but not this project."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    interpreter = folder / "bin" / "python"
    site = Path(run(interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # Lengthens sys.path and no more: .pth files in the folders it names, an editable install's among them, stay unread.
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "libraries.pth").write_text("\n".join(sorted(libraries)))
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", site, wheel)
    return interpreter


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """The output of a command that has to succeed, started where this repository is not on the import path."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_wheel_holds_the_packages_whole_and_nothing_else(source: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = (path for package in PACKAGES for path in (source / package).rglob("*") if path.is_file())
    assert shipped == {path.relative_to(source).as_posix() for path in files}
    assert {"conf/train.yaml", "envs/backbones/embedded/model_index.json", "rewards/py.typed"} <= shipped


def test_the_installed_packages_are_the_ones_that_run(python: Path, tmp_path: Path) -> None:
    program = f"import {', '.join(PACKAGES)}; print(*({'.__file__, '.join(PACKAGES)}.__file__), sep='\\n')"
    for file in run(python, "-c", program, cwd=tmp_path).split():
        assert python.parents[1] in Path(file).parents


def test_help_lists_the_configuration_groups(python: Path, tmp_path: Path) -> None:
    text = run(python, "-m", "agents.train", "--help", cwd=tmp_path)
    for path in (ROOT / "conf").glob("*/*.yaml"):
        assert path.parent.name in text
        assert path.stem in text


def test_the_composed_configuration_is_printed(python: Path, tmp_path: Path) -> None:
    config = OmegaConf.create(run(python, "-m", "agents.train", "seed=7", "--cfg", "job", cwd=tmp_path))
    assert config.seed == 7
    assert config.env.name == "phantom"


def test_training_outside_the_repository_writes_a_result(python: Path, tmp_path: Path) -> None:
    overrides = ("evaluator=synthetic", "budget.evaluations=16", f"run_dir={tmp_path / 'runs'}")
    run(python, "-m", "agents.train", *overrides, cwd=tmp_path)
    (result,) = (tmp_path / "runs").rglob("result.json")
    assert json.loads(result.read_text())["status"] == "done"
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
