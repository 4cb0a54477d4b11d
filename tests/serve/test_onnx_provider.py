"""Who runs the graphs: the CPU or CUDA, as the setting and the machine say, and never another than is told.

No GPU is needed: what CUDA changes in the choice and in the sessions is held with stand-ins that compute on the CPU.
"""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stand_in_gpu import CPU, CUDA, Gpu, install_driver, install_gpu

from slimdeploy.artifact import Artifact
from slimdeploy.config import ProviderSetting
from slimdeploy.errors import ArtifactError, ServeError
from slimdeploy.serve.engine import greedy
from slimdeploy.serve.engines import onnx_provider, onnx_sessions
from slimdeploy.serve.engines.onnx_provider import Provider, choose_provider
from slimdeploy.serve.runtime import LoadedModel


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> None:
    install_driver(monkeypatch)


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize(("setting", "device"), [("auto", "cuda"), ("cuda", "cuda"), ("cpu", "cpu")])
def test_cuda_is_taken_where_it_works_unless_the_cpu_is_asked_for(setting: ProviderSetting, device: str) -> None:
    provider = choose_provider(Gpu(), setting)
    assert provider.device == device
    assert f"serve.onnx.provider = '{setting}'" in str(provider)


NO_CUDA = SimpleNamespace(get_available_providers=lambda: [CPU])


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize(
    ("runtime", "problem"), [(NO_CUDA, "built without CUDA"), (Gpu(broken="no cuDNN\nat line 7"), r"\(no cuDNN\)")]
)
def test_without_cuda_auto_takes_the_cpu_and_says_why_and_cuda_is_an_error_with_the_remedy(
    runtime: Any, problem: str
) -> None:
    provider = choose_provider(runtime, "auto")
    assert provider.device == "cpu"
    with pytest.raises(ServeError, match=rf"'cuda', but .*{problem}; install slimdeploy\[edge-gpu\].*driver"):
        choose_provider(runtime, "cuda")


def test_a_machine_without_a_driver_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_provider, "_DRIVER", "libnosuchdriver.so.1")
    assert "libnosuchdriver.so.1: cannot open" in choose_provider(Gpu(), "auto").why


def test_what_was_chosen_is_said_at_the_start(artifact: Artifact, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "slimdeploy"):
        LoadedModel(artifact, threads=1)
    assert caplog.messages[0].startswith(f"{artifact.path}: runs on the CPU (serve.onnx.provider = 'auto'")


@pytest.mark.parametrize("attention", ["Cuda", "Cpu"])
def test_the_kv_cache_lies_where_attention_reads_it_and_answers_are_the_same(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch, attention: str
) -> None:
    answer = LoadedModel(artifact, threads=1).ask("What is it?", sampling=greedy(8))
    gpu = Gpu(attention)
    install_gpu(monkeypatch, gpu)
    model = LoadedModel(artifact, threads=1)
    assert model.ask("What is it?", sampling=greedy(8)) == answer
    assert [name if isinstance(name, str) else name[0] for name in gpu.providers] == [CUDA, CPU]
    assert gpu.on_the_gpu == (4 if attention == "Cuda" else 0), "keys and values of two blocks"


def test_a_session_that_fell_back_to_the_cpu_is_an_error(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    install_gpu(monkeypatch, Gpu(falls_back=True))
    with pytest.raises(ServeError, match=r"vision_encoder\.onnx on the CPU, and not with CUDA.*serve\.onnx\.provider"):
        LoadedModel(artifact, threads=1)


def test_a_graph_that_does_not_load_is_named_whoever_runs_it(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "vision_encoder.onnx").write_bytes(b"no graph")
    with pytest.raises(ArtifactError, match=r"vision_encoder\.onnx cannot be loaded"):
        onnx_sessions.OnnxSessions(tmp_path, 1, 8, Provider("cpu", "a test"))
