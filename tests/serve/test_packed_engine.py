"""An artifact of packed weights in the engine: by the kernels, or with a warning without them; the same answers."""

import logging
from dataclasses import replace

import pytest
from stand_in_gpu import Gpu, install_gpu
from tiny import make_samples

import slimdeploy.serve.engines.onnx_sessions as onnx_sessions
from slimdeploy import layouts
from slimdeploy.artifact import Artifact
from slimdeploy.errors import ConfigError
from slimdeploy.kernels import operators
from slimdeploy.kernels.library import FORCED, LayoutChoice, instruction_set_in_use, library_file
from slimdeploy.serve.engine import greedy
from slimdeploy.serve.runtime import LoadedModel

pytestmark = pytest.mark.usefixtures("traced_once")

WARNING = "save neither memory nor time here: no compiler"


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "missing_operators", lambda: "no compiler")


def answers(artifact: Artifact) -> list[str]:
    model = LoadedModel(artifact, threads=1)
    return [model.ask(sample.question, sample.images, greedy(12)) for sample in make_samples(4, seed=5)]


@pytest.mark.skipif(library_file() is None, reason="the kernels were not built")
def test_answers_are_the_same_with_and_without_the_kernels(
    packed_artifact: Artifact, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_kernels = answers(packed_artifact)
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    monkeypatch.setattr(onnx_sessions, "register_operators", lambda _: None)
    assert answers(packed_artifact) == with_kernels


@pytest.mark.skipif(library_file() is None, reason="the kernels were not built")
def test_how_weights_are_held_in_memory_is_said_once_for_each_kind(
    packed_artifact: Artifact, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layouts, "layout_choice", lambda *_: LayoutChoice("dense", 50.0, 30.0))
    row = {"rows": 2048, "columns": 2048, "pattern": "unstructured", "kept": 2**21, "bytes": 2**21 + 2**19 + 2**16}
    rows = [row | changes for changes in ({}, {"kept": 2**20}, {"columns": 64, "kept": 2**16, "bytes": 2**16})]
    manifest = replace(packed_artifact.manifest, layers=rows)
    with caplog.at_level(logging.INFO, "slimdeploy"):
        LoadedModel(replace(packed_artifact, manifest=manifest), threads=1)
    assert [(record.levelname, record.getMessage()) for record in caplog.records[1:]] == [
        ("INFO", f"{packed_artifact.path}: kernels {instruction_set_in_use()}"),
        (
            "WARNING",
            f"{packed_artifact.path}: packed int8 weights, 50% to 75% pruned: held dense in memory "
            "(30 ns per 1000 weights; sparse 50)",
        ),
        (
            "INFO",
            f"{packed_artifact.path}: packed int8 weights, 50% pruned: held sparse in memory "
            "(below 1,048,576 weights nothing is measured)",
        ),
    ]


@pytest.mark.skipif(library_file() is None, reason="the kernels were not built")
def test_a_set_of_kernels_that_is_not_there_is_named_with_those_that_are(
    packed_artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FORCED, "abacus")
    with pytest.raises(ConfigError, match=r"SLIMDEPLOY_KERNELS = 'abacus' is no set of kernels.*portable"):
        LoadedModel(packed_artifact, threads=1)


@pytest.mark.skipif(library_file() is None, reason="the kernels were not built")
def test_a_gpu_runs_packed_weights_without_our_operators_and_says_what_that_means(
    packed_artifact: Artifact, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answers(packed_artifact)
    install_gpu(monkeypatch, Gpu())
    monkeypatch.setattr(onnx_sessions, "register_operators", lambda _: pytest.fail("these are the CPU's"))
    assert answers(packed_artifact) == expected
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "unpacked to float32" in record.getMessage()
    assert "dense-fp16" in record.getMessage()


@pytest.mark.usefixtures("without_kernels")
def test_a_device_without_kernels_is_told_once_what_that_means(
    packed_artifact: Artifact, caplog: pytest.LogCaptureFixture
) -> None:
    LoadedModel(packed_artifact, threads=1)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert WARNING in record.getMessage()


@pytest.mark.usefixtures("without_kernels")
def test_an_artifact_that_is_not_packed_needs_no_kernels(artifact: Artifact, caplog: pytest.LogCaptureFixture) -> None:
    manifest = replace(artifact.manifest, verification={"weights": "dense-fp32"})
    LoadedModel(replace(artifact, manifest=manifest), threads=1)
    assert not caplog.records
