"""The vision graph of every family: pictures, as its processor prepares them, to tokens of its language model."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from ..model import Model
from .graph import VISION_ENCODER, Graph

# Sizes of the samples that tracing runs on; all differ, and none is 1, which would be taken for a constant.
_PICTURES, _TILES, _TOKENS = 2, 3, 5


def vision_graph(model: Model, positions: Tensor | None) -> Graph:
    """The graph of a family that `limits.require_known_tower` lets through. positions: see `positions_of_tiles`."""
    match model.arch.model_type:
        case "llava":
            return _graph_of_pictures(model, VisionEncoder(model))
        case "paligemma" | "gemma3":
            return _graph_of_pictures(model, LastStates(model))
        case "llava_next":
            return _graph_of_picked_features(model)
        case "idefics3" | "smolvlm":
            assert positions is not None, "a family with tiles"
            return _graph_of_tiles(model, positions)
        case "qwen2_5_vl":
            from .vision_qwen import qwen2_5_vl_graph

            return qwen2_5_vl_graph(model)
        case "qwen3_vl":
            from .vision_qwen import qwen3_vl_graph

            return qwen3_vl_graph(model)
        case family:
            raise AssertionError(f"the checks let family '{family}' through, which has no vision graph")


def _graph_of_pictures(model: Model, part: nn.Module) -> Graph:
    """pixel_values: (pictures, 3, height, width). image_features: (pictures, tokens, hidden)."""
    sample, axes = _pixels(model, _PICTURES), {0: Dim("batch_size")}
    return Graph(VISION_ENCODER, part, (sample,), (axes,), ("pixel_values",), ("image_features",))


def _graph_of_picked_features(model: Model) -> Graph:
    """pixel_values: (tiles, 3, height, width). feature_index, (tokens,), says which features the tokens are, in order.

    Features are numbered tile by tile; the newline that ends a row of the picture comes after the last one.
    image_features: (tokens, hidden).
    """
    return Graph(
        VISION_ENCODER,
        PickedFeatures(model),
        (_pixels(model, _TILES), torch.zeros(_TOKENS, dtype=torch.long)),
        ({0: Dim("num_tiles")}, {0: Dim("num_image_tokens")}),
        ("pixel_values", "feature_index"),
        ("image_features",),
    )


def _graph_of_tiles(model: Model, positions: Tensor) -> Graph:
    """pixel_values: (batch, tiles, 3, height, width), whole. image_features: (batch * tiles, tokens, hidden)."""
    sample, axes = _pixels(model, _PICTURES, _TILES), {0: Dim("batch_size"), 1: Dim("num_images")}
    part = WholeTiles(model, positions)
    return Graph(VISION_ENCODER, part, (sample,), (axes,), ("pixel_values",), ("image_features",))


def _pixels(model: Model, *counts: int) -> Tensor:
    vision = model.config.vision_config
    return torch.zeros(*counts, vision.num_channels, vision.image_size, vision.image_size)


class VisionEncoder(nn.Module):
    """Vision tower, choice of its features, projector: pictures to tokens of the language model."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        config = model.config
        assert model.arch.feature_layer is not None, "the checks let families through that have one"
        chosen = getattr(config, model.arch.feature_layer)
        self.tower, self.projector = _tower_and_projector(model)
        self.chosen = [chosen] if isinstance(chosen, int) else list(chosen)
        self.first_token = 1 if config.vision_feature_select_strategy == "default" else 0

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(pictures, 3, height, width) to (pictures, image tokens, hidden); blocks behind the features are not used."""
        states = self.tower(pixel_values, output_hidden_states=True).hidden_states
        features: Tensor = self.projector(torch.cat([states[i][:, self.first_token :] for i in self.chosen], dim=-1))
        return features


class PickedFeatures(nn.Module):
    """LLaVA-NeXT: features of tiles and the newline, in the order that the shape of the picture asks for."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.encoder = VisionEncoder(model)
        self.image_newline = model.module.get_parameter("model.image_newline")

    def forward(self, pixel_values: Tensor, feature_index: Tensor) -> Tensor:
        """Shapes as in `_graph_of_picked_features`."""
        features = self.encoder(pixel_values).flatten(0, 1)
        return torch.cat([features, self.image_newline[None]]).index_select(0, feature_index)


class LastStates(nn.Module):
    """PaliGemma and Gemma 3: the projector reads what the tower puts out."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.tower, self.projector = _tower_and_projector(model)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(pictures, 3, height, width) to (pictures, image tokens, hidden)."""
        features: Tensor = self.projector(self.tower(pixel_values).last_hidden_state)
        return features


class WholeTiles(nn.Module):
    """Idefics3 and SmolVLM: tiles that fill their square, so that none has padding and all have the same positions."""

    def __init__(self, model: Model, positions: Tensor) -> None:
        super().__init__()
        self.tower, self.projector = _tower_and_projector(model)
        # A new nn.Buffer would lose its numbers here, where tensors have none.
        self.register_buffer("positions", positions)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Shapes as in `_graph_of_tiles`."""
        tower: Any = self.tower
        patches = tower.embeddings.patch_embedding(pixel_values.flatten(0, 1)).flatten(2).transpose(1, 2)
        states = patches + tower.embeddings.position_embedding(self.get_buffer("positions"))
        states = tower.post_layernorm(tower.encoder(inputs_embeds=states, attention_mask=None).last_hidden_state)
        features: Tensor = self.projector(states)
        return features


def _tower_and_projector(model: Model) -> tuple[nn.Module, nn.Module]:
    (projector,) = model.arch.projector
    return model.module.get_submodule(model.arch.vision_tower), model.module.get_submodule(projector)


@torch.no_grad()
def positions_of_tiles(model: Model) -> Tensor | None:
    """(patches,): those of a whole tile's patches, where the family has tiles. The model has its weights.

    They come of rounding fractions, so the model is asked.
    """
    if model.arch.model_type not in ("idefics3", "smolvlm"):
        return None
    embeddings: Any = model.module.get_submodule(model.arch.vision_tower).get_submodule("embeddings")
    tile = _pixels(model, 1)
    side = tile.shape[-1] // embeddings.patch_size
    whole = torch.ones(1, side, side, dtype=torch.bool)
    asked: list[Tensor] = []
    with embeddings.position_embedding.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[0])):
        embeddings(pixel_values=tile, patch_attention_mask=whole)
    return asked[0][0]
