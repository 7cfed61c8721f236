"""The training script: its loss against torch.distributions, and a whole run in miniature that is interrupted."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch.distributions import Normal, kl_divergence

from vdq.diffusion.schedule import iddpm_posterior
from vdq.models.shapes import WEIGHTS
from vdq.models.shapes_nets import build_denoiser
from vdq.shapes import train
from vdq.shapes.training.denoiser import DenoiserTraining


@pytest.fixture(scope="module")
def denoiser() -> DenoiserTraining:
    return DenoiserTraining(torch.zeros(4, 4, 16, 8, 8, dtype=torch.float16), steps=10)


def test_the_bound_is_the_divergence_of_the_posteriors(denoiser):
    """Against torch.distributions; the posterior itself is proven on the recorded sampler."""
    generator = torch.Generator().manual_seed(0)
    x0, noise, eps, v = torch.randn(4, 3, 4, 2, 2, 2, generator=generator).unbind()
    timestep = torch.tensor([1, 500, 999])
    x = denoiser.schedule.q_sample(x0, timestep, noise)
    bound = denoiser.variance_bound(x0, x, timestep, eps, v)
    for row, t in enumerate(timestep.tolist()):
        step = 999 - t
        model = iddpm_posterior(denoiser.schedule, step, x[row], eps[row], v[row])
        mean = (
            denoiser.schedule.posterior_mean_coef1[step] * x0[row]
            + denoiser.schedule.posterior_mean_coef2[step] * x[row]
        )
        true = Normal(mean.float(), denoiser.schedule.posterior_log_variance[step].mul(0.5).exp().float())
        expected = kl_divergence(true, Normal(model.mean, (0.5 * model.log_variance).exp())) / torch.log(
            torch.tensor(2.0)
        )
        torch.testing.assert_close(bound[row], expected, rtol=2e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_the_bound_trains_the_variance_only(denoiser, monkeypatch):
    latents = torch.randn(2, 4, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    batch = (latents, ["a red circle", "blue star"], torch.tensor([0, 0]))

    def bias_gradient() -> torch.Tensor:
        """Of the last layer, [4 pixels of a patch, noise and variance channels]."""
        denoiser.zero_grad()
        torch.manual_seed(0)
        denoiser.training_step(batch, 0).backward()
        return denoiser.net.final_layer.linear.bias.grad.view(4, 8).clone()

    both = bias_gradient()
    monkeypatch.setattr(denoiser, "variance_bound", lambda *_: torch.zeros(1))
    error_only = bias_gradient()
    assert torch.equal(both[:, :4], error_only[:, :4]) and both[:, :4].abs().min() > 0
    assert both[:, 4:].abs().min() > 0 and error_only[:, 4:].abs().max() == 0


def test_captions_are_masked_behind_their_end(denoiser):
    y, mask = denoiser.captions(["a red circle", "blue star going round"])
    assert y.shape == (2, 1, 24, 128) and mask.sum(1).tolist() == [4, 5]


def test_training_goes_on_from_a_folder_of_weights():
    module = DenoiserTraining(torch.zeros(1, 4, 16, 8, 8), start=str(WEIGHTS))
    for net, name in ((module.net, "denoiser"), (module.text, "text_encoder")):
        state = net.state_dict()
        for key, tensor in load_file(WEIGHTS / f"{name}.safetensors").items():
            assert torch.equal(state[key], tensor)


def test_single_frames_go_through_the_same_weights(denoiser):
    """Against networks that are really built for one frame, of the number that each frame has in its video."""
    weights = denoiser.net.state_dict()
    torch.nn.init.normal_(weights["final_layer.linear.weight"], std=0.1)
    y, mask = denoiser.captions(["a red circle", "a blue star"])
    x, timestep, frames = torch.randn(2, 4, 1, 8, 8), torch.tensor([500, 20]), torch.tensor([0, 9])
    result = denoiser.denoise(x, timestep, y, mask, frames)
    for row, frame in enumerate(frames):
        single = build_denoiser(frames=1)
        single.load_state_dict(weights | {"pos_embed_temporal": denoiser.net.pos_embed_temporal[:, frame : frame + 1]})
        rows = slice(row, row + 1)
        expected = single(x[rows], timestep[rows], y[rows], mask[rows])
        torch.testing.assert_close(result[rows], expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_every_part_trains_resumes_and_is_skipped_when_done(tmp_path, monkeypatch, capsys):
    def run(part: str, *settings: str) -> dict:
        arguments = [
            part,
            "--workdir",
            str(tmp_path / "work"),
            "--weights",
            str(tmp_path / "weights"),
            "--set",
            *settings,
        ]
        monkeypatch.setattr(sys, "argv", ["train", *arguments])
        train.main()
        return json.loads((tmp_path / "weights" / f"{part}.json").read_text())

    small = ("epoch_steps=1", "batch_size=2")
    frames = ("frame_batch_size=3",)
    for part in ("autoencoder", "clip"):
        card = run(part, "steps=2", *small)
        assert card["measured"] and card["sha256"].keys() == {f"{part}.safetensors"}
    assert run("latents", "videos=2")["videos"] == 2

    seen, step = [], DenoiserTraining.training_step

    def stop_after_two(module, batch, index):
        seen.append(module.global_step)
        if len(seen) == 3:
            raise RuntimeError("the power fails")
        return step(module, batch, index)

    monkeypatch.setattr(DenoiserTraining, "training_step", stop_after_two)
    with pytest.raises(RuntimeError, match="the power fails"):
        run("denoiser", "steps=4", *small, *frames)
    assert not (tmp_path / "weights" / "denoiser.json").exists()
    assert run("denoiser", "steps=4", *small, *frames)["final_loss"] > 0
    assert seen == [0, 1, 2, 2, 3]

    capsys.readouterr()
    run("denoiser")
    assert "denoiser: done" in capsys.readouterr().out


def test_the_text_encoder_begins_with_order(denoiser):
    """The word that follows changes what a word becomes, by far more than T5's own start lets it."""
    batch = denoiser.tokenizer(["from left to right", "from right to left"], return_tensors="pt")
    one, other = denoiser.text(**{k: batch[k] for k in ("input_ids", "attention_mask")}).last_hidden_state.detach()
    assert (one[1] - other[3]).norm() > 0.1 * one[1].norm()  # "left" after "from" and after "to"
