"""The demo model's training script, and the checkpoint that ships."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

from slimdeploy.demo import CHECKPOINT, samples
from slimdeploy.demo.curriculum import RECIPE, SMOKE_RECIPE, Stage
from slimdeploy.demo.model import CHAT_TEMPLATE, make_tokenizer
from slimdeploy.demo.optimizer import MasterWeights
from slimdeploy.demo.scoring import answer
from slimdeploy.demo.train import STATE_FILE, Settings, Training, train
from slimdeploy.progress import Progress

SHIPPED_QUESTIONS = 200
LARGEST_WEIGHTS = 16 * 2**20


class InterruptError(Exception):
    pass


def smoke_settings(out: Path) -> Settings:
    return Settings(out, 0, SMOKE_RECIPE, test_questions=10, compile=False, workers=0, save_every=2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("smoke")
    train(smoke_settings(out), Progress.silent())
    return out


def test_smoke_training_leaves_a_checkpoint_that_transformers_loads(trained: Path) -> None:
    model, report = LlavaForConditionalGeneration.from_pretrained(trained, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert len(answer(model, AutoProcessor.from_pretrained(trained), samples("test", 3))) == 3
    assert not (trained / STATE_FILE).exists()


@pytest.mark.parametrize("steps", [1, 3, 5, 8])
def test_a_killed_training_ends_with_the_same_weights(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    step = MasterWeights.step
    done = 0

    def step_or_die(self: MasterWeights, lr_scale: float) -> None:
        nonlocal done
        if done == steps:
            raise InterruptError
        done += 1
        step(self, lr_scale)

    settings = smoke_settings(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(MasterWeights, "step", step_or_die)
        with pytest.raises(InterruptError):
            Training(settings, Progress.silent()).run()
    resumed = Training(settings, Progress.silent())
    resumed.run()
    expected = load_file(trained / "model.safetensors")
    resumed.trained_model().save_pretrained(tmp_path)
    got = load_file(tmp_path / "model.safetensors")
    assert expected.keys() == got.keys()
    for name, weight in expected.items():
        assert torch.equal(weight, got[name]), name


@pytest.mark.parametrize("stage", RECIPE, ids=lambda stage: stage.name)
def test_the_learning_rate_rises_holds_and_falls(stage: Stage) -> None:
    scales = [stage.lr_scale(step) for step in range(stage.steps)]
    held = scales[stage.warmup : int(stage.hold * stage.steps)]
    assert scales[0] < 1
    assert set(held) <= {1.0}
    assert scales[-1] == pytest.approx(stage.final_lr, abs=0.01)


def test_the_shipped_checkpoint_answers_the_test_split() -> None:
    model = LlavaForConditionalGeneration.from_pretrained(CHECKPOINT).eval()
    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    asked = samples("test", SHIPPED_QUESTIONS)
    greedy = [text for text, _ in answer(model, processor, asked)]
    right = sum(text == sample.answers[0] for text, sample in zip(greedy, asked, strict=True))
    assert right >= 0.9 * SHIPPED_QUESTIONS


def test_the_shipped_checkpoint_is_what_the_script_writes() -> None:
    assert (CHECKPOINT / "model.safetensors").stat().st_size <= LARGEST_WEIGHTS
    assert (CHECKPOINT / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    shipped = AutoProcessor.from_pretrained(CHECKPOINT).tokenizer
    assert shipped.get_vocab() == make_tokenizer().get_vocab()
    names = {path.name for path in CHECKPOINT.iterdir()}
    assert names == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
