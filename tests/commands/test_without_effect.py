"""Options that would do nothing are refused when the user sets them; what does something is not."""

import pytest
from hydra import compose, initialize_config_dir

from vdq.commands import without_effect
from vdq.errors import UserError
from vdq.models.shapes import ShapesModel
from vdq.stages.configuration import CONF
from vdq.stages.experiment import Experiment

REFUSED = {
    "tabulate=true": "tabulate=true has no effect: it ends a sweep",
    "reseeded=true": "reseeded=true has no effect: only where quant=fp16 is sampled",
    "export=packed": "export=packed has no effect: .* 'stages=\\[export\\]' does",
    "benchmark.rounds=9": "benchmark.rounds=9 has no effect: .* 'stages=\\[benchmark\\]' does",
    "metrics=fidelity stages=[sample]": "metrics=fidelity has no effect: stages=\\[sample\\] scores nothing",
    "batch_size=2 stages=[tabulate]": "batch_size=2 has no effect: stages=\\[tabulate\\] samples nothing",
    "quant=asq stages=[choose_alpha]": "quant=asq has no effect: .* takes the methods of the grid",
    "bits=w4a4 quant=fp16": "bits=w4a4 has no effect: quant=fp16 is not quantized",
    "backend.weight_sets=keep quant=fp16": "backend.weight_sets=keep has no effect: quant=fp16 is not quantized",
    "bits=w4a4 stages=[calibrate]": "bits=w4a4 has no effect: the statistics are the same for all",
    "alpha=half quant=cw_tw": "alpha=half has no effect: quant=cw_tw takes no alpha from it",
    "dataset.calibration_prompts=conf/config.yaml quant=dynamic": "has no effect: quant=dynamic is not calibrated",
    "quant.momentum=0.5": "quant.momentum=0.5 has no effect: every range has one step",
    "quant=asq quant.alpha=null quant.ema_order=descending_t": "alpha=null smooths nothing",
    "quant=dynamic quant.num_time_ranges=2": "alpha=null smooths nothing",
    "quant=asq_tsw quant.alpha=null quant.num_time_ranges=2": "activations have act_time_ranges",
    "quant=static_plus quant.rounding=nearest quant.damping=0.1": "only rounding=gptq damps",
    "quant=dvd_quant bits=w4a8 quant.delta=0.2": "all steps have act_bits=8, nothing is switched",
    "quant=qvd quant.shift=null quant.absorb=original": "shift=null moves nothing",
    "sampler.guidance_scale=1 sampler.guidance_channels=4": "guidance_channels=4 has no effect: .*guides none",
    "sampler.guidance_channels=0 sampler.guidance_scale=5": "guidance_scale=5 has no effect: .*guides none",
    "model=diffusers model.pretrained=conf model.revision=x": "revision=x has no effect: .*=conf is no repository",
    "model=diffusers model.pretrained=conf model.structure={a:1}": "no effect: .*=conf is a folder, whose files say it",
    "stages=[benchmark] benchmark.hidden_size=64": "hidden_size=64 has no effect: .* has no block",
    "stages=[benchmark] benchmark.parts=[block] benchmark.call={num_frames:9}": "only blocks of models of diffusers",
    "stages=[benchmark] benchmark.parts=[block] benchmark.videos=2": "videos=2 has no effect: .* has no sampler",
    "stages=[evaluate] videos=x quant=asq": "quant=asq has no effect: a folder of videos is scored without a model",
    "force=true stages=[tabulate]": "force=true has no effect: stages=\\[tabulate\\] makes nothing of it again",
    "force=[evaluate] stages=[sample]": "has no effect: stages=\\[sample\\] makes nothing of it again",
    "force=[calibrate] quant=dynamic": "has no effect: quant=dynamic is not calibrated",
}
ACCEPTED = (
    "quant=tsq_tsw bits=w6a8 backend.weight_sets=keep alpha=half batch_size=2 logger=csv",
    "quant=asq quant.momentum=0.5 quant.alpha=0.3 dataset.num_prompts=2",
    "quant=fp16 reseeded=true sampler.guidance_scale=5 sampler.guidance_channels=4 metrics=fidelity",
    "stages=[benchmark] benchmark.parts=[block] benchmark.hidden_size=64 quant=asq bits=w8a8",
    "stages=[tabulate] quant=tsq_tsw bits=w6a8",
    "stages=[export] export=packed quant=asq_tsw bits=w4a8 force=true",
    "stages=[evaluate] videos=x prompts=y metrics=fidelity force=true",
    "force=[calibrate,evaluate] quant=asq",
    "force=false tabulate=false batch_size=null",
    "quant=dvd_quant quant.delta=0.2 bits=w4a4",
)


@pytest.fixture(scope="module")
def check():
    model = ShapesModel()

    def run(overrides: list[str]) -> None:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            experiment = Experiment(compose("config", overrides))
        experiment.__dict__["model"] = model
        options = {text.partition("=")[0]: text for text in overrides}
        without_effect.check(experiment, options)
        without_effect.check_calibration(experiment, options)

    return run


@pytest.mark.parametrize("overrides", REFUSED)
def test_option_that_would_do_nothing_is_refused(check, overrides):
    with pytest.raises(UserError, match=REFUSED[overrides]):
        check(overrides.split())


@pytest.mark.parametrize("overrides", ACCEPTED)
def test_option_that_does_something_is_accepted(check, overrides):
    check(overrides.split())


def test_a_configuration_that_was_composed_in_a_program_has_no_command_line():
    assert without_effect.explicit() == {}
