"""Tables of a published model are written where there are neither its weights nor a network."""

import json

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from vdq.commands.run import run
from vdq.data.samples import write_sample
from vdq.installation import CONF
from vdq.stages.experiment import Experiment

WEIGHTS = (
    "socket.socket.connect",
    "socket.getaddrinfo",
    "torch.load",
    "vdq.sources.digest",
    "vdq.models.opensora.load_denoiser",
    "vdq.models.opensora.AutoencoderKL.from_pretrained",
    "vdq.models.captions.T5EncoderModel.from_pretrained",
)


@pytest.mark.parametrize("model", ["opensora_v1_512", "opensora_v1_256"])
def test_tables_need_neither_weights_nor_network(tmp_path, monkeypatch, finish, model):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in WEIGHTS:
        monkeypatch.setattr(name, lambda *_, name=name, **__: pytest.fail(f"{name} was called"))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red kite\n")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(
            "config",
            [
                f"model={model}",
                "stages=[tabulate]",
                "quant=asq",
                "dataset=opensora",
                f"dataset.prompts={prompts}",
                f"dataset.calibration_prompts={prompts}",
                f"paths.runs={tmp_path}",
                f"paths.results={tmp_path / 'results'}",
                "logger=csv",
            ],
        )
    asq = Experiment(cfg)
    for one in (asq.reference, asq):
        fields = {"signature": one.identity.signature, "reference": asq.reference.identity.signature}
        fields |= {"model": model, "alpha": one.cfg.quant.get("alpha"), "seed": 42, "weight_bits": 8, "act_bits": 8}
        folder = finish(one.folder.name, quant=one.cfg.quant.name, versions=one.identity.versions, **fields)
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(one.config())))
        (folder / "per_video.csv").write_text("index,prompt,clipsim,latent_rel_l2\n0,a red kite,0.25,0.5\n")
        write_sample(folder, 0, torch.zeros(4, 2, 2, 2), torch.zeros(2, 16, 16, 3, dtype=torch.uint8), 8)
    run(cfg)
    table = (tmp_path / "results" / model / f"runs_{asq.prompts.name}.md").read_text()
    assert asq.identity.signature in table and asq.reference.identity.signature in table
    assert json.loads((asq.folder / "result.json").read_text())["versions"]["quant.asq"] == 1
