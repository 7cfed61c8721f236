"""The testbed's model from files that are not its own."""

import shutil

import pytest

from vdq.errors import UserError
from vdq.models.shapes import WEIGHTS, ShapesModel


@pytest.mark.parametrize("name", ["denoiser", "autoencoder", "text_encoder"])
def test_damaged_weights_are_named(name, tmp_path):
    shutil.copytree(WEIGHTS, tmp_path, dirs_exist_ok=True)
    (tmp_path / f"{name}.safetensors").write_bytes(bytes(100))
    with pytest.raises(UserError, match=f"^model.weights=.*{name}.safetensors holds no {name}"):
        ShapesModel(tmp_path)
    other = {"denoiser": "clip"}.get(name, "denoiser")
    shutil.copy(WEIGHTS / f"{other}.safetensors", tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match=f"^model.weights=.*{name}.safetensors holds no {name}"):
        ShapesModel(tmp_path)
