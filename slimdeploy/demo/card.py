"""The model card that is written beside the trained weights."""

import json
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from .curriculum import Stage
from .scoring import Scores

_CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---

# slimdeploy demo model

A LLaVA of {parameters:.2f} million parameters, trained from scratch on generated pictures. It exists so that slimdeploy
can prune, restore, export, serve and measure a real vision-language model where no checkpoint can be downloaded. It
knows this one task and nothing else.

## Task

Pictures of 48 x 48 pixels: four out of five show one to four coloured shapes (seven colours, five shapes) with jitter
of place, size and colour, the others a handwritten digit, scaled and tinted; all with varied exposure and sensor noise.
Questions of seven kinds, each answered with one word:

| Kind | Example |
|---|---|
| color | What color is the circle? |
| shape | What shape is the red object? |
| digit | Which digit is this? |
| count | How many crosses are there? |
| position | Where is the blue ring? |
| relation | Where is the red circle relative to the blue square? |
| existence | Is there an orange triangle? |

`slimdeploy.demo.samples(split, count)` makes the pictures on the spot. Each split has its own seeds and its own digits.

## Accuracy

On the first {questions:,} questions of the split "test", with standard errors. Exact: the greedy answer equals the
right one. Likelihood: the right choice is the likeliest of those offered; guessing would give {chance:.1%}.

{accuracy}

The recipe was settled while looking at answers to the first 1,000 of these questions; no weights were chosen by them.

## Architecture

- Vision tower: CLIP, {vision_layers} layers, {vision_width} wide, MLP {vision_mlp}, patches of {patch} pixels, \
{image_tokens} image tokens. The features come from the last layer but one, so the last layer takes no part.
- Projector: two linear layers with GELU.
- Language model: Llama, {layers} layers, {width} wide, MLP {mlp}, {heads} heads, {kv_heads} KV heads, \
{positions} positions.
- Tokenizer: byte-level BPE of its own; any text can be encoded, every answer is one token.
- Chat template: `<s>USER: <image>\\nquestion ASSISTANT: answer</s>USER: ...`

## Training

{stages}

1. vision: the vision tower and the projector learn what each patch shows (colour, shape) and where it lies.
2. language: the language model learns on their frozen features; at first pictures with one or two objects.
3. joint: everything together.

Several short conversations about each picture share its tokens; the first lists all objects. Pictures never repeat.
Muon for matrices, AdamW for the rest, float32 masters, {compute}.
It took {minutes:.0f} minutes on {threads} of {hardware}.

To repeat it, from the repository: `python -m slimdeploy.demo.train --out DIR --seed {seed}`

## Licences

The weights are under the licence of slimdeploy, Apache-2.0. The digits are those that scikit-learn bundles: E. Alpaydin
and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998,
https://doi.org/10.24432/C50P49, CC BY 4.0; here scaled, tinted and with noise. All other pictures are generated.
"""


@dataclass(frozen=True)
class TrainingRun:
    """How a checkpoint came about. compiled: in bfloat16 through torch.compile, else in float32."""

    recipe: Sequence[Stage]
    seed: int
    threads: int
    compiled: bool
    seconds: float


def write_card(checkpoint: Path, scores: Scores, run: TrainingRun) -> None:
    """Write README.md into `checkpoint`."""
    config = json.loads((checkpoint / "config.json").read_text())
    vision, text = config["vision_config"], config["text_config"]
    card = _CARD.format(
        parameters=_count_parameters(checkpoint) / 1e6,
        questions=scores.exact["all"].asked,
        chance=scores.chance,
        accuracy=_accuracy_table(scores),
        vision_layers=vision["num_hidden_layers"],
        vision_width=vision["hidden_size"],
        vision_mlp=vision["intermediate_size"],
        patch=vision["patch_size"],
        image_tokens=config["image_seq_length"],
        layers=text["num_hidden_layers"],
        width=text["hidden_size"],
        mlp=text["intermediate_size"],
        heads=text["num_attention_heads"],
        kv_heads=text["num_key_value_heads"],
        positions=text["max_position_embeddings"],
        stages=_stage_table(run.recipe),
        compute="computing in bfloat16 through torch.compile" if run.compiled else "computing in float32",
        minutes=run.seconds / 60,
        threads="one core" if run.threads == 1 else f"{run.threads} cores",
        hardware=f"a server CPU ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})",
        seed=run.seed,
    )
    (checkpoint / "README.md").write_text(card)


def _accuracy_table(scores: Scores) -> str:
    rows = [
        f"| {kind} | {accuracy.asked:,} | {accuracy} | {scores.likelihood[kind]} |"
        for kind, accuracy in scores.exact.items()
    ]
    return "\n".join(["| Kind | Questions | Exact | Likelihood |", "|---|---|---|---|", *rows])


def _stage_table(recipe: Sequence[Stage]) -> str:
    rows = [
        f"| {stage.name} | {stage.steps:,} | {stage.batch} | {stage.lr:g} "
        f"| {f'held for {stage.hold:.0%}, then ' if stage.hold else ''}linear to {stage.final_lr:.0%} |"
        for stage in recipe
    ]
    header = "| Stage | Steps | Pictures a step | Learning rate | Schedule |"
    return "\n".join([header, "|---|---|---|---|---|", *rows])


def _count_parameters(checkpoint: Path) -> int:
    with safe_open(checkpoint / "model.safetensors", framework="np") as weights:
        names = weights.keys()
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in names)
