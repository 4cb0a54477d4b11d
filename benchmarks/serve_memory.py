"""What `slimdeploy serve --dry-run` reckons, beside what a server then takes that answers prompts of the whole context.

make bench-serve-memory
"""

import argparse
import asyncio
import base64
import io
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from onnx_exports import FORMS, TINY, Form, make
from PIL import Image
from random_llava import Shape, Tower
from results import Row, markdown_table, publish
from rich.table import Table

from slimdeploy.artifact import Artifact, Manifest, open_artifact, write_manifest
from slimdeploy.config import ServeConfig
from slimdeploy.doctor import most_memory
from slimdeploy.serve.model_files import read_facts, read_json
from slimdeploy.serve.server import background_server
from slimdeploy.serve.text import Text

MID = Shape(
    vision=Tower(blocks=11, width=1024, mlp=2816, heads=16, key_value_heads=16),
    language=Tower(blocks=12, width=1024, mlp=2816, heads=16, key_value_heads=16),
    vocabulary=32000,
)
PROGRAM = Path(__file__).parent / "programs" / "reckoned.py"
ANSWER = 16
ROUNDS = 3
WORD = "how many "
GOAL = 15


@dataclass(frozen=True)
class Setting:
    """Requests at a time, and megapixels of a picture."""

    form: str
    requests: int
    megapixels: float


SETTINGS = (
    Setting("packed int8 50%", 1, 1),
    Setting("packed int8 50%", 4, 1),
    Setting("packed int8 50%", 8, 1),
    Setting("packed int8 50%", 1, 40),
    Setting("packed int4 50%", 4, 1),
    Setting("float32", 1, 1),
    Setting("float32", 4, 1),
    Setting("float16", 1, 1),
    Setting("dynamic int8", 1, 1),
    Setting("MatMulNBits int4", 1, 1),
    Setting("MatMulNBits int4", 4, 1),
)


@dataclass(frozen=True)
class Taken:
    setting: Setting
    reckoned: int
    measured: int

    @property
    def error(self) -> float:
        return self.reckoned / self.measured - 1


def measure(artifact: Artifact, setting: Setting) -> Taken:
    config = ServeConfig(
        concurrency=setting.requests,
        cache_mb=0,
        max_images=1,
        max_image_megapixels=setting.megapixels,
        max_tokens=ANSWER,
    )
    command = [sys.executable, str(PROGRAM), str(artifact.path), config.model_dump_json()]
    reckoned = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    question = _long_question(artifact)
    with background_server(artifact, config) as url:
        child = max(_children())  # the last that was started
        asyncio.run(_ask(f"{url}/v1/chat/completions", artifact.manifest.model, question, setting))
        measured = most_memory(child)
    return Taken(setting, reckoned, measured)


def _children() -> list[int]:
    """Processes that this one has started."""
    return [int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]


def _long_question(artifact: Artifact) -> str:
    """With a picture it leaves an answer just the room that it needs."""
    text, facts = Text(artifact.path), read_facts(artifact.path)
    patches: int = read_json(artifact.path / "config.json")["image_seq_length"]
    per_word = (len(text.encode(WORD * 100)) - len(text.encode(""))) / 100
    return WORD * int((facts.context - patches - ANSWER - 64) / per_word)


async def _ask(url: str, model: str, question: str, setting: Setting) -> None:
    side = int((setting.megapixels * 1e6) ** 0.5)
    rng = np.random.default_rng(0)
    async with httpx.AsyncClient(timeout=None, trust_env=False) as client:
        for _ in range(ROUNDS):
            posts = [client.post(url, json=_body(model, question, rng, side)) for _ in range(setting.requests)]
            for response in await asyncio.gather(*posts):
                response.raise_for_status()


def _body(model: str, question: str, rng: np.random.Generator, side: int) -> dict[str, Any]:
    """Each about a picture of its own, of large squares, that takes few bytes and many pixels."""
    squares = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(
        (side, side), Image.Resampling.NEAREST
    )
    stream = io.BytesIO()
    squares.save(stream, "PNG")
    encoded = base64.b64encode(stream.getvalue()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}},
        {"type": "text", "text": question},
    ]
    return {
        "model": model,
        "max_tokens": ANSWER,
        "ignore_eos": True,
        "messages": [{"role": "user", "content": content}],
    }


def table_of(found: Sequence[Taken]) -> Table:
    table = markdown_table("weights", "requests at a time", "pictures", "reckoned", "measured", "error")
    for taken in found:
        setting = taken.setting
        sizes = (f"{size / 1e6:.0f} MB" for size in (taken.reckoned, taken.measured))
        table.add_row(
            setting.form, str(setting.requests), f"{setting.megapixels:g} MP", *sizes, f"{100 * taken.error:+.0f}%"
        )
    return table


def rows_of(found: Sequence[Taken]) -> Iterator[Row]:
    """Dense exports give back each request's cache when it ends: those of several are seldom full at one time."""
    full = [each for each in found if each.setting.requests == 1 or each.setting.form.startswith("packed")]
    error = 100 * max(abs(each.error) for each in full)
    yield Row("largest error of the reckoning, where caches are full", error, "%", GOAL, at_most=True)


def as_artifact(folder: Path, form: Form) -> Artifact:
    write_manifest(folder, Manifest("onnx", "random", "llava", verification={"weights": form.weights}))
    return open_artifact(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the result as JSON instead of tables")
    parser.add_argument("--quick", action="store_true", help="a tiny model: figures mean nothing, nothing is written")
    arguments = parser.parse_args()
    settings = SETTINGS[:1] if arguments.quick else SETTINGS
    forms = [form for form in FORMS if form.name in {setting.form for setting in settings}]
    with tempfile.TemporaryDirectory() as folder:
        made, _ = make(Path(folder), TINY if arguments.quick else MID, forms)
        artifacts = {each.name: as_artifact(each.folder, form) for each, form in zip(made, forms, strict=True)}
        found = [measure(artifacts[setting.form], setting) for setting in settings]
    note = (
        f"Random weights, LLaVA-1.5's layout: {MID.blocks} 1024 wide, 4096 tokens, pictures of 576 patches. Each "
        "request fills the context, with a picture."
    )
    publish(
        "serve_memory", list(rows_of(found)), [table_of(found), note], as_json=arguments.json, keep=not arguments.quick
    )


if __name__ == "__main__":
    main()
