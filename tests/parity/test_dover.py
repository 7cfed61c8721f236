"""DOVER against recordings of the upstream implementation: every case in the folder `dover` of the fixtures."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vdq.metrics.dover import views
from vdq.metrics.dover.convnext import ConvNeXt3D, ConvNeXtV23D
from vdq.metrics.dover.model import BRANCHES, Dover, build_dover, build_dover_mobile
from vdq.metrics.dover.scores import percentage
from vdq.metrics.dover.swin import SwinTransformer3D
from vdq.metrics.dover.views import AestheticView, FrameSampling, TechnicalView

BACKBONES = {cls.__name__: cls for cls in (SwinTransformer3D, ConvNeXt3D, ConvNeXtV23D)}
BUILDERS = {"dover.yml": build_dover, "dover-mobile.yml": build_dover_mobile}
TRAINING_ONLY = {"cls", "use_checkpoint"}  # names in small.json that are no settings of ours


@pytest.fixture(scope="module")
def folder(fixtures: Path) -> Path:
    if not (fixtures / "dover").is_dir():
        pytest.skip(f"{fixtures} has no folder dover")
    return fixtures / "dover"


def recorded(folder: Path, pattern: str) -> list[dict]:
    """Content of all files that match; skips the test if there are none."""
    files = sorted(folder.glob(pattern))
    if not files:
        pytest.skip(f"{folder} has no {pattern}")
    return [json.loads(path.read_text()) for path in files]


def cases(folder: Path, pattern: str, entry: str = "cases") -> Iterator[dict]:
    for content in recorded(folder, pattern):
        assert content[entry]
        yield from content[entry]


def small_cases(roots: list[Path]) -> Iterator[tuple[Path, dict]]:
    """Each case of a small model once, with the folder of its files."""
    seen: set[str] = set()
    for folder in (root / "dover" for root in roots):
        for case in cases(folder, "small*.json"):
            if case["name"] not in seen:
                seen.add(case["name"])
                yield folder, case


def small_model(case: dict) -> Dover:
    backbones = {}
    for branch in BRANCHES:
        settings = {key: value for key, value in case[branch].items() if key not in TRAINING_ONLY}
        backbones[f"{branch}_backbone"] = BACKBONES[case[branch]["cls"]](**settings)
    hidden = case["technical_head"]["hidden_channels"]
    return Dover(**backbones, hidden_channels=hidden, name=case["name"])


def watched(model: Dover, branch: str, clips: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Score map of the clips and the output of every module of the backbone, all with channels second."""
    seen: dict[str, Tensor] = {}
    backbone = model.get_submodule(f"{branch}_backbone")
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output}))
        for name, module in backbone.named_modules()
        if name.count(".") <= 1
    ]
    with torch.inference_mode():
        score_map = model.score_map(clips, branch)
    for hook in hooks:
        hook.remove()
    moved = {name: value.movedim(-1, 1) for name, value in seen.items() if name}
    return score_map, moved | {"backbone_out": seen[""]}


def close(actual: Tensor, expected: Tensor, atol: float, what: str) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0, msg=lambda text: f"{what}: {text}")


def test_state_dict_layout_of_the_published_models(folder: Path, recipe: ModuleType) -> None:
    for layout in recorded(folder, "keys_*.json"):
        with torch.device("meta"):
            model = BUILDERS[layout["config"]]()
        values = model.state_dict()
        actual = [(key, list(value.shape), str(value.dtype)) for key, value in values.items()]
        assert actual == [(entry["key"], entry["shape"], f"torch.{entry['dtype']}") for entry in layout["keys"]]
        parameters = {key for key, _ in model.named_parameters()}
        assert parameters == {entry["key"] for entry in layout["keys"] if entry["kind"] == "param"}
        assert sum(parameter.numel() for parameter in model.parameters()) == layout["n_params"]


def test_relative_positions_equal_upstream(folder: Path, recipe: ModuleType) -> None:
    index = SwinTransformer3D(embed_dim=24, depths=(1,), num_heads=(1,), frag_biases=(True,)).layers[0].blocks[0].attn
    index = index.relative_position_index.numpy()
    layouts = [layout for layout in recorded(folder, "keys_*.json") if "relative_position_index_corner" in layout]
    for layout in layouts:
        assert recipe.sha(index) == layout["relative_position_index_sha256_int64"]


