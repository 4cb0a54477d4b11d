"""Prompts equal those of transformers, and a template cannot reach out of its sandbox."""

from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoProcessor

from slimdeploy.errors import ArtifactError
from slimdeploy.serve.chat_template import ChatTemplate, load_chat_template
from slimdeploy.serve.engine import Message, RequestError
from slimdeploy.serve.text import special_tokens

PICTURE = Image.new("RGB", (2, 2))
CONVERSATIONS = (
    (Message("user", ("Hello",)),),
    (Message("user", (PICTURE, "What is this?")),),
    (Message("user", ("What", PICTURE, "are", PICTURE, "these?")),),
    (Message("system", ("Be brief.",)), Message("user", (PICTURE, "é <b>&'\"\n x "))),
    (Message("user", ("Hi",)), Message("assistant", ("Ho",)), Message("user", ("  and \n\n now ",))),
)
TEMPLATES = (
    "{{ bos_token }}{% for m in messages %}\n  {% if m.role == 'user' %}\n{{ m.content | tojson }}\n  {% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}GO{{ eos_token }}{% endif %}\n",
    "{%- for m in messages -%}{%- if loop.index > 2 -%}{%- break -%}{%- endif -%}{% generation %}{{ m.role | upper }}"
    "{% endgeneration %}{%- for c in m.content if c.type == 'image' -%}<image>{%- endfor -%}{%- endfor -%}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{{ missing }}"
    "{{ unk_token }}{{ m.content[0].text | default('-') | trim }}{% endfor %}",
)


def as_transformers(message: Message) -> dict[str, object]:
    parts = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in message.parts]
    return {"role": message.role, "content": parts}


@pytest.mark.parametrize("template", [None, *TEMPLATES])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_equals_transformers(checkpoint: Path, template: str | None, conversation: tuple[Message, ...]) -> None:
    processor = AutoProcessor.from_pretrained(checkpoint)
    expected = processor.apply_chat_template(
        [as_transformers(message) for message in conversation], chat_template=template, add_generation_prompt=True
    )
    tokens = special_tokens(checkpoint)
    ours = ChatTemplate(template, tokens) if template else load_chat_template(checkpoint, tokens)
    assert ours.render(conversation) == expected


def test_reads_both_layouts_alike(checkpoint: Path, hub_checkpoint: Path) -> None:
    prompts = [load_chat_template(f, special_tokens(f)).render(CONVERSATIONS[1]) for f in (checkpoint, hub_checkpoint)]
    assert prompts[0] == prompts[1]


def test_a_template_may_refuse_a_conversation() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", {})
    with pytest.raises(RequestError, match="refuses these messages: roles must alternate") as caught:
        template.render(CONVERSATIONS[0])
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source", ["{{ messages.append(1) }}", "{{ ''.__class__.__mro__ }}", "{{ 1 / 'a' }}", "{{ messages[9].role.x }}"]
)
def test_a_template_that_fails_is_the_requests_error(source: str) -> None:
    with pytest.raises(RequestError, match="cannot render"):
        ChatTemplate(source, {}).render(CONVERSATIONS[0])


def test_a_template_that_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="has no chat template"):
        load_chat_template(tmp_path, {})
    (tmp_path / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(ArtifactError, match="not valid"):
        load_chat_template(tmp_path, {})


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' * 1000000000 }}",
        "{{ 1000000000 * ['x'] }}",
        "{{ ('x' * 1000000) * 1000 }}",
        "{{ 9 ** 99999999 }}",
        "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
        "{% for i in range(1000) %}{% for m in messages %}{{ m.content[0].text * 900000 }}{% endfor %}{% endfor %}",
    ],
)
def test_no_template_makes_a_prompt_without_an_end(source: str) -> None:
    with pytest.raises(RequestError, match="makes too long a prompt") as caught:
        ChatTemplate(source, {}).render(CONVERSATIONS[0])
    assert (caught.value.param, caught.value.code) == ("messages", "context_length_exceeded")


def test_many_messages_without_a_word_are_too_long_a_prompt() -> None:
    template = ChatTemplate("{% for m in messages %}{{ '<turn of ' + m.role + '>' }}{% endfor %}", {})
    with pytest.raises(RequestError, match="makes too long a prompt") as caught:
        template.render([Message("user", ("a",)), *[Message("assistant", ())] * 100_000])
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(10000000000) %}{% endfor %}",
        "{% macro deeper() %}{{ deeper() }}{% endmacro %}{{ deeper() }}",
        "{{ 1 / 0 }}",
        "{{ 10.0 ** 60 ** 60 }}",
    ],
)
def test_a_template_that_goes_too_far_fails_as_any_other(source: str) -> None:
    with pytest.raises(RequestError):
        ChatTemplate(source, {}).render(CONVERSATIONS[0])


def test_a_long_conversation_is_not_too_long_a_prompt() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.content[0].text }}{% endfor %}", {})
    assert len(template.render([Message("user", ("x" * 3_000_000,))])) == 3_000_000
