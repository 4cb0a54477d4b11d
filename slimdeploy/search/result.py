"""What a search found, and what it saw on the way: values, and their files."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..config import SearchMethod
from ..model import Model
from ..policy import Policy
from .evolution import Generation

_POLICY, _HISTORY, _PROJECTOR = "policy.json", "search.json", "projector.safetensors"


@dataclass(frozen=True)
class SearchResult:
    """projector: evolved parameters by name, unpruned; empty where the checkpoint's stay.

    uniform_validation, searched_validation: J of both policies on held-out samples; the lower one was chosen.
    Equal when nothing was searched.
    """

    policy: Policy
    chosen: SearchMethod
    uniform_validation: float
    searched_validation: float
    history: tuple[Generation, ...] = ()
    projector: dict[str, Tensor] = field(default_factory=dict)

    def apply_projector(self, model: Model) -> None:
        """Put the evolved projector into a dense model. Masks are made before that, from the checkpoint's weights."""
        parameters = dict(model.module.named_parameters())
        with torch.no_grad():
            for name, tensor in self.projector.items():
                parameters[name].copy_(tensor)

    def save(self, folder: Path) -> None:
        values = {
            "chosen": self.chosen,
            "uniform_validation": self.uniform_validation,
            "searched_validation": self.searched_validation,
            "history": [asdict(generation) for generation in self.history],
        }
        (folder / _POLICY).write_text(self.policy.to_json(), encoding="utf-8")
        (folder / _HISTORY).write_text(json.dumps(values, indent=1), encoding="utf-8")
        save_file({name: tensor.contiguous() for name, tensor in self.projector.items()}, folder / _PROJECTOR)

    @staticmethod
    def load(folder: Path) -> "SearchResult":
        values = json.loads((folder / _HISTORY).read_text(encoding="utf-8"))
        history: Iterable[dict[str, float]] = values.pop("history")
        return SearchResult(
            policy=Policy.from_json((folder / _POLICY).read_text(encoding="utf-8")),
            history=tuple(Generation(**generation) for generation in history),  # type: ignore[arg-type]
            projector=load_file(folder / _PROJECTOR),
            **values,
        )