def test_small_models_in_every_activation_and_position(every_fixtures: list[Path]) -> None:
    for folder, case in small_cases(every_fixtures):
        model = small_model(case)
        weights = load_file(folder / case["weights"])
        keys = model.load_state_dict(weights, strict=False)
        assert not keys.unexpected_keys and all(key.endswith("position_index") for key in keys.missing_keys)
        tensors = load_file(folder / case["tensors"])
        for branch in BRANCHES:
            what = f"{case['name']} {branch}"
            score_map, seen = watched(model, branch, tensors[f"in.{branch}"])
            prefix = f"act.{branch}."
            expected = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            assert len(expected) > 4
            for name, value in expected.items():
                close(seen[name], value, 2e-5, f"{what} {name}")
            close(score_map, tensors[f"score_map.{branch}"], 1e-6, what)
            with torch.inference_mode():
                raw = model(tensors[f"in.{branch}"], branch).tolist()
            assert raw == pytest.approx(case["per_clip"][branch], rel=0, abs=5e-7), what
            assert np.mean(raw) == pytest.approx(case["scores"][branch], rel=0, abs=5e-7), what


def test_small_inputs_are_normalised_videos(every_fixtures: list[Path], recipe: ModuleType) -> None:
    for folder, case in small_cases(every_fixtures):
        tensors = load_file(folder / case["tensors"])
        for branch, specs in case["input_videos"].items():
            frames = torch.from_numpy(np.concatenate([recipe.video(spec) for spec in specs]))
            close(views.normalize(frames, len(specs)), tensors[f"in.{branch}"], 1e-6, f"{case['name']} {branch}")


def test_frame_indices_with_recorded_draws(folder: Path) -> None:
    count = 0
    for case in cases(folder, "frame_indices*.json"):
        frames = FrameSampling(case["fsize_t"], case["fragments_t"], case["frame_interval"], case.get("num_clips", 1))
        number = case["num_frames"]
        assert (frames.choices(number) > 1) <= case["random"], "upstream draws from one place as well"
        starts = torch.tensor(case["rnd_t"]) if case["random"] else torch.zeros(frames.repeats, frames.fragments).long()
        assert starts.max() < frames.choices(number)
        assert views.frame_indices(frames, number, starts).tolist() == case["indices"], case
        count += case["random"]
    assert count > 0


def test_frame_indices_of_the_published_views(folder: Path) -> None:
    """Both branches in upstream's order of draws, from numpy's stream."""
    for case in cases(folder, "frame_indices*.json", "video_order"):
        stream = np.random.RandomState(case["np_seed"])
        for branch, view in (("technical", TechnicalView()), ("aesthetic", AestheticView())):
            choices = view.frames.choices(case["num_frames"])
            shape = (view.frames.repeats, view.frames.fragments)
            drawn = case["num_frames"] // view.frames.fragments > view.frames.length * view.frames.interval
            starts = torch.from_numpy(stream.randint(0, choices, shape)) if drawn else torch.zeros(shape).long()
            assert views.frame_indices(view.frames, case["num_frames"], starts).tolist() == case[branch], case


def technical_view(parameters: dict, **others: Any) -> TechnicalView:
    names = {
        "clips": "num_clips",
        "clip_frames": "clip_len",
        "frame_interval": "frame_interval",
        "fragments_h": "fragments_h",
        "fragments_w": "fragments_w",
        "fragment_h": "fsize_h",
        "fragment_w": "fsize_w",
        "aligned": "aligned",
    }
    return TechnicalView(**{ours: parameters[theirs] for ours, theirs in names.items()}, **others)


def aesthetic_view(parameters: dict) -> AestheticView:
    names = {
        "clips": "num_clips",
        "clip_frames": "clip_len",
        "time_fragments": "t_frag",
        "frame_interval": "frame_interval",
        "height": "size_h",
        "width": "size_w",
    }
    return AestheticView(**{ours: parameters[theirs] for ours, theirs in names.items()})


def channels_first(frames: Tensor) -> np.ndarray:
    """[n, H, W, 3] -> [3, n, H, W], in which the views were recorded."""
    return frames.movedim(-1, 0).contiguous().numpy()


def test_views_with_recorded_draws(folder: Path, recipe: ModuleType) -> None:
    patterns = sorted(folder.glob("views*.safetensors"))
    slices = {key: value for path in patterns for key, value in load_file(path).items()}
    for case in cases(folder, "views*.json"):
        video = torch.from_numpy(recipe.video(case["video"]))
        assert recipe.sha(video.numpy()) == case["video_sha256"]
        name, technical, aesthetic = case["name"], case["technical"], case["aesthetic"]

        view = technical_view(case["sample_types"]["technical"], stale_grid=technical["upsampled_to"] is not None)
        large = views.enlarge(video, view)
        assert list(large.shape[1:3]) == (technical["upsampled_to"] or list(video.shape[1:3]))
        index = torch.tensor(case["frame_inds"]["technical"])
        offsets = torch.tensor([technical["rnd_h"], technical["rnd_w"]])
        mosaic = views.cut_fragments(large, index, view, tuple(video.shape[1:3]), offsets)
        row = slices[f"{name}.technical.row100_frames"]
        assert np.array_equal(channels_first(mosaic)[:, ::16, 100], row), name
        assert recipe.sha(channels_first(mosaic)) == technical["sha256_as_uint8"], name
        check_slice(views.normalize(mosaic, view.clips), technical, slices[f"{name}.technical.model_input_slice"])

        view = aesthetic_view(case["sample_types"]["aesthetic"])
        small = views.resize(video[torch.tensor(case["frame_inds"]["aesthetic"])], view)
        patch = slices[f"{name}.aesthetic.frames0_31_patch"]
        assert np.array_equal(channels_first(small)[:, [0, 31], 40:72, 96:128], patch), name
        assert recipe.sha(channels_first(small)) == aesthetic["sha256_uint8"], name
        check_slice(views.normalize(small, view.clips), aesthetic, slices[f"{name}.aesthetic.model_input_slice"])


