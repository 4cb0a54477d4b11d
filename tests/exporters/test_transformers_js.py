"""An exported folder of the LLaVA family is loaded by transformers.js as it is; it answers there as in our runtime."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from slimdeploy.config import ExportConfig, OnnxConfig, OnnxWeights
from slimdeploy.exporters import ExportJob, export
from slimdeploy.exporters.judging import MAX_TOKENS, greedy_in_torch
from slimdeploy.exporters.verify import greedy_in_onnx
from slimdeploy.model import Model
from slimdeploy.progress import Progress
from slimdeploy.samples import Sample
from slimdeploy.serve.engines.onnx_model import OnnxModel

NODE = Path(__file__).parents[1] / "node"
pytestmark = [pytest.mark.node, pytest.mark.network, pytest.mark.usefixtures("traced_once")]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Beside transformers.js, whose install scripts would fetch CUDA."""
    folder = tmp_path_factory.mktemp("node")
    for file in NODE.iterdir():
        shutil.copy(file, folder)
    install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run(install, cwd=folder, check=True, capture_output=True)
    return folder / "ask.mjs"


@pytest.mark.parametrize("weights", ["dense-fp32", "dense-fp16", "dense-int8", "dense-int4"])
def test_dense_exports_answer_in_transformers_js(
    weights: OnnxWeights, program: Path, model: Model, prompts: list[Sample], tmp_path: Path
) -> None:
    folder = tmp_path / "exported"
    folder.mkdir()
    export(model, folder, ExportJob(ExportConfig(onnx=OnnxConfig(weights=weights)), prompts), Progress.silent())
    questions = []
    for prompt in prompts:
        image = tmp_path / f"{prompt.id}.png"
        (picture,) = prompt.images
        assert isinstance(picture, bytes)
        image.write_bytes(picture)
        questions.append({"image": str(image), "question": prompt.question, "max_tokens": MAX_TOKENS})
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    command = ["node", program, folder, tmp_path / "questions.json"]
    answers = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    exported = OnnxModel(folder, threads=1)
    assert answers == [greedy_in_onnx(exported, [prompt])[0] for prompt in prompts]
    if weights == "dense-fp32":
        assert answers == [greedy_in_torch(model, prompt) for prompt in prompts]
