"""Our encoder and metric against EvalCrafter's own numbers, on the recorded random weights of the full network."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from vdq.metrics.clip import ClipMetric
from vdq.metrics.open_clip import OpenClip

MODES = {"evalcrafter": "evalcrafter_open_clip", "standard": "standard"}
pytestmark = pytest.mark.slow  # 151 million weights are drawn and written


@pytest.fixture(scope="module")
def recorded(fixtures):
    folder = fixtures / "clip"
    if not (folder / "clip.json").is_file():
        pytest.skip(f"{fixtures} has no clip/clip.json")
    return json.loads((folder / "clip.json").read_text()), load_file(folder / "clip.safetensors")


@pytest.fixture(scope="module")
def weights(recorded, recipe, tmp_path_factory):
    numbers, _ = recorded
    path = tmp_path_factory.mktemp("clip") / "open_clip_model.safetensors"
    shapes, seed = numbers["shapes"], numbers["weight_seed"]
    state = {key: torch.as_tensor(recipe.clip_tensor(seed, key, tuple(shape))) for key, shape in shapes.items()}
    save_file(state, path)
    return path


@pytest.mark.parametrize("preprocessing", MODES)
def test_equals_evalcrafter(recorded, recipe, weights, tmp_path, preprocessing):
    numbers, tensors = recorded
    encoder = OpenClip(str(weights), None, str(tmp_path), preprocessing)
    assert encoder.name == "ViT-B-32-quickgelu open_clip_model.safetensors"  # not OpenAI's weights, whatever the name
    metric = ClipMetric(encoder=encoder, label=preprocessing)
    for index, case in enumerate(numbers["cases"]):
        video = torch.from_numpy(recipe.video(case["video"]))
        metric.update(video[None], [case["prompt"]], index=[index])
        text = normalize(encoder.encode_text([case["prompt"]]), dim=-1)
        assert torch.allclose(text, tensors[f"{case['name']}.text_features"], atol=1e-5)
        assert encoder.truncated([case["prompt"]]) == (case["n_tokens"] == 77)
    expected = [case[MODES[preprocessing]] for case in numbers["cases"]]
    tolerance = {"clipsim": 1e-5 if preprocessing == "evalcrafter" else 2e-6, "clip_temp": 2e-6}
    for key, allowed in tolerance.items():
        found = metric.per_video()[f"{key}_{preprocessing}"]
        assert found == pytest.approx([case[key] for case in expected], abs=allowed), key
        assert metric.compute()[f"{key}_{preprocessing}"] == pytest.approx(
            numbers["dataset_average"][preprocessing][key], abs=allowed
        )
        for name, wrong in numbers["cases"][0]["negative_controls"].items():
            if preprocessing == "standard":
                assert abs(found[0] - wrong[key]) > 2e-6, name
