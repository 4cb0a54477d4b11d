"""How much memory serving takes is told before anything is loaded, and whether the machine has it."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from slimdeploy import doctor, layouts
from slimdeploy.artifact import Artifact, Manifest
from slimdeploy.cli import main
from slimdeploy.config import ServeConfig, ServeOnnxConfig
from slimdeploy.errors import ArtifactError, ServeError
from slimdeploy.kernels.library import LayoutChoice
from slimdeploy.serve import memory
from slimdeploy.serve.engines import create_engine
from slimdeploy.serve.engines.pace import LARGEST_PIECE
from slimdeploy.serve.memory import all_needs, lasting_needs, total

CONFIG = ServeConfig(threads=1, concurrency=3, max_image_megapixels=1.0)


def needed(artifact: Artifact, config: ServeConfig = CONFIG) -> dict[str, int]:
    return {need.what: need.bytes for need in all_needs(artifact, config)}


def test_every_request_has_a_cache_of_the_whole_context(artifact: Artifact) -> None:
    """Two blocks of two KV heads, 16 wide, keys and values in float32, 256 tokens."""
    assert needed(artifact)["KV cache"] == 3 * 256 * (2 * 2 * 2 * 16 * 4)


def test_weights_take_what_their_files_take(artifact: Artifact) -> None:
    files = sum(file.stat().st_size for file in artifact.path.glob("*.onnx*"))
    assert needed(artifact)["weights"] == files
    halves = replace(artifact.manifest, verification={"weights": "dense-fp16"})
    assert needed(replace(artifact, manifest=halves))["weights"] == 2 * files


ROW = {"rows": 2048, "columns": 2048, "pattern": "unstructured", "kept": 2**21, "bytes": 2**21 + 2**19 + 2**12}


def packed(artifact: Artifact) -> Artifact:
    manifest = replace(artifact.manifest, layers=[ROW], verification={"weights": "packed-int8"})
    return replace(artifact, manifest=manifest)


def test_matrices_that_are_held_dense_take_their_zeros_too(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "missing_operators", lambda: None)
    monkeypatch.setattr(layouts, "layout_choice", lambda *_: LayoutChoice("sparse", 30.0, 50.0))
    sparse = needed(packed(artifact))["weights"]
    monkeypatch.setattr(layouts, "layout_choice", lambda *_: LayoutChoice("dense", 50.0, 30.0))
    pruned, mask = 2**21, 2**19
    assert needed(packed(artifact))["weights"] == sparse + pruned - mask


def test_without_kernels_packed_weights_are_unpacked(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "missing_operators", lambda: "no compiler")
    assert needed(packed(artifact))["weights"] == 33 * 2048 * 2048


def test_what_requests_take_grows_with_their_number_and_their_pictures(artifact: Artifact) -> None:
    one = needed(artifact, CONFIG.model_copy(update={"concurrency": 1}))
    assert all(needed(artifact)[what] == 3 * one[what] for what in ("KV cache", "prompts"))
    text = json.loads((artifact.path / "config.json").read_text())["text_config"]
    piece = min(text["max_position_embeddings"], LARGEST_PIECE)
    assert needed(artifact)["logits"] == 2 * (3 + piece) * 4 * text["vocab_size"]
    assert all(needed(artifact)[what] == one[what] for what in ("language model", "vision")), "one at a time"
    assert needed(artifact, CONFIG.model_copy(update={"max_images": 16}))["pictures"] > needed(artifact)["pictures"]


def test_a_dry_run_tells_whether_it_fits_and_serves_nothing(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("slimdeploy.serve.server.run_server", lambda *_, **__: pytest.fail("it serves"))
    command = ["serve", str(artifact.path), "--dry-run"]
    assert main(command) == 0
    assert "it fits" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "free_memory", lambda: 1_000_000)
    assert main(command) == 1
    shown = capsys.readouterr().out
    assert "KV cache" in shown
    assert "does not fit; lower serve.concurrency, serve.cache_mb" in shown
    monkeypatch.setattr(doctor, "free_memory", lambda: None)
    assert main(command) == 0
    assert "not known" in capsys.readouterr().out


BARE = {
    "model_type": "llava",
    "image_token_id": 4,
    "eos_token_id": 2,
    "text_config": {"max_position_embeddings": 256},
}


def test_what_is_kept_for_later_requests_counts(artifact: Artifact) -> None:
    kept = {mb: needed(artifact, CONFIG.model_copy(update={"cache_mb": mb}))["kept for later"] for mb in (0.0, 2.5)}
    assert kept == {0.0: 0, 2.5: 2_500_000}


def test_a_dry_run_refuses_what_serving_would_refuse(artifact: Artifact, tmp_path: Path) -> None:
    cuda = CONFIG.model_copy(update={"onnx": ServeOnnxConfig(provider="cuda")})
    with pytest.raises(ServeError, match="provider = 'cuda'"):
        all_needs(artifact, cuda)
    assert main(["serve", str(tmp_path), "--dry-run"]) == 2
    with pytest.raises(ServeError, match="'vllm', which no engine here serves"):
        all_needs(Artifact(tmp_path, Manifest("vllm", "m", "llava")), CONFIG)
    (tmp_path / "config.json").write_text(json.dumps(BARE))
    with pytest.raises(ArtifactError, match=r"config\.json has no num_attention_heads"):
        lasting_needs(Artifact(tmp_path, artifact.manifest), CONFIG)


def test_a_server_that_cannot_fit_says_so_before_it_loads(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "slimdeploy")
    create_engine(artifact, CONFIG)
    assert not caplog.records
    least = total(lasting_needs(artifact, CONFIG))
    monkeypatch.setattr(memory, "free_memory", lambda: least - 1)
    create_engine(artifact, CONFIG)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "lower serve.concurrency" in caplog.text
