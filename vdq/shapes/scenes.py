"""Scenes of the testbed: which combinations of attributes exist, how they are split, and how they are put into words.

A scene is one combination of shape, colour, size, background and motion. The 3840 combinations are split once and for
all: the 48 evaluation prompts, the 10 calibration prompts and the validation scenes are combinations that no model of
the testbed has seen in training.
"""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import dataclass
from functools import lru_cache

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "pink")
SIZES = ("small", "large")
BACKGROUNDS = ("black", "white", "gray", "striped", "checkered")
MOTIONS = ("right", "left", "up", "down", "grow", "shrink", "still", "orbit")

SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
MOTION_PHRASES = {
    "right": ("moves to the right", "moves from left to right", "slides to the right"),
    "left": ("moves to the left", "moves from right to left", "slides to the left"),
    "up": ("moves up", "rises to the top", "slides upwards"),
    "down": ("moves down", "falls to the bottom", "slides downwards"),
    "grow": ("grows bigger", "is growing", "grows and grows"),
    "shrink": ("shrinks", "is shrinking", "gets smaller and smaller"),
    "still": ("stands still", "does not move", "stays in its place"),
    "orbit": ("moves around in a circle", "goes round and round", "circles around the center"),
}
MOTION_LABELS = {
    "right": "moving right",
    "left": "moving left",
    "up": "moving up",
    "down": "moving down",
    "grow": "growing",
    "shrink": "shrinking",
    "still": "standing still",
    "orbit": "going round",
}
TEMPLATES = (
    "A {size} {color} {shape} {motion} on a {background} background.",
    "On a {background} background, a {size} {color} {shape} {motion}.",
    "The {size} {color} {shape} {motion} in front of a {background} wall.",
    "In front of a {background} wall a {size} {color} {shape} {motion}.",
    "A video of a {size} {shape} in {color} that {motion}, with a {background} background.",
    "We see a {background} background and a {size} {color} {shape} which {motion}.",
)
LABEL_TEMPLATES = (
    "{color} {shape} {motion}",
    "{size} {color} {shape} {motion}",
    "{color} {shape} {motion} on {background}",
)


@dataclass(frozen=True)
class Scene:
    """One combination of attributes; every field is a word of the tuples above."""

    shape: str
    color: str
    size: str
    background: str
    motion: str


@lru_cache(maxsize=1)
def split() -> dict[str, tuple[Scene, ...]]:
    """The fixed split: ``evaluation`` (48, each pair of shape and colour once), ``calibration`` (10), ``validation``
    (192) and ``training`` (the rest), disjoint in the full combination."""
    rng = random.Random(20260201)
    scenes = [Scene(*words) for words in itertools.product(SHAPES, COLORS, SIZES, BACKGROUNDS, MOTIONS)]
    rng.shuffle(scenes)
    evaluation = _one_per_pair(rng)
    taken = set(evaluation)
    rest = [scene for scene in scenes if scene not in taken]
    return {
        "evaluation": tuple(evaluation),
        "calibration": tuple(rest[:10]),
        "validation": tuple(rest[10:202]),
        "training": tuple(rest[202:]),
    }


def _one_per_pair(rng: random.Random) -> list[Scene]:
    """48 scenes that show every pair of shape and colour once and every motion six times."""
    pairs = list(itertools.product(SHAPES, COLORS))
    rng.shuffle(pairs)
    motions = list(MOTIONS) * 6
    rng.shuffle(motions)
    backgrounds = (list(BACKGROUNDS) * 10)[: len(pairs)]
    rng.shuffle(backgrounds)
    return [
        Scene(shape, color, SIZES[i % 2], background, motion)
        for i, ((shape, color), background, motion) in enumerate(zip(pairs, backgrounds, motions, strict=True))
    ]


def caption(scene: Scene, rng: random.Random) -> str:
    """A plain sentence that names every attribute of the scene, in one of several wordings."""
    return rng.choice(TEMPLATES).format(
        size=rng.choice(SIZE_WORDS[scene.size]),
        color=scene.color,
        shape=scene.shape,
        background=scene.background,
        motion=rng.choice(MOTION_PHRASES[scene.motion]),
    )


def label(scene: Scene, rng: random.Random) -> str:
    """A short label that may leave size and background open, as class names do."""
    return rng.choice(LABEL_TEMPLATES).format(
        size=scene.size,
        color=scene.color,
        shape=scene.shape,
        background=scene.background,
        motion=MOTION_LABELS[scene.motion],
    )


def attributes(text: str) -> dict[str, str]:
    """The attributes that a caption or label names, such as ``{"shape": "circle", "motion": "left"}``; what it leaves
    open, or says in other words, is missing.
    """
    text, found = text.lower(), {}
    for motion, phrases in MOTION_PHRASES.items():
        for phrase in (*phrases, MOTION_LABELS[motion]):
            if phrase in text:
                found["motion"] = motion
                text = text.replace(phrase, "")  # "moves around in a circle" names no shape
    known = {"shape": SHAPES, "color": COLORS, "background": BACKGROUNDS}
    meanings = {word: (field, word) for field, names in known.items() for word in names}
    meanings |= {word: ("size", size) for size, names in SIZE_WORDS.items() for word in names}
    return found | dict(meanings[word] for word in re.findall(r"\w+", text) if word in meanings)


def prompts(part: str) -> list[str]:
    """The captions of one part of the split, always in the same wording."""
    rng = random.Random(f"wording of {part}")
    return [caption(scene, rng) for scene in split()[part]]


def short_prompts() -> list[str]:
    """101 label-like prompts (colour, shape, motion): the testbed's counterpart of the UCF-101 class names."""
    triples = list(itertools.product(COLORS, SHAPES, MOTIONS))
    random.Random(101).shuffle(triples)
    return [f"{color} {shape} {MOTION_LABELS[motion]}" for color, shape, motion in triples[:101]]


def vocabulary() -> list[str]:
    """Every word and punctuation mark that captions and labels can hold, sorted."""
    texts = [*TEMPLATES, *LABEL_TEMPLATES, *SHAPES, *COLORS, *BACKGROUNDS, *MOTION_LABELS.values()]
    texts += itertools.chain(*SIZE_WORDS.values(), *MOTION_PHRASES.values())
    words = " ".join(texts).lower()
    for field in ("size", "color", "shape", "background", "motion"):
        words = words.replace("{" + field + "}", " ")
    for mark in ".,":
        words = words.replace(mark, f" {mark} ")
    return sorted(set(words.split()))
