"""The full model's structure against the published facts (spec/opensora.md), and one step of it on random weights."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from vdq.backends import FakeQuantBackend
from vdq.diffusion.clock import StepClock
from vdq.diffusion.noise import PromptNoise
from vdq.diffusion.samplers import DDIMSampler
from vdq.methods.dynamic import DynamicMethod
from vdq.methods.static import StaticMethod
from vdq.models.opensora import OpenSoraModel
from vdq.quant.call_counter import CallCounter
from vdq.quant.convert import apply
from vdq.quant.layers import projections
from vdq.quant.observers import Observer
from vdq.quant.stats import LayerStats

CONF = Path(__file__).parents[2] / "conf"


def model(name: str, *overrides: str) -> OpenSoraModel:
    parts = ("denoiser", "autoencoder", "text_encoder")
    random = [f"model.weights.{part}=random" for part in parts]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=[f"model={name}", *random, *overrides])
    settings = {key: value for key, value in cfg.model.items() if key not in ("_target_", "name", "cache")}
    return OpenSoraModel(**settings)


@pytest.mark.parametrize(
    ("name", "latent_shape", "tokens", "space_scale"),
    [("opensora_v1_512", (4, 16, 64, 64), 1024, 1.0), ("opensora_v1_256", (4, 16, 32, 32), 256, 0.5)],
)
def test_published_sizes(name, latent_shape, tokens, space_scale):
    full = model(name)
    assert (full.latent_shape, full.fps, full.random) == (latent_shape, 8, True)
    net = full.structure
    assert sum(p.numel() for p in net.parameters()) == 759_620_768
    assert net.pos_embed.shape == (1, tokens, 1152) and net.y_embedder.y_embedding.shape == (120, 4096)
    assert net.pos_embed.is_meta
    quantized = [p.fqn for p in projections(net) if full.quantizable(p.fqn)]
    assert len(quantized) == 364 and len(projections(net)) == 370
    # Positions 0..31 of the 512-pixel grid, whatever the size: the first half encodes the column (section 2.3).
    column = net.position_tables()["pos_embed"][0, 1, :2]
    expected = torch.tensor([1 / space_scale, 1 / space_scale * 10000 ** (-1 / 288)], dtype=torch.float64).sin()
    torch.testing.assert_close(column.double(), expected, rtol=1e-6, atol=1e-7)


def test_statistics_of_20_steps_stay_below_300_mb():
    net = model("opensora_v1_512").structure
    widths = {p.input_fqn: p.weight.shape[1] for p in projections(net) if p.fqn.startswith("blocks.")}
    stats = [LayerStats.empty(20, width, "meta") for width in widths.values()]
    size = sum(t.numel() * t.element_size() for s in stats for t in (s.min, s.max, s.abs_sum, s.rows))
    assert len(stats) == 28 * 9 and size < 300e6


def test_size_and_length_are_overrides():
    assert model("opensora_v1_512", "model.image_size=[256,384]", "model.num_frames=8").latent_shape == (4, 8, 32, 48)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tsq_tsw", "dynamic"])
def test_one_step_of_the_full_model_on_random_weights(method):
    """All 364 layers run, and 8 bits stay near full precision also on weights without meaning."""
    small = model("opensora_v1_512", "model.image_size=[64,64]", "model.num_frames=2")
    sampler, clock = DDIMSampler(steps=1), StepClock(1)
    net = small.denoiser
    conditions = small.encode(["a kite", "a reef with two turtles"])

    def sample(denoiser):
        return small.sample(denoiser, conditions, PromptNoise(0, [0, 1], small.latent_shape), clock, sampler)

    with Observer(net, clock, small.quantizable) as observer:
        expected = sample(net)
    stats = observer.stats(num_prompts=2)
    settings = {"weight_bits": 8, "act_bits": 8, "alpha": 0.5, "num_time_ranges": "per_step"}
    method = StaticMethod(**settings) if method == "tsq_tsw" else DynamicMethod(**settings)
    state = method.convert(net, stats, num_steps=1, quantizable=small.quantizable)
    assert len(state.layers) == 364
    quantized = apply(net, state, clock, FakeQuantBackend())
    with CallCounter(quantized) as counter:
        result = sample(quantized)
    assert counter.total == 364
    assert 0 < (result - expected).norm() / expected.norm() < 0.05
