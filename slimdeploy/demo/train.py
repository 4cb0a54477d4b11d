"""Train the demo model from scratch: `python -m slimdeploy.demo.train --out DIR`.

Three stages (see `curriculum`), a state saved every few hundred steps so that a killed training goes on where it was,
and at the end the checkpoint with its model card.
"""

import argparse
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from ..progress import Progress
from .attention import use_training_attention
from .card import TrainingRun, write_card
from .curriculum import (
    PATCH_COLORS,
    PATCH_SHAPES,
    RECIPE,
    SMOKE_RECIPE,
    BatchMaker,
    LanguageBatch,
    Stage,
    VisionBatch,
    batches,
)
from .model import IMAGE_TOKENS, make_model, make_processor
from .optimizer import MasterWeights
from .scoring import score

STATE_FILE = "training-state.pt"
_STEPS_OF_NOTE = 100
_FEATURE_SIZE_WEIGHT = 0.01


@dataclass(frozen=True)
class Settings:
    """compile: compute in bfloat16 through torch.compile, which needs a C++ compiler; else in plain float32."""

    out: Path
    seed: int = 0
    recipe: tuple[Stage, ...] = RECIPE
    test_questions: int = 4000
    compile: bool = True
    threads: int = 1
    workers: int = 1
    save_every: int = 300


class Training:
    """A model on its way through the recipe: live weights, float32 masters, and how far it has come."""

    def __init__(self, settings: Settings, progress: Progress) -> None:
        self.settings = settings
        self.progress = progress
        self.processor: LlavaProcessor = make_processor()
        self.batches = BatchMaker(self.processor, settings.seed)
        self.positions = self.batches.layout.positions()
        self.model = make_model(self.processor.tokenizer, settings.seed)
        use_training_attention(self.model, self.batches.layout)
        width = self.model.config.text_config.hidden_size
        classes = {"color": PATCH_COLORS, "shape": PATCH_SHAPES, "place": IMAGE_TOKENS}
        self.heads = nn.ModuleDict({name: nn.Linear(width, count) for name, count in classes.items()})
        self.masters = {name: weight.detach().clone() for name, weight in self.live_weights().items()}
        self.stage = 0
        self.step = 0
        self.seconds = 0.0
        if settings.compile:
            self.model.bfloat16()
            self.heads.bfloat16()
            for layer in (*self.model.model.language_model.layers, *self.model.model.vision_tower.encoder.layers):
                layer.forward = torch.compile(layer.forward, dynamic=False)

    def live_weights(self) -> dict[str, nn.Parameter]:
        """Everything that is trained: not the last vision layer and the norm after it, which no feature passes."""
        unused = f"encoder.layers.{self.model.config.vision_config.num_hidden_layers - 1}."
        weights = {
            name: weight
            for name, weight in self.model.named_parameters()
            if unused not in name and "post_layernorm" not in name
        }
        return weights | {f"heads.{name}": weight for name, weight in self.heads.named_parameters()}

    def run(self) -> None:
        saved = self.load_state()
        while self.stage < len(self.settings.recipe):
            self.run_stage(self.settings.recipe[self.stage], saved)
            saved = None
            self.stage, self.step = self.stage + 1, 0
            self.save_state(None)

    def run_stage(self, stage: Stage, saved_optimizer: list[dict[str, Any]] | None) -> None:
        weights = MasterWeights(self.taught_weights(stage), self.masters, stage.lr)
        if saved_optimizer is not None:
            weights.load_state_dict(saved_optimizer)
        bar = self.progress.bar(f"{stage.name} stage", stage.steps - self.step)
        recent: deque[Tensor] = deque(maxlen=_STEPS_OF_NOTE)
        make = self.batches.vision if stage.name == "vision" else self.batches.language
        started = time.monotonic()
        for batch in batches(make, stage, self.step, self.settings.workers):
            loss, right = self.vision_loss(batch) if stage.name == "vision" else self.language_loss(batch, stage)
            torch.autograd.backward(loss)
            weights.step(stage.lr_scale(self.step))
            self.step += 1
            recent.append(right)
            bar.advance(f"right {torch.stack(list(recent)).mean():.3f}")
            if self.step % self.settings.save_every == 0:
                self.seconds += time.monotonic() - started
                started = time.monotonic()
                self.save_state(weights)
        self.seconds += time.monotonic() - started

    def taught_weights(self, stage: Stage) -> dict[str, nn.Parameter]:
        def taught(name: str) -> bool:
            sees = any(part in name for part in ("vision_tower", "projector"))
            match stage.name:
                case "vision":
                    return sees or name.startswith("heads.")
                case "language":
                    return not sees and not name.startswith("heads.")
                case "joint":
                    return not name.startswith("heads.")

        return {name: weight for name, weight in self.live_weights().items() if taught(name)}

    def image_features(self, pixels: Tensor) -> Tensor:
        """(batch, patches, width) for the language model."""
        features = self.model.model.get_image_features(pixels.to(self.model.dtype), return_dict=True)
        return torch.stack(list(features.pooler_output))

    def vision_loss(self, batch: VisionBatch) -> tuple[Tensor, Tensor]:
        """The loss, and the share of object patches whose shape is right.

        Features that did not tell their place would leave the language model blind to "where", and features much
        larger than what its layers add would leave them unable to make anything of a patch.
        """
        features = self.image_features(batch.pixels).flatten(0, 1)
        places = torch.arange(IMAGE_TOKENS).repeat(len(batch.pixels))
        labels = {"color": batch.colors.flatten(), "shape": batch.shapes.flatten(), "place": places}
        logits = {name: self.heads[name](features).float() for name in labels}
        loss = torch.stack([cross_entropy(logits[name], labels[name]) for name in labels]).sum()
        loss = loss + _FEATURE_SIZE_WEIGHT * features.float().square().mean()
        return loss, (logits["shape"].argmax(-1) == labels["shape"])[labels["shape"] > 0].float().mean()

    def language_loss(self, batch: LanguageBatch, stage: Stage) -> tuple[Tensor, Tensor]:
        """The loss over the answers' tokens, and the share of those that are right."""
        with torch.set_grad_enabled(stage.name == "joint"):
            features = self.image_features(batch.pixels)
        embedded = self.model.get_input_embeddings()(batch.ids)
        first, last = self.batches.first_image_token, self.batches.first_image_token + IMAGE_TOKENS
        embedded = torch.cat([embedded[:, :first], features, embedded[:, last:]], dim=1)
        hidden = self.model.model.language_model(
            inputs_embeds=embedded, position_ids=self.positions, use_cache=False
        ).last_hidden_state
        logits = self.model.lm_head(hidden.flatten(0, 1)[batch.predicting]).float()
        words = batch.answers != self.processor.tokenizer.eos_token_id
        right = (logits.argmax(-1) == batch.answers)[words].float().mean()
        return cross_entropy(logits, batch.answers), right

    def save_state(self, optimizer: MasterWeights | None) -> None:
        """optimizer: that of the running stage, or None between two stages."""
        state = {
            "stage": self.stage,
            "step": self.step,
            "seconds": self.seconds,
            "masters": {name: master.detach() for name, master in self.masters.items()},
            "optimizer": optimizer.state_dict() if optimizer else None,
        }
        aside = self.settings.out / f"{STATE_FILE}.new"
        torch.save(state, aside)
        aside.replace(self.settings.out / STATE_FILE)

    def load_state(self) -> list[dict[str, Any]] | None:
        """Go back to the last saved state, if any; the optimizer's part is returned."""
        path = self.settings.out / STATE_FILE
        if not path.exists():
            return None
        state = torch.load(path, weights_only=True)
        self.stage, self.step, self.seconds = state["stage"], state["step"], state["seconds"]
        with torch.no_grad():
            for name, live in self.live_weights().items():
                self.masters[name].copy_(state["masters"][name])
                live.copy_(self.masters[name])
        optimizer: list[dict[str, Any]] | None = state["optimizer"]
        return optimizer

    def trained_model(self) -> LlavaForConditionalGeneration:
        """A fresh model of stock transformers classes with the float32 masters."""
        model = make_model(self.processor.tokenizer, self.settings.seed)
        trained = {name: master for name, master in self.masters.items() if not name.startswith("heads.")}
        missing = model.load_state_dict(trained, strict=False)
        assert not missing.unexpected_keys
        return model


