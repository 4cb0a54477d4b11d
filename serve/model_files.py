"""The JSON files that describe a model inside an artifact, read with errors that name the file."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from slimdeploy.errors import ArtifactError

Family = Literal["llava", "llava_next", "idefics3", "smolvlm", "qwen2_5_vl", "qwen3_vl", "paligemma", "gemma3"]
"""The `model_type` of config.json."""


def read_json(file: Path) -> dict[str, Any]:
    """Raises ArtifactError when the file is missing or holds no JSON object."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{file} is missing; export the artifact again") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{file} cannot be read as JSON: {error}; export the artifact again") from None
    if not isinstance(values, dict):
        raise ArtifactError(f"{file} holds no JSON object; export the artifact again")
    return values


def read_json_if_there(file: Path) -> dict[str, Any]:
    """Empty where there is no such file: several layouts name different files for one thing."""
    return read_json(file) if file.is_file() else {}


@dataclass(frozen=True)
class TokenLimits:
    """Of a prompt, and of prompt and answer together; 0: as the model has it."""

    prompt: int = 0
    total: int = 0

    def within(self, context: int) -> "TokenLimits":
        """Both as numbers, for a model of so many tokens; a prompt leaves room for a token of its answer."""
        total = min(self.total or context, context)
        return TokenLimits(min(self.prompt or total, total - 1), total)


AS_THE_MODEL = TokenLimits()


@dataclass(frozen=True)
class ModelFacts:
    """What generation must know of a model.

    context: tokens that prompt and answer may have together. image_token: id that stands for one image feature.
    end_tokens: ids that end an answer.
    """

    context: int
    image_token: int
    end_tokens: frozenset[int]
    family: Family


def read_facts(folder: Path) -> ModelFacts:
    """From config.json and generation_config.json; the latter wins, as in transformers."""
    config = read_json(folder / "config.json")
    text = config.get("text_config", config)
    generation = read_json_if_there(folder / "generation_config.json")
    context: Any = text.get("max_position_embeddings")
    image_token: Any = config.get("image_token_id", config.get("image_token_index"))
    ends: Any = next((c["eos_token_id"] for c in (generation, config, text) if c.get("eos_token_id") is not None), None)
    found = {"max_position_embeddings": context, "image_token_id": image_token, "eos_token_id": ends}
    for key, value in found.items():
        if value is None:
            raise ArtifactError(f"{folder / 'config.json'} has no {key}; export the artifact again")
    ends = frozenset(ends if isinstance(ends, list) else [ends])
    return ModelFacts(int(context), int(image_token), ends, _family(folder / "config.json", config))


def _family(file: Path, config: dict[str, Any]) -> Family:
    model_type: Any = config.get("model_type")
    families: tuple[Family, ...] = get_args(Family)
    if model_type not in families:
        raise ArtifactError(
            f"{file} is of the model type {model_type!r}, which this server does not know; it serves "
            f"{', '.join(families)}; export another model"
        )
    return families[families.index(model_type)]
