"""The untrained demo model: tokenizer, processor, chat template and a LLaVA of 2.8 million parameters.

Everything is a stock transformers class, so that the trained checkpoint loads like any other LLaVA.
"""

import math

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from .questions import example_texts
from .scenes import SIZE

PATCH = 12
GRID = SIZE // PATCH
IMAGE_TOKENS = GRID * GRID
IMAGE_TOKEN = "<image>"

USER = "USER:"
ASSISTANT = " ASSISTANT:"

CHAT_TEMPLATE = """\
{%- macro text_of(content) -%}
{%- if content is string -%}{{ content }}
{%- else -%}{%- for part in content if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- macro images_of(content) -%}
{%- if content is not string -%}
{%- for part in content if part['type'] in ('image', 'image_url') -%}{{ '<image>\\n' }}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{{- text_of(message['content']) + '\\n' -}}
{%- elif message['role'] == 'user' -%}
{{- 'USER: ' + images_of(message['content']) + text_of(message['content']) -}}
{%- elif message['role'] == 'assistant' -%}
{{- ' ASSISTANT: ' + text_of(message['content']) + eos_token -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- ' ASSISTANT:' -}}{%- endif -%}
"""
"""As LLaVA 1.5 does it: a turn's pictures come first, wherever they stand among its texts."""

_WORDS = r" ?[A-Za-z-]+:?| ?[0-9]|\s+| ?[^\sA-Za-z0-9]+"
_MAX_VOCABULARY = 640
_POSITIONS = 512


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE: every word of the task is one token, and any other text falls back to its bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_MAX_VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>", IMAGE_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # A question follows "\n" in the first turn and "USER: " in a later one: both forms of its first word are tokens.
    texts = (f"{USER} \n{text}{ASSISTANT} {USER} {text}" for text in example_texts())
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=_POSITIONS,
        clean_up_tokenization_spaces=False,
        extra_special_tokens={"image_token": IMAGE_TOKEN},
    )


def make_processor() -> LlavaProcessor:
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}, do_resize=True, do_center_crop=True
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=make_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlavaForConditionalGeneration:
    """Random weights, drawn from `seed`.

    The features come from the last vision layer but one, as in every LLaVA, so the fifth vision layer takes no part.
    """
    width = 128
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = CLIPVisionConfig(
        image_size=SIZE,
        patch_size=PATCH,
        hidden_size=width,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=4,
        projection_dim=width,
    )
    text = LlamaConfig(
        vocab_size=64 * math.ceil(len(tokenizer) / 64),
        hidden_size=width,
        intermediate_size=384,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=_POSITIONS,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        initializer_range=0.8 * width**-0.5,
        **special,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    model.generation_config.update(**special)
    with torch.no_grad():
        positions = model.model.vision_tower.embeddings.position_embedding.weight
        positions[1:] = 0.25 * grid_waves(positions.shape[1])
    return model


def grid_waves(width: int) -> torch.Tensor:
    """Sines and cosines of each patch's column and row: the vision tower knows from the start where a patch lies.

    Returns (GRID * GRID, width), patches row by row.
    """
    angle = 2 * math.pi * torch.arange(GRID) / GRID
    rows, columns = torch.meshgrid(angle, angle, indexing="ij")
    octaves = width // 4
    frequencies = 0.5 * 2 ** (2.5 * torch.arange(octaves) / octaves)
    waves = [wave(axis.reshape(-1, 1) * frequencies) for axis in (columns, rows) for wave in (torch.sin, torch.cos)]
    return torch.cat(waves, dim=1)
