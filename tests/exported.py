"""Exports of tiny models, and what a fixture hands to a test: the folder and what its verification said."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from artifacts import new_artifact
from families import FAMILIES, make_checkpoint
from made_once import MakeOnce
from tiny import make_samples

from slimdeploy.artifact import Manifest
from slimdeploy.config import ExportConfig
from slimdeploy.exporters import ExportJob, export
from slimdeploy.model import Model, load_model
from slimdeploy.progress import Progress
from slimdeploy.samples import Sample

SEEDS = {"gemma3": 2}
"""Of random models whose answers depend on the prompt, where the usual one's do not."""


@dataclass(frozen=True)
class Exported:
    folder: Path
    verification: dict[str, Any]


def half_pruned(name: str, make_once: MakeOnce) -> Model:
    """A model of a family; half of every prunable matrix is zero."""
    seed = SEEDS.get(name, 0)
    model = load_model(str(make_once(f"exported_{name}", lambda folder: make_checkpoint(FAMILIES[name], folder, seed))))
    with torch.no_grad():
        for layer in model.layers():
            weight = model.linear(layer.name).weight
            weight *= weight.abs() > weight.abs().median()
    return model


def prompts_for(model: Model) -> list[Sample]:
    """Pictures of several shapes; one prompt without, and one with two, where the family takes such."""
    prompts = make_samples(3)
    if model.arch.fewest == 0:
        prompts.append(Sample("text", "Which day is it?"))
    return [*prompts, Sample("two", "Which is larger?", (*prompts[0].images, *prompts[1].images))]


def exported(model: Model, weights: str, make_once: MakeOnce) -> Exported:
    """Made once for every model of a family."""

    def make(parent: Path) -> Exported:
        family = model.arch.model_type
        with new_artifact(parent / "artifact", Manifest("onnx", family, family)) as folder:
            config = ExportConfig.model_validate({"onnx": {"weights": weights}})
            verification = export(model, folder, ExportJob(config, prompts_for(model)), Progress.silent())
        return Exported(parent / "artifact", verification)

    made: Exported = make_once(f"artifact_{model.arch.model_type}_{weights}", make)
    return made
