"""Videos from an artefact: ``python -m vdq.export.sample path/to/artefact --prompt "a small red circle"``.

ONNX Runtime computes the denoiser of an `onnx_qdq` folder, the run's own backend that of a `packed` one. The text
encoder and the autoencoder are those of the model that was exported.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from vdq.data.video import write_mp4
from vdq.diffusion.noise import PromptNoise
from vdq.errors import UserError
from vdq.export import artefact, onnx_runtime, packed
from vdq.export.model import ArtefactModel
from vdq.files import check_file, check_folder, complete_or_nothing

DEFAULT_CACHE = "runs/cache"
ENDINGS = (".mp4", ".gif")


def main(arguments: list[str] | None = None) -> Path:
    args = _parser().parse_args(arguments)
    try:
        if args.out.suffix.lower() not in ENDINGS:
            raise UserError(f"--out={args.out} must end in {' or '.join(ENDINGS)}")
        if not args.prompt.strip():
            raise UserError("--prompt is empty, must say what the video shall show")
        cores = os.cpu_count() or 1
        if args.threads is not None and not 1 <= args.threads <= cores:
            raise UserError(f"--threads={args.threads} must be in 1..{cores}, the cores of this machine")
        check_file("--out", args.out)
        model = load(args.artefact, threads=args.threads)
        seed = model.contents["seed"] if args.seed is None else args.seed
        changes = places(model.contents["config"]["model"], args.weights, args.cache)
        frames, fps = sample(model, args.prompt, seed=seed, changes=changes)
        write_video(args.out, frames, fps, comment=args.prompt)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped, nothing was written")
    print(f"{args.out}: {len(frames)} frames, seed {seed}")
    return args.out


def load(path: Path, *, threads: int | None = None) -> ArtefactModel:
    """Loads an artefact of either kind; `threads`: None is all cores. Raises UserError for any other, or if damaged."""
    kind = artefact.read_manifest(path)["kind"]
    if kind == onnx_runtime.KIND:
        return onnx_runtime.load(path, threads=threads)
    if threads is not None:
        torch.set_num_threads(threads)
    return packed.load(path)  # which refuses what is neither


@torch.inference_mode()
def sample(
    model: ArtefactModel, prompt: str, *, seed: int, changes: dict[str, Any] | None = None
) -> tuple[Tensor, float]:
    """Frames uint8 [T, H, W, 3] and their rate per second. The noise is that of a run's first prompt with this seed.

    `changes`: arguments of the video model in place of the run's, as `places` makes them. Raises UserError when the
    text encoder or the autoencoder are missing or others than the run's.
    """
    try:
        videos = model.video_model(**(changes or {}))
    except UserError as error:
        raise UserError(f"{error}; --weights says where they are on this machine") from error
    for remark in videos.remarks([prompt]):
        print(f"warning: {remark}", file=sys.stderr)
    videos.prepare([prompt], "cpu")
    noise = PromptNoise(seed, [0], model.latent_shape)
    with tqdm(total=model.clock.num_steps, desc="denoising", unit="step") as bar:
        denoiser, conditions = videos.reusing(model.denoiser), videos.encode([prompt])
        latents = videos.sample(denoiser, conditions, noise, model.clock, model.sampler, lambda *_: bar.update())
    return videos.decode(latents)[0], videos.fps


def places(config: dict[str, Any], weights: list[str], cache: str | None) -> dict[str, Any]:
    """What the command line changes of a model's configuration: where its weights are, and where it may keep files.

    Raises UserError for parts that the model does not have.
    """
    changes: dict[str, Any] = {}
    known = config.get("weights")
    if weights and isinstance(known, dict):
        parts = dict(text.partition("=")[::2] for text in weights)
        allowed = [part for part in known if part != "denoiser"]  # which the artefact has
        if wrong := [text for text in weights if text.partition("=")[0] not in allowed or "=" not in text]:
            raise UserError(f"--weights={wrong[0]} must be PART=PATH, with PART one of {', '.join(allowed)}")
        changes["weights"] = known | parts
    elif weights:
        if len(weights) > 1:
            raise UserError(f"--weights is given {len(weights)} times, this model has one folder of weights")
        changes["weights"] = weights[0]
    if "cache" in config:
        changes["cache"] = cache or DEFAULT_CACHE
        check_folder("--cache", changes["cache"])
    elif cache is not None:
        raise UserError(f"--cache={cache} has no use: this model keeps no files")
    return changes


def write_video(path: Path, frames: Tensor, fps: float, *, comment: str) -> None:
    """MP4 or GIF, by the ending of `path`."""
    if path.suffix.lower() == ".mp4":
        write_mp4(path, frames, fps, comment=comment)
        return
    first, *rest = [Image.fromarray(frame) for frame in frames.numpy()]
    with complete_or_nothing(path) as partial:
        first.save(partial, format="GIF", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vdq.export.sample", description=__doc__.splitlines()[0])
    parser.add_argument("artefact", type=Path, help="the folder that 'stages=[export]' wrote")
    parser.add_argument("--prompt", required=True, help="what the video shall show")
    parser.add_argument("--seed", type=int, help="of the noise; the run's own if not given")
    parser.add_argument("--out", type=Path, default=Path("video.mp4"), help="file to write, .mp4 or .gif (%(default)s)")
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="PATH or PART=PATH",
        help="folder of text encoder and autoencoder, if they are not where the run had them; of a model with a place "
        "for each part once a part, such as text_encoder=PATH",
    )
    parser.add_argument("--cache", help=f"folder for encoded prompts of large models ({DEFAULT_CACHE})")
    parser.add_argument("--threads", type=int, help="that compute; all cores if not given")
    return parser


if __name__ == "__main__":
    main()
