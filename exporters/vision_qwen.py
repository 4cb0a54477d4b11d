"""The vision graphs of Qwen2.5-VL and Qwen3-VL, whose pictures are patches in a row, of any number and size.

The modules that hold weights are the model's own, but what they do is written here for states of three axes,
(1, patches, width): linear layers then become products with weights that keep their names.
"""

from functools import reduce
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.functional import linear

from ..model import Model
from .graph import VISION_ENCODER, Graph
from .vision_patches import FrameAttention, Patches, WindowAttention

# Frames, rows and columns, in tokens, of the pictures that tracing runs on.
_SAMPLE = ((1, 2, 3), (1, 4, 2))


def qwen2_5_vl_graph(model: Model) -> Graph:
    """pixel_values: (patches, channels * frames * height * width of one). image_grid_thw: (pictures, 3), in patches.

    image_features: (tokens, hidden), the pictures one after the other.
    """
    return _graph(model, Qwen25Vision(model), ("image_features",))


def qwen3_vl_graph(model: Model) -> Graph:
    """As `qwen2_5_vl_graph`, and deepstack_features: (layers, tokens, hidden), for the first layers of the decoder."""
    return _graph(model, Qwen3Vision(model), ("image_features", "deepstack_features"))


def _graph(model: Model, part: nn.Module, outputs: tuple[str, ...]) -> Graph:
    vision = model.config.vision_config
    merge = vision.spatial_merge_size
    grids = [(frames, rows * merge, columns * merge) for frames, rows, columns in _SAMPLE]
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return Graph(
        VISION_ENCODER,
        part,
        (torch.zeros(sum(map(prod, grids)), width), torch.tensor(grids)),
        ({0: Dim("num_patches")}, {0: Dim("num_images")}),
        ("pixel_values", "image_grid_thw"),
        outputs,
    )


class Qwen25Vision(nn.Module):
    """Most blocks attend within windows. Patches are sorted by window on their way through the blocks."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.tower = model.module.get_submodule(model.arch.vision_tower)
        config = model.config.vision_config
        self.merge = config.spatial_merge_size
        self.window = config.window_size // config.patch_size // self.merge * self.merge
        self.full_blocks = frozenset(config.fullatt_block_indexes)

    def forward(self, pixel_values: Tensor, image_grid_thw: Tensor) -> Tensor:
        """Shapes as in `qwen2_5_vl_graph`."""
        tower: Any = self.tower
        count = pixel_values.shape[0]
        patches = Patches.of(image_grid_thw, count, self.merge)
        window = patches.window(self.window)
        order = torch.argsort(window * count + torch.arange(count, device=window.device))
        within_frames = FrameAttention(patches.frame[order])
        within_windows = WindowAttention(window[order], self.window**2)
        rotation = _rotation(tower, torch.stack([patches.row, patches.column], dim=1)[order])
        states = _embedded(tower.patch_embed.proj, pixel_values).index_select(1, order)
        for number, block in enumerate(tower.blocks):
            states = _block(block, states, rotation, within_frames if number in self.full_blocks else within_windows)
        states = states.index_select(1, torch.argsort(order))
        features: Tensor = tower.merger.mlp(_merged(tower.merger.ln_q(states), self.merge))
        return features[0]


class Qwen3Vision(nn.Module):
    """Learned positions, stretched over each picture; what some of the blocks put out is merged as well."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.tower = model.module.get_submodule(model.arch.vision_tower)
        self.merge = model.config.vision_config.spatial_merge_size
        self.deepstack_blocks = list(model.config.vision_config.deepstack_visual_indexes)

    def forward(self, pixel_values: Tensor, image_grid_thw: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes as in `qwen3_vl_graph`."""
        tower: Any = self.tower
        patches = Patches.of(image_grid_thw, pixel_values.shape[0], self.merge)
        within_frames = FrameAttention(patches.frame)
        rotation = _rotation(tower, torch.stack([patches.row, patches.column], dim=1))
        states = _embedded(tower.patch_embed.proj, pixel_values) + stretched(tower.pos_embed, patches)
        deepstack = []
        for number, block in enumerate(tower.blocks):
            states = _block(block, states, rotation, within_frames)
            if number in self.deepstack_blocks:
                merger = tower.deepstack_merger_list[self.deepstack_blocks.index(number)]
                deepstack.append(self._features(merger, states))
        return self._features(tower.merger, states), torch.stack(deepstack)

    def _features(self, merger: Any, states: Tensor) -> Tensor:
        if merger.use_postshuffle_norm:
            merged = merger.norm(_merged(states, self.merge))
        else:
            merged = _merged(merger.norm(states), self.merge)
        features: Tensor = merger.linear_fc2(merger.act_fn(merger.linear_fc1(merged)))
        return features[0]


def stretched(table: nn.Embedding, patches: Patches) -> Tensor:
    """(patches, width): a square table of positions, its corners on each picture's corners, interpolated bilinearly."""
    side = round(table.num_embeddings**0.5)
    corners = [
        (row_share * column_share)[:, None] * table(row * side + column)
        for row, row_share in _neighbours(patches.row, patches.height, side)
        for column, column_share in _neighbours(patches.column, patches.width, side)
    ]
    positions: Tensor = reduce(torch.add, corners)
    return positions


def _neighbours(place: Tensor, size: Tensor, side: int) -> list[tuple[Tensor, Tensor]]:
    """The two places on a table's side around each place on a picture's side of `size`, and the share of either."""
    exact = place.float() * (side - 1) / (size - 1).clamp(min=1)
    lower = exact.floor()
    share = exact - lower
    return [(lower.long(), 1 - share), ((lower.long() + 1).clamp(max=side - 1), share)]


def _embedded(convolution: nn.Conv3d, pixel_values: Tensor) -> Tensor:
    """Patches through a convolution as large as a patch, which is a product, and runs faster as one."""
    return linear(pixel_values[None], convolution.weight.flatten(1), convolution.bias)


def _rotation(tower: Any, places: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines, (patches, 1, head size) each, of rows and columns, (patches, 2)."""
    cos, sin = tower.rotary_pos_emb(places, places)
    return cos[:, None], sin[:, None]


def _block(
    block: Any, states: Tensor, rotation: tuple[Tensor, Tensor], attention: FrameAttention | WindowAttention
) -> Tensor:
    attn = block.attn
    query, key, value = attn.qkv(block.norm1(states))[0].unflatten(1, (3, attn.num_heads, -1)).unbind(dim=1)
    attended = attention(_rotated(query, *rotation), _rotated(key, *rotation), value)
    states = states + attn.proj(attended.flatten(1)[None])
    after: Tensor = states + block.mlp(block.norm2(states))
    return after


def _rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat([-second, first], dim=-1) * sin


def _merged(states: Tensor, merge: int) -> Tensor:
    """(1, tokens, merge * merge * width): the patches of a token side by side."""
    tokens, patches = states.shape[1] // merge**2, merge**2
    # Selects all of them, of which the tracer then knows that they are a multiple.
    every = torch.arange(tokens * patches, device=states.device)
    return states.index_select(1, every).reshape(1, tokens, patches * states.shape[2])
