"""The whole pipeline on random weights: same networks and files as the testbed, no training needed."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from safetensors.torch import load_file, save_model
from torch import nn

from vdq.commands.run import run
from vdq.models.shapes_nets import build_autoencoder, build_denoiser, build_text_encoder
from vdq.models.shapes_tokenizer import build_tokenizer
from vdq.shapes.nets import build_clip
from vdq.stages.experiment import Experiment

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Testbed:
    """Runs the program in this process, on ``weights`` and below ``runs``, with few steps and prompts."""

    weights: Path
    runs: Path
    settings: tuple[str, ...] = ("dataset.num_prompts=2", "sampler.steps=2", "logger=csv", "alpha=half")

    @property
    def overrides(self) -> list[str]:
        return [
            f"model.weights={self.weights}",
            f"metrics.clip.encoder.weights={self.weights / 'clip.safetensors'}",
            f"paths.runs={self.runs}",
            f"paths.results={self.runs / 'results'}",
            *self.settings,
        ]

    def config(self, *overrides: str) -> DictConfig:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return compose("config", overrides=[*self.overrides, *overrides])

    def experiment(self, *overrides: str) -> Experiment:
        return Experiment(self.config(*overrides))

    def run(self, *overrides: str) -> Path:
        """The run folder that ``python run.py *overrides`` makes or finds."""
        return self.runs / run(self.config(*overrides))

    def start(self, *overrides: str, multirun: bool = False) -> subprocess.Popen[str]:
        """``python run.py *overrides`` as a process of its own."""
        command = [sys.executable, "run.py", *(["-m"] if multirun else []), *self.overrides, *overrides]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=ROOT, preexec_fn=_hear_interrupts, **pipes)


def _hear_interrupts() -> None:
    """A test run in the background of a shell ignores Ctrl-C, and its children would too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    vocabulary = len(build_tokenizer())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nets = {
            "autoencoder": build_autoencoder(),
            "denoiser": build_denoiser(),
            "text_encoder": build_text_encoder(vocabulary),
            "clip": build_clip(vocabulary),
        }
        for parameter in nets["denoiser"].parameters():
            if not parameter.any():  # zero branches would hide whole layers
                nn.init.normal_(parameter, std=0.05)
    for name, net in nets.items():
        save_model(net, str(folder / f"{name}.safetensors"))
    (folder / "latents.json").write_text(json.dumps({"scaling_factor": 0.3}))
    return folder


@pytest.fixture
def testbed(weights: Path, tmp_path: Path) -> Testbed:
    """With no runs yet."""
    return Testbed(weights, tmp_path / "runs")


@pytest.fixture(scope="session")
def finished(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Testbed:
    """With the runs tsq_tsw and fp16 finished; tests may add runs but must not change what is there."""
    bed = Testbed(weights, tmp_path_factory.mktemp("finished") / "runs")
    bed.run("quant=tsq_tsw")
    return bed


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collects what is computed from now on: the titles of the tasks that trainers run."""
    done: list[str] = []
    for verb in ("predict", "test"):
        original = getattr(pl.Trainer, verb)

        def spy(self: pl.Trainer, task: pl.LightningModule, *, _original: Callable = original, **options: object):
            done.append(getattr(task, "title", "scoring"))
            return _original(self, task, **options)

        monkeypatch.setattr(pl.Trainer, verb, spy)
    return done


@pytest.fixture(scope="session")
def assert_same_latents() -> Callable[[Path, Path], None]:
    def check(folder: Path, expected: Path) -> None:
        """Two run folders hold the same prompts' samples, up to the rounding of another order of sums."""
        paths = sorted(path.name for path in (expected / "samples").glob("*.safetensors"))
        assert paths and paths == sorted(path.name for path in (folder / "samples").glob("*.safetensors"))
        for name in paths:
            a, b = (load_file(path / "samples" / name)["latents"] for path in (folder, expected))
            assert torch.linalg.vector_norm(a - b) <= 1e-4 * torch.linalg.vector_norm(b), name

    return check
