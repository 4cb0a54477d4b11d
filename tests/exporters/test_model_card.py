"""The model card says what the manifest says."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import get_args

import pytest
from exported import Exported

from slimdeploy.artifact import Manifest
from slimdeploy.config import ExportFormat
from slimdeploy.exporters import write_card
from slimdeploy.model import Model
from slimdeploy.policy import Level, Policy, describe
from slimdeploy.scoring import Accuracy


@pytest.fixture
def manifest(model: Model, onnx_export: Exported) -> Manifest:
    layers = model.layers()
    policy = Policy({layer.name: Level(0.5 if layer.tower == "language" else 0.25) for layer in layers})
    return Manifest(
        format="onnx",
        model="owner/picture-answerer",
        family="llava",
        sparsity=policy.sparsity(layers),
        layers=describe(layers, policy),
        quality={"dense": asdict(Accuracy(0.94, 0.005, 2000)), "restored": asdict(Accuracy(0.92, 0.006, 2000))},
        verification=onnx_export.verification,
        versions={"slimdeploy": "1.2.3"},
    )


def card_of(manifest: Manifest, folder: Path) -> str:
    write_card(folder, manifest)
    return (folder / "README.md").read_text()


def test_source_sparsity_and_quality_are_named(manifest: Manifest, tmp_path: Path) -> None:
    card = card_of(manifest, tmp_path)
    assert "Made from `owner/picture-answerer` (family llava) with slimdeploy 1.2.3." in card
    assert f"{manifest.sparsity:.1%} pruned" in card
    assert "| vision tower | 12 | " in card
    assert "| 50.0% | unstructured |" in card
    assert "| dense | 94.0% | 0.5% | 2,000 |" in card
    assert "| restored | 92.0% | 0.6% | 2,000 |" in card


def test_what_is_not_known_is_said_to_be_so(manifest: Manifest, tmp_path: Path) -> None:
    card = card_of(replace(manifest, sparsity=0.0, layers=[], quality={}, verification={}), tmp_path)
    assert "not pruned" in card
    assert "Not measured." in card
    assert "Not checked." in card


@pytest.mark.parametrize("name", get_args(ExportFormat))
def test_every_format_says_how_to_load_it(name: ExportFormat, manifest: Manifest, tmp_path: Path) -> None:
    loading = {"onnx": "slimdeploy serve", "checkpoint": "AutoModelForMultimodalLM", "vllm": "vllm serve"}
    assert loading[name] in card_of(replace(manifest, format=name), tmp_path)


def test_each_kind_of_verification_is_put_into_words(
    manifest: Manifest, checkpoint_export: Exported, tmp_path: Path
) -> None:
    assert "greedy tokens equal on 4 prompts" in card_of(manifest, tmp_path)
    checked = replace(manifest, format="checkpoint", verification=checkpoint_export.verification)
    assert "the logits on 4 prompts are equal bit for bit" in card_of(checked, tmp_path)
