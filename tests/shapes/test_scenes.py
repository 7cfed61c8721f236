"""The testbed's scenes, captions and tokenizer."""

import random
from collections import Counter
from dataclasses import asdict
from itertools import combinations

from vdq.models.shapes_tokenizer import MAX_LENGTH, WORDS, build_tokenizer
from vdq.shapes.scenes import (
    COLORS,
    MOTIONS,
    SHAPES,
    attributes,
    caption,
    label,
    prompts,
    short_prompts,
    split,
    vocabulary,
)


def test_parts_are_disjoint_and_cover_every_combination():
    parts = split()
    assert {name: len(part) for name, part in parts.items() if name != "training"} == {
        "evaluation": 48,
        "calibration": 10,
        "validation": 192,
    }
    assert all(not set(a) & set(b) for a, b in combinations(parts.values(), 2))
    assert sum(map(len, parts.values())) == 6 * 8 * 2 * 5 * 8


def test_evaluation_shows_every_pair_once_and_every_motion_equally_often():
    scenes = split()["evaluation"]
    assert {(scene.shape, scene.color) for scene in scenes} == {(s, c) for s in SHAPES for c in COLORS}
    assert set(Counter(scene.motion for scene in scenes).values()) == {len(scenes) // len(MOTIONS)}


def test_prompts_are_distinct_and_the_same_at_every_call():
    assert len(set(prompts("evaluation"))) == 48 and prompts("evaluation") == prompts("evaluation")
    assert len(set(short_prompts())) == 101
    assert not set(prompts("evaluation")) & set(prompts("calibration"))


def test_a_caption_names_every_attribute():
    for scene in split()["validation"]:
        text = caption(scene, random.Random(0))
        assert scene.shape in text and scene.color in text and scene.background in text


def test_attributes_are_read_from_every_wording():
    rng = random.Random(2)
    for scene in split()["training"]:
        assert attributes(caption(scene, rng)) == asdict(scene)
        assert attributes(label(scene, rng)).items() <= asdict(scene).items()
    assert attributes("A small red square moves around in a circle.")["shape"] == "square"
    assert attributes("cyan ring growing") == {"color": "cyan", "shape": "ring", "motion": "grow"}
    assert attributes("A zebra.") == {}


def test_the_tokenizer_knows_every_word_and_closes_with_its_highest_id():
    assert vocabulary() == WORDS
    tokenizer = build_tokenizer()
    rng = random.Random(1)
    texts = [wording(scene, rng) for scene in split()["training"] for wording in (caption, label)]
    texts += prompts("evaluation") + prompts("calibration") + short_prompts()
    for ids in tokenizer(texts).input_ids:
        assert tokenizer.unk_token_id not in ids and len(ids) <= MAX_LENGTH
        assert ids[-1] == max(ids) == len(tokenizer) - 1
    assert tokenizer.unk_token_id in tokenizer("a zebra").input_ids
