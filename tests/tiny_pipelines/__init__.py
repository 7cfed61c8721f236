"""Tiny pipelines of diffusers with random weights: their classes, small configurations.

FAMILIES has one of every family, which the tests prove in every respect. KIN has others of the same kind, of which they
prove that the pipeline computes the same and that the clock is right.
"""

from tests.tiny_pipelines import kin, kin_of_wan  # they register
from tests.tiny_pipelines.families import CALLS as CALLS
from tests.tiny_pipelines.families import FAMILIES as FAMILIES
from tests.tiny_pipelines.families import build as build
from tests.tiny_pipelines.families import loaded as loaded
from tests.tiny_pipelines.families import save as save
from tests.tiny_pipelines.parts import KIN as KIN

CALLS |= {**kin.CALLS, **kin_of_wan.CALLS}
