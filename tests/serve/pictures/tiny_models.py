"""Folders that describe a model without holding one, and transformers' processor for each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
from families import FAMILIES
from numpy.typing import NDArray
from PIL import Image
from tiny import make_tiny_llava

from slimdeploy.archs import arch_for
from slimdeploy.processor import load_processor
from slimdeploy.serve.model_files import Family, ModelFacts, read_facts
from slimdeploy.serve.pictures import Picture, Pictures, load_pictures
from slimdeploy.serve.prompts import Prompts, load_prompts
from slimdeploy.serve.text import Text

NAMES: tuple[Family, ...] = get_args(Family)


@dataclass(frozen=True)
class Described:
    """A folder, how this server reads it, and how transformers does."""

    folder: Path

    @cached_property
    def facts(self) -> ModelFacts:
        return read_facts(self.folder)

    @cached_property
    def text(self) -> Text:
        return Text(self.folder)

    @cached_property
    def pictures(self) -> Pictures:
        return load_pictures(self.folder, self.facts.family, self.text)

    @cached_property
    def prompts(self) -> Prompts:
        return load_prompts(self.folder, self.facts.family, self.text, self.pictures.marker)

    @cached_property
    def processor(self) -> Any:
        return load_processor(self.folder, arch_for({"model_type": self.facts.family}, "a test"))

    def expected(self, image: Image.Image, **settings: Any) -> tuple[dict[str, NDArray[Any]], str]:
        """Arrays and placeholder of one picture, by transformers."""
        settings = getattr(self.processor, "images_kwargs", {}) | settings
        found = self.processor.image_processor(image, return_tensors="np", **settings)
        arrays = {name: np.asarray(found[name]) for name in ("pixel_values", "image_grid_thw") if name in found}
        if self.facts.family == "llava_next":
            arrays["pixel_values"] = arrays["pixel_values"][0]
        return arrays, self.processor.replace_image_token(found, 0)


def assert_equal(picture: Picture, expected: tuple[dict[str, NDArray[Any]], str]) -> None:
    arrays, placeholder = expected
    for name, array in arrays.items():
        assert picture.inputs[name].flags.c_contiguous
        np.testing.assert_allclose(picture.inputs[name], array, atol=1e-5, rtol=0, strict=True)
    assert picture.placeholder == placeholder


def describe(family: Family, folder: Path, change: Callable[[Any, Any], None] = lambda *_: None) -> Described:
    """A tiny model's folder without weights. change: of configuration and processor, before they are saved."""
    if family == "llava":
        return Described(make_tiny_llava(folder))
    model, processor = FAMILIES[family].make()
    change(model.config, processor)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Described(folder)
