"""The tiny world: everything that is said of a picture is found again in its pixels."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyfed import rng
from polyfed.data.boxes import overlap, parse_box
from polyfed.data.scene_examples import (
    CLIENTS,
    NEW_BACKGROUND,
    NEW_COLOUR,
    NEW_KINDS,
    NEW_SHAPE,
    TASKS,
    Example,
    client_domain,
    client_examples,
    client_task,
    common_examples,
    crowded_scenes,
    pretraining_examples,
    pretraining_scenes,
)
from polyfed.data.scene_pictures import LEVELS, mask, picture
from polyfed.data.scene_texts import NUMBERS, QUESTIONS, VOCABULARY, caption, listing
from polyfed.data.scenes import (
    ACROSS,
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIDE,
    SIZES,
    Domain,
    Kind,
    Object,
    Scene,
    even,
    pick,
    place,
)

NAMES = {levels: name for name, levels in LEVELS.items()}
SEEDS = st.integers(0, 10**6)


def drawn(seed: int) -> Scene:
    return Domain().scene(rng.numpy_generator(seed, "test"))


def connected(places: set[tuple[int, int]]) -> list[set[tuple[int, int]]]:
    """Split pixels into groups whose members touch, corners included."""
    groups = []
    while places:
        group, edge = set(), {next(iter(places))}
        while edge:
            group |= edge
            edge = {(x + i, y + j) for x, y in edge for i in (-1, 0, 1) for j in (-1, 0, 1)} & (places - group)
        groups.append(group)
        places = places - group
    return groups


def seen(image: torch.Tensor) -> Scene:
    """Read a scene off its pixels."""
    names = [[NAMES[r, g, b] for r, g, b in row] for row in image.permute(1, 2, 0).tolist()]
    background = Counter(name for row in names for name in row).most_common(1)[0][0]
    objects = []
    for colour in COLOURS:
        there = {(x, y) for y in range(SIDE) for x in range(SIDE) if names[y][x] == colour}
        for group in connected(there):
            x, y = min(x for x, _ in group), min(y for _, y in group)
            across = max(x for x, _ in group) - x + 1
            assert max(y for _, y in group) - y + 1 == across
            covered = np.zeros((across, across), dtype=np.bool_)
            for i, j in group:
                covered[j - y, i - x] = True
            (shape,) = [shape for shape in SHAPES if np.array_equal(mask(shape, across), covered)]
            (size,) = [size for size, choices in ACROSS.items() if across in choices]
            objects.append(Object(shape, colour, size, x, y, across))
    return Scene(background, tuple(sorted(objects, key=lambda one: one.centre)))


def matching(scene: Scene, words: str) -> list[Object]:
    """Return the objects that a noun phrase fits."""
    wanted = set(words.split()) - {"a", "an", "the", "object", "objects"}
    return [one for one in scene.objects if wanted <= {one.colour, one.shape, one.size}]


def only(scene: Scene, words: str) -> Object:
    (one,) = matching(scene, words)
    return one


def beside(scene: Scene, words: str, side: str) -> str:
    other = only(scene, words)
    steps = {
        "left of": lambda one: other.centre[0] - one.centre[0],
        "right of": lambda one: one.centre[0] - other.centre[0],
        "above": lambda one: other.centre[1] - one.centre[1],
        "below": lambda one: one.centre[1] - other.centre[1],
    }
    found = [one for one in scene.objects if steps[side](one) > 0]
    (one,) = found
    assert steps[side](one) >= 4
    return one.shape


ANSWERS = {
    r"what colour is the background\?": lambda scene: scene.background,
    r"what colour is the (?!background)(.*)\?": lambda scene, words: only(scene, words).colour,
    r"what shape is the (.* object)\?": lambda scene, words: only(scene, words).shape,
    r"is the (.*) small or large\?": lambda scene, words: only(scene, words).size,
    r"how many (.*) objects are there\?": lambda scene, words: NUMBERS[len(matching(scene, words))],
    r"is there (.*)\?": lambda scene, words: "yes" if matching(scene, words) else "no",
    r"what shape is (left of|right of|above|below) the (.*)\?": lambda scene, side, words: beside(scene, words, side),
}


def answer(scene: Scene, asked: str) -> str:
    """Answer a question from what is in the scene, without the code that made it."""
    ((groups, rule),) = [(m.groups(), rule) for form, rule in ANSWERS.items() if (m := re.fullmatch(form, asked))]
    return rule(scene, *groups)


@given(SEEDS)
def test_a_scene_is_read_off_its_picture(seed: int) -> None:
    scene = drawn(seed)
    image = picture(scene)
    assert (image.shape, image.dtype) == ((3, SIDE, SIDE), torch.uint8)
    assert seen(image) == scene


@given(SEEDS)
def test_questions_are_answered_by_the_picture(seed: int) -> None:
    (example,) = common_examples("vqa", 1, seed)
    assert example.answers == (answer(seen(example.image), example.instruction),)


def test_every_kind_of_question_is_asked_and_answered() -> None:
    examples = common_examples("vqa", 600, 0)
    forms = Counter(form for example in examples for form in ANSWERS if re.fullmatch(form, example.instruction))
    assert len(forms) == len(ANSWERS) == len(QUESTIONS)
    assert min(forms.values()) > 30
    assert all(example.answers == (answer(example.scene, example.instruction),) for example in examples)
    answers = Counter(example.answers[0] for example in examples)
    expected = {*COLOURS, *SHAPES, *SIZES, *BACKGROUNDS, *NUMBERS[:3], "yes", "no"}
    assert expected <= set(answers) <= {*expected, NUMBERS[3]}
    assert 0.7 < answers["yes"] / answers["no"] < 1.4


@given(SEEDS)
def test_places_are_those_of_the_pixels(seed: int) -> None:
    (example,) = common_examples("grounding", 1, seed)
    found = re.fullmatch(r"where is the (.*)\?", example.instruction)
    assert found is not None
    thing = only(seen(example.image), found.group(1))
    assert example.box == thing.box
    written = parse_box(example.answers[0])
    assert written is not None
    assert overlap(written, thing.box) > 0.9


@given(SEEDS)
def test_captions_name_what_is_there(seed: int) -> None:
    (example,) = common_examples("caption", 1, seed)
    scene = seen(example.image)
    assert len(set(example.answers)) == len(example.answers) == 3
    for text in example.answers:
        assert f"a {scene.background} background" in text
        named = re.findall(r"a (small|large) (\w+) (\w+)", text)
        assert Counter(named) == Counter((one.size, one.colour, one.shape) for one in scene.objects)
    first = re.findall(r"a (?:small|large) (\w+ \w+)", example.answers[0])
    assert first == [f"{one.colour} {one.shape}" for one in scene.objects]


def test_caption_by_hand() -> None:
    scene = Scene("gray", (Object("ring", "orange", "small", 0, 0, 6), Object("cross", "red", "large", 12, 9, 12)))
    assert caption(scene, rng.numpy_generator(0)).answers == (
        "a small orange ring and a large red cross on a gray background",
        "there are a large red cross and a small orange ring on a gray background",
        "a gray background with a small orange ring and a large red cross",
    )
    assert listing(["a", "b", "c"]) == "a, b and c"


def test_the_vocabulary_is_closed_and_used() -> None:
    examples = [example for task in TASKS for example in common_examples(task, 600, 1)]
    used = {
        word
        for example in examples
        for text in (example.instruction, *(() if example.box else example.answers))
        for word in re.findall(r"\w+", text)
    }
    assert used == set(VOCABULARY)
    assert len(VOCABULARY) == len(used) < 80


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("across", [pixels for choices in ACROSS.values() for pixels in choices])
def test_shapes_touch_all_sides_and_differ(shape: str, across: int) -> None:
    covered = mask(shape, across)
    assert all(edge.any() for edge in (covered[0], covered[-1], covered[:, 0], covered[:, -1]))
    assert np.array_equal(covered, covered[:, ::-1])
    assert all((mask(other, across) != covered).sum() >= 4 for other in SHAPES if other != shape)


@given(SEEDS)
def test_objects_stay_inside_and_apart(seed: int) -> None:
    across = [13, 13, 13]
    corners = place(across, rng.numpy_generator(seed))
    assert all(0 <= edge <= SIDE - 13 for corner in corners for edge in corner)
    for i, (x, y) in enumerate(corners):
        assert all(max(abs(x - u), abs(y - v)) > 13 for u, v in corners[:i])


def test_places_reach_every_edge() -> None:
    draw = rng.numpy_generator(0)
    corners = {corner for _ in range(400) for corner in place([12], draw)}
    assert {x for x, _ in corners} == {y for _, y in corners} == set(range(SIDE - 12 + 1))


def test_pick_follows_the_weights() -> None:
    draw = rng.numpy_generator(0)
    found = Counter(pick(draw, "abc", [1, 0, 3]) for _ in range(4000))
    assert found["b"] == 0
    assert found["c"] / 4000 == pytest.approx(0.75, abs=0.03)


def test_pretraining_lacks_what_is_new() -> None:
    examples = pretraining_examples(900, 0)
    assert Counter(example.task for example in examples) == dict.fromkeys(TASKS, 300)
    kinds = {(one.colour, one.shape) for example in examples for one in example.scene.objects}
    new = {(kind.colour, kind.shape) for kind in NEW_KINDS}
    broad = {(colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) not in new}
    assert kinds == {(colour, shape) for colour, shape in broad if colour != NEW_COLOUR and shape != NEW_SHAPE}
    assert NEW_BACKGROUND not in {example.scene.background for example in examples}
    asked = " ".join(example.instruction for example in examples)
    assert NEW_COLOUR not in asked
    assert NEW_SHAPE not in asked


def facts(examples: list[Example]) -> list[tuple[object, ...]]:
    return [(one.scene, one.instruction, one.answers, one.box) for one in examples]


def test_scenes_of_pretraining_lack_what_is_new_and_are_asked_about_by_all_tasks() -> None:
    asked = pretraining_scenes(200, 0)
    crowded = crowded_scenes(200, 0)
    assert {len(scene.objects) for scene in crowded} == {4}
    for scene in (*crowded, *(scene for scene, _ in asked)):
        assert scene.background != NEW_BACKGROUND
        for thing in scene.objects:
            assert thing.colour != NEW_COLOUR
            assert thing.shape != NEW_SHAPE
            assert Kind(thing.colour, thing.shape) not in NEW_KINDS
    words = " ".join(said.instruction for _, told in asked for said in told)
    assert not re.search(rf"{NEW_COLOUR}|{NEW_SHAPE}|{NEW_BACKGROUND}", words)
    assert all(len(told[0].answers) == 3 for _, told in asked)  # a caption comes first
    assert {len(told) for _, told in asked} <= {5, 6, 7}
    assert sum(said.box is not None for _, told in asked for said in told) > 350
    assert pretraining_scenes(2, 0) == asked[:2]
    assert crowded_scenes(2, 0) == crowded[:2]
    assert pretraining_scenes(2, 1) != asked[:2]


def test_the_same_seed_gives_the_same_parts_in_any_order() -> None:
    forth = {client: facts(client_examples(client, 5, 3)) for client in range(CLIENTS)}
    back = {client: facts(client_examples(client, 8, 3)) for client in reversed(range(CLIENTS))}
    assert all(back[client][:5] == forth[client] for client in forth)
    assert facts(pretraining_examples(4, 3)) == facts(pretraining_examples(9, 3)[:4])


def test_parts_seeds_and_clients_differ() -> None:
    parts = [facts(client_examples(0, 5, seed, part=part)) for seed in (0, 1) for part in ("train", "val", "test")]
    parts += [facts(client_examples(1, 5, 0)), facts(common_examples("vqa", 5, 0))]
    assert len({str(part) for part in parts}) == len(parts)


def test_a_golden_example() -> None:
    (example,) = client_examples(6, 1, 7)
    assert (example.client, example.task) == (6, "grounding")
    assert (example.instruction, example.answers) == ("where is the square?", ("[0.47, 0.00, 0.84, 0.38]",))
    assert example.box == (0.46875, 0.0, 0.84375, 0.375)


def test_clients_have_one_task_and_their_own_domain() -> None:
    assert [client_task(client) for client in range(CLIENTS)] == ["vqa"] * 3 + ["caption"] * 3 + ["grounding"] * 3
    domains = [client_domain(client, 0, 1.0) for client in range(CLIENTS)]
    assert len({tuple(domain.colours.values()) for domain in domains}) == CLIENTS
    for domain in domains:
        for weights in (domain.backgrounds, domain.colours, domain.shapes):
            assert sum(weights.values()) == pytest.approx(1)
        assert len(domain.counts) == 3


def test_a_small_alpha_shifts_more() -> None:
    def largest(alpha: float | None) -> float:
        domains = [client_domain(client, 0, alpha) for client in range(CLIENTS)]
        shares = [max(domain.colours.values()) / sum(domain.colours.values()) for domain in domains]
        return float(np.mean(shares))

    assert largest(None) == pytest.approx(1 / len(COLOURS))
    assert 1 / len(COLOURS) < largest(100) < largest(1) < largest(0.1)


def test_a_shifted_domain_is_drawn_from() -> None:
    one = Domain(even(["black"]), even(["red", "blue"]), even(["ring"]), (0.0, 1.0), frozenset({Kind("red", "ring")}))
    scenes = [one.scene(rng.numpy_generator(seed)) for seed in range(20)]
    assert {scene.background for scene in scenes} == {"black"}
    assert {(thing.colour, thing.shape) for scene in scenes for thing in scene.objects} == {("blue", "ring")}
    assert {len(scene.objects) for scene in scenes} == {2}


def test_an_empty_domain_is_refused() -> None:
    with pytest.raises(ValueError, match="no colour and shape"):
        Domain(colours=even(["red"]), shapes=even(["ring"]), absent=frozenset({Kind("red", "ring")}))
