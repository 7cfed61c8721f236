"""Named models have the structure that was published, and are checked without any file."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir

from vdq.installation import CONF
from vdq.quant.layers import projections
from vdq.stages.configuration import made
from vdq.stages.experiment import Experiment

# Billions of parameters of the transformers as their cards name them or as others counted them, and linears: those of a
# block times the number of blocks, by the classes' source.
PUBLISHED = {
    "wan2_1_1_3b": (1.42, 10 * 30),
    "wan2_1_14b": (14.3, 10 * 40),
    "wan2_2_5b": (5.0, 10 * 30),
    "wan2_2_a14b": (28.6, 2 * 10 * 40),
    "cogvideox_2b": (1.69, 6 * 30),
    "cogvideox_5b": (5.57, 6 * 42),
    "ltx_video": (1.92, 10 * 28),
    "hunyuan_video": (12.8, 12 * 20 + 5 * 40),
    "hunyuan_video_1_5": (8.33, 12 * 54),
    "latte": (1.06, 10 * 28 + 6 * 28),
    "mochi": (10.0, 12 * 48 - 3),  # the last block does not hand its text on
    "allegro": (2.77, 10 * 32),
}


def config(name: str, *overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=[f"model={name}", "quant=tsq_tsw", "bits=w8a8", *overrides])


QUICK = ("wan2_1_1_3b", "wan2_2_a14b", "hunyuan_video_1_5")
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in sorted(PUBLISHED)]


@pytest.mark.parametrize("name", NAMES)
def test_a_named_model_has_the_published_structure_without_a_file(name):
    cfg = config(name)
    model, sampler = made("model", cfg.model), made("sampler", cfg.sampler)
    billions, linears = PUBLISHED[name]
    parameters = list(model.structure.parameters())
    assert all(parameter.is_meta for parameter in parameters)
    assert sum(parameter.numel() for parameter in parameters) / 1e9 == pytest.approx(billions, rel=0.01)
    assert len(projections(model.structure, model.quantizable)) == linears
    model.check(sampler)
    drawn = made("model", config(name, "model.pretrained=random").model)
    assert drawn.random and len(drawn.timesteps(sampler)) == sampler.steps


def test_all_named_models_are_tested():
    others = {"diffusers", "shapes", "opensora_v1_256", "opensora_v1_512"}
    assert {path.stem for path in (CONF / "model").glob("*.yaml")} - others == set(PUBLISHED)


def test_a_run_of_a_named_model_is_named_without_weights_or_network():
    experiment = Experiment(config("wan2_1_1_3b", "dataset=shapes"))
    assert len(experiment.identity.signature) == 10
    assert experiment.model.weights_sha256 == Experiment(config("wan2_1_1_3b", "bits=w4a8")).model.weights_sha256
