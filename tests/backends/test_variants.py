"""A result may be used again only if its layer says when it changes; a backend that does not say so is found here."""

from pathlib import Path

import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

CONF = Path(__file__).parents[2] / "conf" / "backend"


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("*.yaml")))
def test_layers_of_every_backend_tell_their_variant(name, dynamic, layer):
    """Oracle: two weight ranges, and another activation range in each of the four steps unless dynamic."""
    try:
        spec, backend = layer(dynamic=dynamic), instantiate(OmegaConf.load(CONF / f"{name}.yaml"))
    except InstantiationException as error:
        pytest.skip(str(error.__cause__))
    if reason := backend.supports(spec):
        pytest.skip(reason)
    module, seen = backend.layer(spec), []
    for step in range(4):
        spec.clock.set(step)
        seen.append(module.variant)
    assert len(set(seen)) == (2 if dynamic else 4)
    assert not dynamic or (seen[0] == seen[1] and seen[2] == seen[3])
