"""Trains the testbed's weights: ``python -m vdq.shapes.train``.

Four parts, in this order: the frame autoencoder, the small CLIP, the latents of the training videos, and the STDiT
with its text encoder. Each part keeps checkpoints in the work folder and goes on from the last one; a part that is
done is skipped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from datetime import date
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn
from tqdm import tqdm

from vdq.files import complete_or_nothing, write_json
from vdq.models.shapes_nets import build_autoencoder
from vdq.shapes.render import render
from vdq.shapes.training.autoencoder import AutoencoderTraining
from vdq.shapes.training.clip import ClipTraining
from vdq.shapes.training.data import to_float, training_scene
from vdq.shapes.training.denoiser import DenoiserTraining

SEED = 0
WEIGHTS = Path(__file__).parent / "weights"
PARTS = ("autoencoder", "clip", "latents", "denoiser")


def train_autoencoder(weights: Path, workdir: Path, **settings) -> None:
    module = AutoencoderTraining(**settings)
    card = fit("autoencoder", module, workdir)
    finish("autoencoder", {"autoencoder": module.net}, {**card, "measured": module.measure()}, weights)


def train_clip(weights: Path, workdir: Path, **settings) -> None:
    module = ClipTraining(**settings)
    card = fit("clip", module, workdir)
    finish("clip", {"clip": module.net}, {**card, "measured": module.measure()}, weights)


@torch.inference_mode()
def train_latents(weights: Path, workdir: Path, videos: int = 8_000) -> None:
    """Renders and encodes the training videos once: fp16 [videos, 4, 16, 8, 8] with unit variance, 8 KB a video."""
    autoencoder = build_autoencoder().eval()
    load_model(autoencoder, weights / "autoencoder.safetensors")
    latents = torch.empty(videos, 4, 16, 8, 8, dtype=torch.float16)
    for video in tqdm(range(videos), desc="latents", unit="video"):
        frames = to_float(render(training_scene(video), np.random.default_rng([video, 3])))
        latents[video] = autoencoder.encode(frames).latent_dist.mode().transpose(0, 1)
    scale = 1 / latents.float().std().item()
    card = {
        "videos": videos,
        "scaling_factor": scale,
        "channel_means": (latents.float() * scale).mean((0, 2, 3, 4)).tolist(),
    }
    with complete_or_nothing(workdir / "latents.safetensors") as partial:
        save_file({"latents": (latents.float() * scale).half()}, partial)
    finish("latents", {}, card, weights)


def train_denoiser(weights: Path, workdir: Path, **settings) -> None:
    latents = load_file(workdir / "latents.safetensors")["latents"]
    module = DenoiserTraining(**settings, latents=latents)
    card = fit("denoiser", module, workdir, EMAWeightAveraging(decay=module.hparams.ema_decay))
    finish("denoiser", {"denoiser": module.net, "text_encoder": module.text}, card, weights)


def fit(name: str, module: pl.LightningModule, workdir: Path, *extra: pl.Callback) -> dict:
    """Trains ``module`` for its ``hparams.steps``, or goes on from its last checkpoint; returns what the card says
    about it.
    """
    folder = workdir / name
    last = folder / "last.ckpt"
    trainer = pl.Trainer(
        max_steps=module.hparams.steps,
        logger=CSVLogger(folder, name="log", version=0),
        callbacks=[
            ModelCheckpoint(folder, filename="last", enable_version_counter=False, save_on_train_epoch_end=True),
            TQDMProgressBar(refresh_rate=10),
            *extra,
        ],
        reload_dataloaders_every_n_epochs=1,
        log_every_n_steps=25,
        gradient_clip_val=1.0,
        enable_model_summary=False,
    )
    done = torch.load(last, weights_only=True, mmap=True)["global_step"] if last.exists() else 0
    pl.seed_everything(SEED + done, verbose=False)  # a resumed training does not see the noise of its start again
    start = time.monotonic()
    trainer.fit(module, ckpt_path=last if last.exists() else None, weights_only=True)
    module.cpu()
    return {
        "settings": dict(module.hparams),
        "final_loss": float(trainer.callback_metrics["loss"]) if "loss" in trainer.callback_metrics else None,
        "minutes_of_last_session": round((time.monotonic() - start) / 60, 1),
        "threads": torch.get_num_threads(),
    }


def finish(
    part: str, nets: dict[str, nn.Module], card: dict, weights: Path, command: str = "python -m vdq.shapes.train"
) -> None:
    """Writes what a part made, and its card last: a part with a card is complete."""
    paths = {name: weights / f"{name}.safetensors" for name in nets}
    for name, net in nets.items():
        with complete_or_nothing(paths[name]) as partial:
            save_model(net, str(partial))
    card |= {
        "part": part,
        "command": command,
        "seed": SEED,
        "date": date.today().isoformat(),
        "parameters": {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()},
        "bytes": {path.name: path.stat().st_size for path in paths.values()},
        "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths.values()},
    }
    write_json(weights / f"{part}.json", card)
    print(json.dumps(card, indent=2))


def is_done(part: str, weights: Path, workdir: Path) -> bool:
    """Whether a part is complete: it has a card, and the latents, which are too large to ship, their file as well."""
    return (weights / f"{part}.json").exists() and (part != "latents" or (workdir / "latents.safetensors").exists())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)}; all of them by default")
    parser.add_argument("--workdir", type=Path, default=Path("runs/shapes_training"), help="checkpoints and latents")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="where the results go")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the named part, e.g. steps=100"
    )
    arguments = parser.parse_args()
    parts = arguments.parts or PARTS
    if unknown := set(parts) - set(PARTS):
        parser.error(f"PART={', '.join(unknown)} is not known; allowed: {', '.join(PARTS)}")
    settings = {name: json.loads(value) for name, value in (pair.split("=", 1) for pair in arguments.set)}
    torch.set_float32_matmul_precision("high")
    for part in parts:
        if is_done(part, arguments.weights, arguments.workdir):
            print(f"{part}: done, see {arguments.weights / part}.json")
        else:
            globals()[f"train_{part}"](arguments.weights, arguments.workdir, **settings)


if __name__ == "__main__":
    main()