def check_slice(clips: Tensor, expected: dict, part: Tensor) -> None:
    assert list(clips.shape) == expected["model_input_shape"]
    close(clips[:, :, 3::16, 30:36, 60:70], part, 1e-6, "model input")


def test_offsets_are_drawn_from_upstreams_range(folder: Path, recipe: ModuleType) -> None:
    """Rows, then columns, from torch's stream: the recorded draws come out where the frames need none."""
    for case in cases(folder, "views*.json"):
        view = technical_view(case["sample_types"]["technical"])
        spec = case["video"]
        generator = torch.Generator().manual_seed(case["seed"])
        offsets = views.draw_offsets(view, spec["H"], spec["W"], generator)
        assert offsets.tolist() == [case["technical"]["rnd_h"], case["technical"]["rnd_w"]], case["name"]


def test_percentages_equal_both_programs(folder: Path) -> None:
    for row in cases(folder, "fusion*.json", "rows"):
        raw = {branch: row[f"raw_{branch}"] for branch in BRANCHES}
        ours = {"VQA_A": percentage(raw["aesthetic"], "aesthetic"), "VQA_T": percentage(raw["technical"], "technical")}
        assert ours == {key: pytest.approx(row["evalcrafter"][key], rel=1e-9) for key in ours}
        # DOVER's program has its constants on the wrong branches.
        swapped = {
            "VQA_A": percentage(raw["aesthetic"], "technical", "dover"),
            "VQA_T": percentage(raw["technical"], "aesthetic", "dover"),
        }
        assert swapped == {key: pytest.approx(row["dover_set_head"][key], rel=1e-9) for key in swapped}


@pytest.mark.slow
def test_full_models_from_video_to_percentage(folder: Path, recipe: ModuleType) -> None:
    for case in cases(folder, "full*.json"):
        model = BUILDERS[case["config"]]()
        digests = recipe.load_into(model, recipe.dover_tensor, case["weight_seed"])
        assert digests == case["weight_sha256_16"]
        tensors = load_file(folder / f"{case['name']}.safetensors")
        clips = full_views(case, torch.from_numpy(recipe.video(case["video"])))
        scores = {}
        for branch in BRANCHES:
            raw = np.mean(
                [check_clip(model, branch, clips[branch], number, tensors) for number in range(len(clips[branch]))]
            )
            assert raw == pytest.approx(case[branch]["raw_f64"], rel=0, abs=5e-7)
            scores[f"VQA_{branch[0].upper()}"] = percentage(raw, branch)
        assert scores == {key: pytest.approx(case["scores"][key], abs=2e-3) for key in scores}


def full_views(case: dict, video: Tensor) -> dict[str, Tensor]:
    index = {branch: torch.tensor(case["frame_inds"][branch]) for branch in BRANCHES}
    offsets = torch.tensor([case["rnd_h"], case["rnd_w"]])
    view, small = TechnicalView(), AestheticView()
    mosaic = views.cut_fragments(video, index["technical"], view, tuple(video.shape[1:3]), offsets)
    resized = views.resize(video[index["aesthetic"]], small)
    return {"technical": views.normalize(mosaic, view.clips), "aesthetic": views.normalize(resized, small.clips)}


def check_clip(model: nn.Module, branch: str, clips: Tensor, number: int, tensors: dict[str, Tensor]) -> float:
    """Compares one clip's score map and, of the first clip, a sample of each stage; returns the raw score."""
    score_map, seen = watched(model, branch, clips[number : number + 1])
    close(score_map, tensors[f"{branch}.score_map"][number : number + 1], 5e-6, f"{branch} clip {number}")
    if number == 0:
        expected = {name: tensors[f"{branch}.{name}.slice"] for name in seen if f"{branch}.{name}.slice" in tensors}
        assert len(expected) > 4
        for name, value in expected.items():
            part = seen[name][:, ::16, ::4, ::2, ::2].flatten()[:512]
            close(part, value[: len(part)], 5e-5, f"{branch} {name}")
    return score_map.double().mean().item()
