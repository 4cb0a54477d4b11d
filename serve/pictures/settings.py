"""What a model's JSON files say about pictures, key by key; errors name the file, the key and its value.

A key that nobody here knows may change what the model sees, so it is an error and is never passed over. One whose value
is null is as good as absent: the class's default holds.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slimdeploy.errors import ArtifactError

from ..model_files import read_json, read_json_if_there
from ..text import Text

# What transformers writes into any image processor's file. Names of classes, the form in which tensors come back, how
# batches are grouped and settings of videos change nothing for one picture, and every picture is RGB before it is seen.
# default_to_square is read where a size is one number, image_seq_length where the family has such a number.
_EVERYWHERE = frozenset({
    "image_processor_type", "feature_extractor_type", "processor_class", "_valid_processor_keys", "do_convert_rgb",
    "data_format", "input_data_format", "return_tensors", "device", "disable_grouping", "default_to_square",
    "image_seq_length", "return_row_col_info", "video_sampling",
})  # fmt: skip
# Parts that a processor's file may hold beside its own settings.
_PARTS = frozenset({"processor_class", "chat_template", "image_processor", "video_processor", "feature_extractor"})
_UNKNOWN = (
    "this server does not know that setting; if the model was made without it, take it out of the model's own file and "
    "export again"
)
_ALIASES = {"CLIPFeatureExtractor": "CLIPImageProcessor", "Qwen2_5_VLImageProcessor": "Qwen2VLImageProcessor"}


@dataclass(frozen=True)
class Settings:
    """One JSON object. values: without those that are null. part: where in the file it stands, as "vision_config."."""

    file: Path
    values: Mapping[str, Any]
    part: str = ""

    def error(self, key: str, remedy: str) -> ArtifactError:
        if key not in self.values:
            return ArtifactError(f"{self.file} has no {self.part}{key}; {remedy}")
        return ArtifactError(f"{self.file} has {self.part}{key} = {json.dumps(self.values[key])}; {remedy}")

    def is_on(self, key: str) -> bool:
        return bool(self.values.get(key))

    def number(self, key: str) -> int:
        """A whole number above 0."""
        value: Any = self.values.get(key)
        if not _is_size(value):
            raise self.error(key, "a whole number above 0 must stand there")
        return int(value)

    def number_if_there(self, key: str) -> int | None:
        return self.number(key) if key in self.values else None

    def says(self, key: str, value: Any = None) -> "Saying":
        """For `agreed`. value: where it follows from the key's and is not itself that."""
        return Saying(f"{self.part}{key} of {self.file}", self.values.get(key) if value is None else value)

    def factor(self, key: str) -> float:
        value: Any = self.values.get(key)
        if not _is_number(value):
            raise self.error(key, "a number must stand there")
        return float(value)

    def channels(self, key: str) -> NDArray[np.float64]:
        """One value for each of red, green and blue, (3, 1, 1)."""
        value = self.values.get(key)
        values = [value] * 3 if _is_number(value) else value
        if not isinstance(values, list) or len(values) != 3 or not all(map(_is_number, values)):
            raise self.error(key, "it must hold 3 numbers")
        return np.array(values, np.float64).reshape(3, 1, 1)

    def resampling(self) -> Image.Resampling:
        try:
            return Image.Resampling(self.values["resample"])
        except ValueError:
            raise self.error("resample", "it must be one of Pillow's filters, 0 to 5") from None

    def sides(self, key: str) -> dict[str, int]:
        """Pixels by name, as {"height": 336, "width": 336}; from the older forms too, a number or a pair."""
        value = self.values.get(key)
        if _is_size(value):
            square = key != "size" or self.is_on("default_to_square")
            value = {"height": value, "width": value} if square else {"shortest_edge": value}
        elif isinstance(value, list) and len(value) == 2:
            value = {"height": value[0], "width": value[1]}
        if not isinstance(value, dict) or not all(map(_is_size, value.values())):
            raise self.error(key, "it must hold numbers of pixels by name")
        return value

    def pairs(self, key: str) -> list[tuple[int, int]]:
        """Sizes in pixels, at least one."""
        value = self.values.get(key)
        pairs = value if isinstance(value, list) else []
        if not pairs or not all(isinstance(p, list) and len(p) == 2 and all(map(_is_size, p)) for p in pairs):
            raise self.error(key, "it must hold pairs of pixels, at least one")
        return [(first, second) for first, second in pairs]

    def edge(self, key: str, name: str) -> int:
        """The one number of pixels that `key` may hold, under `name`."""
        sides = self.sides(key)
        if set(sides) != {name}:
            raise self.error(key, f"this server knows it with {name} alone")
        return sides[name]

    def square(self, key: str) -> int:
        """The side of a square, given by its shortest edge or by height and width."""
        sides = self.sides(key)
        if set(sides) not in ({"shortest_edge"}, {"height", "width"}) or len(set(sides.values())) != 1:
            raise self.error(key, "this server knows it as a square alone")
        return next(iter(sides.values()))


