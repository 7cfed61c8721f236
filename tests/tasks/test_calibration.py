"""The calibration pass: what is observed, and what is left behind."""

import pytest
import torch

from vdq.diffusion.clock import StepClock
from vdq.diffusion.samplers import DDIMSampler
from vdq.quant import Stats
from vdq.tasks.calibration import Calibration
from vdq.tasks.generation import Generation

PROMPTS = ["a red square", "a blue circle moves", "an amber star"]
STEPS = 2


@pytest.fixture
def calibrate(model, trainer, tmp_path):
    def run(**settings: object) -> Stats:
        path = tmp_path / "stats.safetensors"
        task = Calibration(
            **{"path": path, "signature": "s", "model": model, "denoiser": model.denoiser, "clock": StepClock(STEPS)}
            | {"sampler": DDIMSampler(steps=STEPS), "prompts": PROMPTS, "indices": [0, 1, 2]}
            | settings
        )
        trainer.predict(task, return_predictions=False)
        return Stats.load(path)

    return run


def test_every_prompt_and_step_is_seen_once(calibrate, model):
    seen = []
    hook = model.denoiser.blocks[0].mlp.fc1.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    stats = calibrate(batch_size=2)
    hook.remove()
    assert (stats.num_prompts, stats.num_steps, stats.signature) == (3, STEPS, "s")
    layer = stats.layers["blocks.0.mlp.fc1"]
    # Batches of 2 and 1 prompts, each twice in a call (guidance), two steps each: oracle from the inputs themselves.
    assert [len(x) for x in seen] == [4, 4, 2, 2]
    for step in range(STEPS):
        x = torch.cat([seen[step], seen[STEPS + step]])
        torch.testing.assert_close(layer.min[step], x.amin((0, 1)))
        torch.testing.assert_close(layer.max[step], x.amax((0, 1)))
        torch.testing.assert_close(layer.absmax[step], x.abs().amax(1).mean(0))


def test_all_quantizable_inputs_are_recorded_and_no_others(calibrate):
    names = {"attn.qkv", "attn.proj", "attn_temp.qkv", "attn_temp.proj", "mlp.fc1", "mlp.fc2"}
    names |= {"cross_attn.q_linear", "cross_attn.kv_linear", "cross_attn.proj"}
    assert set(calibrate().layers) == {f"blocks.0.{name}" for name in names}


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batch_size_changes_no_statistics(calibrate, batch_size):
    stats, expected = calibrate(batch_size=batch_size), calibrate(batch_size=2)
    for fqn, layer in stats.layers.items():
        for name in ("min", "max", "absmax"):
            a, b = getattr(layer, name), getattr(expected.layers[fqn], name)
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * float(b.abs().max()))


def test_noise_is_not_that_of_the_evaluation(calibrate, model, trainer, tmp_path, monkeypatch):
    """No method is fitted to the noise that it is scored on."""
    starts = []

    def sample(self, denoiser, conditions, noise, *_) -> torch.Tensor:
        starts.append(noise.initial())
        return starts[-1]

    monkeypatch.setattr(type(model), "sample", sample)
    common = {"model": model, "denoiser": model.denoiser, "clock": StepClock(STEPS), "prompts": PROMPTS}
    task = Generation(**common, sampler=DDIMSampler(steps=STEPS), indices=[0], folder=tmp_path)
    trainer.predict(task, return_predictions=False)
    with pytest.raises(ValueError, match="saw no input"):
        calibrate(indices=[0])
    assert not torch.allclose(*starts, rtol=0.1)


def test_observers_leave_with_the_pass(calibrate, model):
    calibrate()
    assert not any(module._forward_pre_hooks for module in model.denoiser.modules())


def test_bad_activations_name_layer_and_step_and_write_nothing(calibrate, model, tmp_path):
    model.denoiser.blocks[0].mlp.fc1.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"layer blocks\.0\.mlp\.fc2 received NaN or infinite values at step 0"):
        calibrate()
    assert not list(tmp_path.iterdir())
