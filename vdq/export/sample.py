"""Videos from an artefact: ``python -m vdq.export.sample path/to/artefact --prompt "a small red circle"``.

ONNX Runtime computes the denoiser of an `onnx_qdq` folder, the run's own backend that of a `packed` one. The text
encoder and the autoencoder are those of the model that was exported.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from vdq.data.video import write_mp4
from vdq.diffusion.noise import PromptNoise
from vdq.export import artefact, onnx_runtime, packed
from vdq.export.model import ArtefactModel
from vdq.files import check_folder, complete_or_nothing

ENDINGS = (".mp4", ".gif")


def main(arguments: list[str] | None = None) -> Path:
    args = _parser().parse_args(arguments)
    try:
        if args.out.suffix.lower() not in ENDINGS:
            raise ValueError(f"--out={args.out} must end in {' or '.join(ENDINGS)}")
        if not args.prompt.strip():
            raise ValueError("--prompt is empty, must say what the video shall show")
        if args.threads is not None and args.threads < 1:
            raise ValueError(f"--threads={args.threads} must be at least 1")
        check_folder("--out: its folder", args.out.parent)
        if args.out.is_dir():
            raise ValueError(f"--out={args.out} is a folder, must be a file")
        model = load(args.artefact, threads=args.threads)
        seed = model.contents["seed"] if args.seed is None else args.seed
        frames, fps = sample(model, args.prompt, seed=seed, weights=args.weights)
        write_video(args.out, frames, fps, comment=args.prompt)
    except ValueError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped, nothing was written")
    print(f"{args.out}: {len(frames)} frames, seed {seed}")
    return args.out


def load(path: Path, *, threads: int | None = None) -> ArtefactModel:
    """An artefact of either kind; `threads`: None is all cores. Raises ValueError for another one, or if damaged."""
    kind = artefact.read_manifest(path)["kind"]
    if kind == onnx_runtime.KIND:
        return onnx_runtime.load(path, threads=threads)
    if threads is not None:
        torch.set_num_threads(threads)
    return packed.load(path)  # which refuses what is neither


@torch.inference_mode()
def sample(model: ArtefactModel, prompt: str, *, seed: int, weights: str | None = None) -> tuple[Tensor, float]:
    """Frames uint8 [T, H, W, 3] and their rate per second. The noise is that of a run's first prompt with this seed.

    `weights`: where the text encoder and the autoencoder are, None: where the run had them. Raises ValueError when they
    are missing or others than the run's.
    """
    videos = model.video_model(**({} if weights is None else {"weights": weights}))
    for remark in videos.remarks([prompt]):
        print(f"warning: {remark}", file=sys.stderr)
    videos.prepare([prompt], "cpu")
    noise = PromptNoise(seed, [0], model.latent_shape)
    with tqdm(total=model.clock.num_steps, desc="denoising", unit="step") as bar:
        latents = model.sample(videos.encode([prompt]), noise, lambda *_: bar.update())
    return videos.decode(latents)[0], videos.fps


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
    parser.add_argument("artefact", type=Path, help="the folder that stages=[export] wrote")
    parser.add_argument("--prompt", required=True, help="what the video shall show")
    parser.add_argument("--seed", type=int, help="of the noise; the run's own if not given")
    parser.add_argument("--out", type=Path, default=Path("video.mp4"), help="file to write, .mp4 or .gif (%(default)s)")
    parser.add_argument("--weights", help="folder of text encoder and autoencoder, if it is not where the run had it")
    parser.add_argument("--threads", type=int, help="that compute; all cores if not given")
    return parser


if __name__ == "__main__":
    main()
