"""Every family that ONNX holds, from checkpoint to answers: what a device reads, sees and says is what torch does."""

from pathlib import Path

import pytest
import torch
from artifacts import new_artifact
from exported import Exported
from families import FAMILIES, make_checkpoint
from made_once import MakeOnce
from tiny import make_samples

from slimdeploy.artifact import Manifest, open_artifact
from slimdeploy.config import ExportConfig
from slimdeploy.evaluate import greedy_answers
from slimdeploy.exporters import ExportJob, export
from slimdeploy.exporters.limits import VISION_TOWERS
from slimdeploy.model import Model, load_model
from slimdeploy.progress import Progress
from slimdeploy.samples import Sample
from slimdeploy.serve.engine import greedy
from slimdeploy.serve.runtime import LoadedModel

EXPORTED = tuple(name for name in VISION_TOWERS["onnx"] if name in FAMILIES)
SEEDS = {"gemma3": 2}
"""Of random models whose answers depend on the prompt, where the usual one's do not."""
PARTS = {"vision_encoder", "embed_tokens", "decoder_model_merged"}

pytestmark = pytest.mark.usefixtures("traced_once")


@pytest.fixture(scope="module", params=EXPORTED)
def model(request: pytest.FixtureRequest, make_once: MakeOnce) -> Model:
    """Half of every prunable matrix is zero."""
    name: str = request.param
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


@pytest.fixture(scope="module")
def dense(model: Model, make_once: MakeOnce) -> Exported:
    return exported(model, "dense-fp32", make_once)


def exported(model: Model, weights: str, make_once: MakeOnce) -> Exported:
    def make(parent: Path) -> Exported:
        family = model.arch.model_type
        with new_artifact(parent / "artifact", Manifest("onnx", family, family)) as folder:
            config = ExportConfig.model_validate({"onnx": {"weights": weights}})
            verification = export(model, folder, ExportJob(config, prompts_for(model)), Progress.silent())
        return Exported(parent / "artifact", verification)

    return make_once(f"artifact_{model.arch.model_type}_{weights}", make)


def test_every_part_is_within_float32_of_torch(dense: Exported, model: Model) -> None:
    assert set(dense.verification["relative_error"]) == PARTS
    assert max(dense.verification["relative_error"].values()) < 2e-5
    assert dense.verification["prompts"] == len(prompts_for(model))
    assert dense.verification["batch_sizes"] == [1, 3]
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
