"""Positions equal those that the models count themselves; kinds are 1 where a picture stands."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from slimdeploy.serve.model_files import Family, ModelFacts
from slimdeploy.serve.pictures import Grid, Picture
from slimdeploy.serve.positions import positions, token_kinds

IMAGE, TEXT = 7, 3
FACTS = ModelFacts(context=4096, image_token=IMAGE, end_tokens=frozenset({2}), family="qwen2_5_vl")
M_ROPE: dict[Family, Any] = {
    "qwen2_5_vl": transformers.models.qwen2_5_vl.modeling_qwen2_5_vl.Qwen2_5_VLModel,
    "qwen3_vl": transformers.models.qwen3_vl.modeling_qwen3_vl.Qwen3VLModel,
}
CONFIGURATIONS: dict[Family, Any] = {
    "qwen2_5_vl": transformers.Qwen2_5_VLConfig(),
    "qwen3_vl": transformers.Qwen3VLConfig(),
}
GRIDS = st.tuples(st.just(1), st.integers(1, 9), st.integers(1, 9))


def picture(grid: Grid) -> Picture:
    return Picture({}, "", int(np.prod(grid)), grid)


def counted_by_the_model(family: Family, ids: Sequence[int], grids: Sequence[Grid]) -> tuple[np.ndarray, int]:
    """get_rope_index reads nothing of a model but its configuration."""

    class Counts:
        config = CONFIGURATIONS[family]
        get_vision_position_ids = M_ROPE[family].get_vision_position_ids
        get_rope_index = M_ROPE[family].get_rope_index

    merge = Counts.config.vision_config.spatial_merge_size
    tokens = torch.tensor([ids])
    sizes = torch.tensor([[time, height * merge, width * merge] for time, height, width in grids])
    found, delta = Counts().get_rope_index(tokens, (tokens == IMAGE).int(), sizes)  # type: ignore[misc]
    return found[:, 0].numpy(), int(delta) + len(ids)


@pytest.mark.parametrize("family", M_ROPE)
@given(st.lists(st.tuples(st.integers(1, 12), GRIDS), max_size=4), st.integers(0, 12))
def test_positions_in_space_equal_those_of_the_model(family: Family, parts: list[tuple[int, Grid]], rest: int) -> None:
    ids = [i for text, grid in parts for i in [TEXT] * text + [IMAGE] * int(np.prod(grid))] + [TEXT] * rest
    if not ids:
        return
    grids = [grid for _, grid in parts]
    expected, following = counted_by_the_model(family, ids, grids)
    found = positions(replace(FACTS, family=family), ids, [picture(grid) for grid in grids])
    np.testing.assert_array_equal(found.ids, expected, strict=True)
    assert found.next == following


def test_a_prompt_may_begin_with_a_picture_and_pictures_may_touch() -> None:
    found = positions(FACTS, [IMAGE] * 3, [picture((1, 1, 2)), picture((1, 1, 1))])
    assert found.ids.tolist() == [[0, 0, 2], [0, 0, 2], [0, 1, 2]]
    assert found.next == 3


@pytest.mark.parametrize("family", ["llava", "llava_next", "idefics3", "smolvlm", "gemma3"])
def test_other_families_count_on(family: Family) -> None:
    found = positions(replace(FACTS, family=family), [TEXT, IMAGE, IMAGE], [])
    assert found.ids.tolist() == [0, 1, 2]
    assert found.next == 3


def test_paligemma_counts_from_one() -> None:
    found = positions(replace(FACTS, family="paligemma"), [TEXT, IMAGE, IMAGE], [])
    assert found.ids.tolist() == [1, 2, 3]
    assert found.next == 4


def test_kinds_are_one_on_the_tokens_of_pictures() -> None:
    kinds = token_kinds(replace(FACTS, family="gemma3"), [TEXT, IMAGE, IMAGE, TEXT])
    assert kinds is not None
    assert kinds.tolist() == [0, 1, 1, 0]
    assert token_kinds(FACTS, [IMAGE]) is None
