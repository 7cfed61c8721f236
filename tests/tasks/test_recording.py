"""What is recorded for methods that judge by the output of layers."""

import pytest
import torch

from vdq.diffusion.clock import StepClock
from vdq.diffusion.noise import PromptNoise
from vdq.diffusion.samplers import DDIMSampler
from vdq.diffusion.schedule import ddim_step
from vdq.models.guidance import guided
from vdq.quant.probe import StepProbe
from vdq.quant.recorded_inputs import RecordedInputs
from vdq.quant.search import ROWS
from vdq.tasks.recording import PROBED, Recording

PROMPTS = ["a red square", "a blue circle moves", "an amber star"]
STEPS = 3


@pytest.fixture
def record(model, trainer, tmp_path):
    def run(**settings: object) -> RecordedInputs:
        path = tmp_path / "samples.safetensors"
        task = Recording(
            **{"path": path, "signature": "s", "model": model, "denoiser": model.denoiser, "clock": StepClock(STEPS)}
            | {"sampler": DDIMSampler(steps=STEPS), "prompts": PROMPTS, "indices": [0, 1, 2]}
            | settings
        )
        trainer.predict(task, return_predictions=False)
        return RecordedInputs.load(path)

    return run


@pytest.fixture
def sampled(model):
    """(guided estimates of every step, latents) of one prompt, its activations probed at one step or at none."""
    sampler, clock = DDIMSampler(steps=STEPS), StepClock(STEPS)

    def run(index: int, probed: int = -1) -> tuple[list[torch.Tensor], torch.Tensor]:
        conditions, estimates = model.encode(PROMPTS[index : index + 1]), []
        noise = PromptNoise(42, [index], model.latent_shape, purpose="calibration ")
        x = noise.initial()
        with torch.inference_mode(), StepProbe(model.denoiser, clock, model.quantizable, probed):
            for step, timestep in enumerate(sampler.schedule.timesteps.tolist()):
                clock.set(step)
                eps, variance = guided(model.denoiser, x, timestep, conditions)
                estimates.append(eps)
                x = ddim_step(sampler.schedule, step, x, eps)
        return estimates, x

    return run


def test_inputs_of_every_layer_and_step(record, model):
    seen = []
    hook = model.denoiser.blocks[0].mlp.fc1.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    found = record(indices=[0, 1])
    hook.remove()
    assert found.signature == "s"
    names = {"attn.qkv", "attn.proj", "attn_temp.qkv", "attn_temp.proj", "mlp.fc1", "mlp.fc2"}
    names |= {"cross_attn.q_linear", "cross_attn.kv_linear", "cross_attn.proj"}
    assert set(found.inputs) == {f"blocks.0.{name}" for name in names}
    assert all(x.shape[:2] == (STEPS, 2 * ROWS) for x in found.inputs.values())
    rows = {tuple(row.tolist()) for row in seen[1].half().flatten(0, -2)}  # of the first prompt's second step
    assert {tuple(row.tolist()) for row in found.inputs["blocks.0.mlp.fc1"][1][:ROWS]} <= rows
    places = found.places["blocks.0.mlp.fc1"][1][:ROWS]
    assert torch.equal(seen[1].half().flatten(0, -2)[places], found.inputs["blocks.0.mlp.fc1"][1][:ROWS])


def test_steps_are_judged_by_what_they_do_to_the_latents(record, sampled):
    found = record()
    estimates = [sampled(index)[0] for index in range(3)]
    for step in range(1, STEPS):
        change = [(e[step] - e[step - 1]).abs().sum() / e[step - 1].abs().sum() for e in estimates]
        assert float(found.step_change[step]) == pytest.approx(float(torch.stack(change).mean()), rel=1e-3)
    assert found.step_change[0] == 0
    for step in range(STEPS):
        errors = [(sampled(i, probed=step)[1] - sampled(i)[1]).square().mean() for i in range(PROBED)]
        assert float(found.step_error[step]) == pytest.approx(float(torch.stack(errors).mean()), rel=1e-2)