@dataclass(frozen=True)
class Saying:
    """where: key and file. value: None where it says nothing."""

    where: str
    value: Any


def agreed(what: str, *said: Saying) -> Any:
    """The one value that several files give. Raises ArtifactError where two differ, or where none gives it."""
    given = [saying for saying in said if saying.value is not None]
    if not given:
        raise ArtifactError(f"{what} stands nowhere: {', '.join(s.where for s in said)}; export the artifact again")
    first, *others = given
    for other in others:
        if other.value != first.value:
            raise ArtifactError(
                f"{what} is {first.value} by {first.where}, but {other.value} by {other.where}; take the files of one "
                "checkpoint, or export the artifact again"
            )
    return first.value


@dataclass(frozen=True)
class Kind:
    """A class of image processors.

    defaults: of the settings that are read; None where absence is one. only: others, which may have but that value.
    """

    defaults: Mapping[str, Any]
    only: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelSettings:
    """All that is said about pictures.

    config: config.json. vision: its part about the vision tower. processor: processor_config.json. image: the image
    processor's part, or file. text: the tokenizer.
    """

    config: Settings
    vision: Settings
    processor: Settings
    image: Settings
    text: Text

    def image_settings(self, kinds: Mapping[str, Kind]) -> Settings:
        """With the defaults of its class. Raises ArtifactError for another class, an unknown key or a refused value."""
        name = self.image.values.get("image_processor_type", self.image.values.get("feature_extractor_type"))
        plain = str(name).removesuffix("Pil").removesuffix("Fast")
        kind = kinds.get(_ALIASES.get(plain, plain))
        if kind is None:
            raise ArtifactError(
                f"{self.image.file} names the image processor {name!r}; for models of the type "
                f"'{self.config.values['model_type']}' this server knows {', '.join(kinds)}"
            )
        for key, value in self.image.values.items():
            if key in kind.only:
                if value != kind.only[key]:
                    raise self.image.error(key, f"this server knows it as {json.dumps(kind.only[key])} alone")
            elif key not in kind.defaults and key not in _EVERYWHERE:
                raise self.image.error(key, _UNKNOWN)
        return _settings(self.image.file, {**kind.defaults, **kind.only, **self.image.values})

    def processor_settings(self, *known: str) -> Settings:
        """Raises ArtifactError for a key that is none of these."""
        for key in self.processor.values:
            if key not in known and key not in _PARTS:
                raise self.processor.error(key, _UNKNOWN)
        return self.processor

    def token(self, name: str) -> str:
        """The control token whose id config.json gives as `name`_id or, in older files, `name`_index."""
        key = f"{name}_id" if f"{name}_id" in self.config.values else f"{name}_index"
        value = self.config.values.get(key)
        if not isinstance(value, int):
            raise self.config.error(key, "a token's id must stand there")
        return self.text.control_token(value)


def read_settings(folder: Path, text: Text) -> ModelSettings:
    """From both layouts: processor_config.json (transformers 5, nested) and preprocessor_config.json (the hub)."""
    config_file, processor_file = folder / "config.json", folder / "processor_config.json"
    config, processor = read_json(config_file), read_json_if_there(processor_file)
    file, image = processor_file, processor.get("image_processor")
    if image is None:
        file = folder / "preprocessor_config.json"
        image = read_json(file)
    return ModelSettings(
        _settings(config_file, config),
        _settings(config_file, config.get("vision_config"), "vision_config."),
        _settings(processor_file, processor),
        _settings(file, image),
        text,
    )


def _settings(file: Path, values: Any, part: str = "") -> Settings:
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ArtifactError(f"{file} holds no JSON object where {part or 'image_processor'} stands; export it again")
    return Settings(file, {key: value for key, value in values.items() if value is not None}, part)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
