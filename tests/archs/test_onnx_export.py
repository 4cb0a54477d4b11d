"""Every family that ONNX holds, from checkpoint to answers: what a device reads, sees and says is what torch does."""

from pathlib import Path

import pytest
from exported import Exported, exported, half_pruned, prompts_for
from families import FAMILIES
from made_once import MakeOnce

from slimdeploy.artifact import open_artifact
from slimdeploy.evaluate import greedy_answers
from slimdeploy.exporters.limits import VISION_TOWERS
from slimdeploy.model import Model
from slimdeploy.progress import Progress
from slimdeploy.serve.engine import greedy
from slimdeploy.serve.runtime import LoadedModel

EXPORTED = tuple(name for name in VISION_TOWERS["onnx"] if name in FAMILIES)
PARTS = {"vision_encoder", "embed_tokens", "decoder_model_merged"}

pytestmark = pytest.mark.usefixtures("traced_once")


@pytest.fixture(scope="module", params=EXPORTED)
def model(request: pytest.FixtureRequest, make_once: MakeOnce) -> Model:
    name: str = request.param
    return half_pruned(name, make_once)


@pytest.fixture(scope="module")
def dense(model: Model, make_once: MakeOnce) -> Exported:
    return exported(model, "dense-fp32", make_once)


def test_every_part_is_within_float32_of_torch(dense: Exported, model: Model) -> None:
    assert set(dense.verification["relative_error"]) == PARTS
    assert max(dense.verification["relative_error"].values()) < 2e-5
    assert dense.verification["prompts"] == len(prompts_for(model))
    assert max(dense.verification["batch_sizes"]) >= 3
    assert dense.verification["ties"] == 0


def test_the_runtime_gives_the_answers_that_torch_gives(dense: Exported, model: Model) -> None:
    samples = prompts_for(model)
    served = LoadedModel(open_artifact(dense.folder), threads=1)
    answers = [served.ask(sample.question, sample.images, greedy(12)) for sample in samples]
    assert answers == greedy_answers(model, samples, 12, 1, Progress.silent())
    assert len(set(answers)) > 1, "the answers do not depend on the prompt"


def test_packed_weights_are_verified_and_smaller(dense: Exported, model: Model, make_once: MakeOnce) -> None:
    packed = exported(model, "packed-int8", make_once)
    assert packed.verification["relative_error_of_products"] < 1e-5
    assert _bytes(packed.folder) < 0.7 * _bytes(dense.folder), "and most of it is the graphs"


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.onnx*"))