def train(settings: Settings, progress: Progress) -> None:
    """Train, or go on training, and write the checkpoint with its model card into `settings.out`."""
    settings.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(settings.threads)
    training = Training(settings, progress)
    training.run()
    training.trained_model().save_pretrained(settings.out)
    training.processor.save_pretrained(settings.out)
    scores = score(settings.out, settings.test_questions, progress)
    run = TrainingRun(settings.recipe, settings.seed, settings.threads, settings.compile, training.seconds)
    write_card(settings.out, scores, run)
    (settings.out / STATE_FILE).unlink()
    progress.say(f"{scores.exact['all']} of {settings.test_questions:,} test questions answered exactly")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m slimdeploy.demo.train")
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint's folder; what was begun there goes on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="more than one pays on an idle machine only")
    parser.add_argument("--no-compile", action="store_true", help="slower float32, but needs no C++ compiler")
    parser.add_argument("--smoke", action="store_true", help="a few steps of each stage, to see that it runs")
    arguments = parser.parse_args()
    settings = Settings(
        out=arguments.out, seed=arguments.seed, compile=not arguments.no_compile, threads=arguments.threads
    )
    if arguments.smoke:
        settings = Settings(
            arguments.out, arguments.seed, SMOKE_RECIPE, 50, settings.compile, settings.threads, workers=0, save_every=2
        )
    with Progress(Console()) as progress:
        train(settings, progress)


if __name__ == "__main__":
    main()
