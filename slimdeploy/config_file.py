"""Reading and writing deploy.toml. What may stand in it, and what it means, is `config`'s.

An error names the key, its value and what would be right. `render_config` writes the documented example that
`slimdeploy init` gives and that stands at the top of the repository.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Iterable
from datetime import date, time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from .config import Config, Table, Target
from .errors import ConfigError

_HOW_TO_RUN = "Run it with `slimdeploy run deploy.toml`. What is left out keeps the value shown here."

EXAMPLE_TARGETS = (
    Target(metric="accuracy_retention", min=0.97),
    Target(metric="ttft", percentile=95, max_ms=250),
    Target(metric="tpot", percentile=95, max_ms=60),
    Target(metric="artifact_mb", max=16),
)


def load_config(path: Path) -> Config:
    """Read deploy.toml; relative paths in it start from its own folder.

    Raises ConfigError that names the key, its value and what would be right.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; `slimdeploy init` writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    except (ValueError, RecursionError) as error:  # also numbers too long for Python, and arrays too deep
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    # Resolved, so that the copy in the run's folder means the same from everywhere.
    return parse_config(tables, name=str(path)).anchored(path.parent.resolve())


def parse_config(tables: dict[str, Any], name: str = "deploy.toml") -> Config:
    """Check the tables of a deploy.toml. `model = "NAME"` is short for `[model] path = "NAME"`."""
    if isinstance(tables.get("model"), str):
        tables = tables | {"model": {"path": tables["model"]}}
    _refuse_dates(tables, (), name)
    try:
        # By way of JSON: there pydantic's strict mode takes arrays for tuples and still refuses "3" for 3.
        return Config.model_validate_json(json.dumps(tables))
    except ValidationError as error:
        raise ConfigError(f"{name}: " + "; ".join(map(_sentence, error.errors(include_url=False)))) from None


def _refuse_dates(value: Any, location: tuple[int | str, ...], name: str) -> None:
    """No setting is a date; TOML reads one where quotes are missing."""
    match value:
        case dict():
            for key, inner in value.items():
                _refuse_dates(inner, (*location, key), name)
        case list():
            for place, inner in enumerate(value):
                _refuse_dates(inner, (*location, place), name)
        case date() | time():
            raise ConfigError(f"{name}: {_key(location)} = {value} is a date or time; write it in quotes if it is text")


def _key(location: Iterable[int | str]) -> str:
    """As TOML writes it, on one line: parts that are no bare keys stand in quotes."""
    parts = map(str, location)
    return ".".join(part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else json.dumps(part) for part in parts)


def _sentence(error: ErrorDetails) -> str:
    key = _key(error["loc"])
    if error["type"] == "extra_forbidden":
        suggestion = difflib.get_close_matches(str(error["loc"][-1]), _siblings(error["loc"]), n=1, cutoff=0.5)
        hint = f"did you mean '{suggestion[0]}'?" if suggestion else f"known are {', '.join(_siblings(error['loc']))}"
        return f"{key} is not a setting; {hint}"
    if error["type"] == "missing":
        return f"{key} is missing"
    reason = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    value = json.dumps(error["input"])
    if error["type"] == "value_error":
        return f"{key}: {reason}" if key and not reason.startswith(key) else reason
    if error["type"] == "literal_error":
        suggestion = difflib.get_close_matches(str(error["input"]), _options(error), n=1, cutoff=0.5)
        reason += f"; did you mean '{suggestion[0]}'?" if suggestion else ""
    return f"{key} = {value} {reason}"


def _options(error: ErrorDetails) -> list[str]:
    return str(error["ctx"]["expected"]).replace(" or ", ", ").replace("'", "").split(", ")


def _siblings(location: tuple[int | str, ...]) -> list[str]:
    """The settings that stand beside an unknown one."""
    table: type[BaseModel] = Config
    for part in location[:-1]:
        if part == "targets":
            table = Target
        elif isinstance(part, str):
            annotation = next(f.annotation for n, f in table.model_fields.items() if (f.alias or n) == part)
            assert isinstance(annotation, type)
            assert issubclass(annotation, BaseModel)
            table = annotation
    return [field.alias or name for name, field in table.model_fields.items()]


def render_config(config: Config | None = None) -> str:
    """The documented deploy.toml: every table, key, meaning and value. Reading it gives `config` back."""
    config = config or Config(targets=EXAMPLE_TARGETS)
    lines = ["# slimdeploy: from a vision-language model to a served, measured deployment.", f"# {_HOW_TO_RUN}", ""]
    lines += _render_table("", config)
    lines += ["# What must hold; `slimdeploy validate` exits with 1 when one is missed. Metrics and their bounds:"]
    lines += ["#   ttft, tpot, e2e     percentile, max_ms  time to first token, per further token, of the answer"]
    lines += ["#   throughput          min                 generated tokens per second, all requests together"]
    lines += ["#   accuracy            min                 share of right answers through the endpoint, 0 to 1"]
    lines += ["#   accuracy_retention  min                 that share over the dense model's"]
    lines += ["#   artifact_mb         max                 size of the artifact in MB (10^6 bytes)"]
    for target in config.targets:
        lines += ["[[targets]]"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in target.model_dump(exclude_none=True).items()]
        lines += [""]
    return "\n".join(lines).rstrip() + "\n"


def _render_table(path: str, table: Table) -> list[str]:
    lines: list[str] = []
    subtables: list[str] = []
    for name, field in type(table).model_fields.items():
        key, value = field.alias or name, getattr(table, name)
        if isinstance(value, Table):
            subpath = f"{path}.{key}" if path else key
            subtables += [f"# {(type(value).__doc__ or '').strip()}", f"[{subpath}]", *_render_table(subpath, value)]
        elif key != "targets":
            lines += [f"# {line}" for line in (field.description or "").splitlines()]
            lines += [f"{key} = {json.dumps(value)}"]
    return [*lines, "", *subtables]
