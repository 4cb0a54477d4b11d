"""What a search found, and what it saw on the way: values, and their files."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..config import SearchMethod
from ..model import Model
from ..policy import Policy
from ..report import SearchHistory
from .cost import Cost, in_words
from .eta import Ranking
from .evolution import Generation

_POLICY, _HISTORY, _PROJECTOR = "policy.json", "search.json", "projector.safetensors"


@dataclass(frozen=True)
class SearchResult:
    """projector: evolved parameters by name, unpruned; empty where the checkpoint's stay.

    uniform_validation, searched_validation: J of the best uniform policy and of the one that was found, on held-out
    samples; the lower one was chosen. None when nothing was searched. eta: weight of the norm term in J.
    eta_chosen: the generation after which it was, 0 where it was set. eta_rankings: how well each eta of the grid
    ranked policies then; none where too little was known.
    """

    policy: Policy
    chosen: SearchMethod
    uniform_validation: float | None = None
    searched_validation: float | None = None
    history: tuple[Generation, ...] = ()
    projector: dict[str, Tensor] = field(default_factory=dict)
    eta: float = 0.0
    eta_chosen: int = 0
    eta_rankings: tuple[Ranking, ...] = ()
    costs: tuple[Cost, ...] = ()

    def apply_projector(self, model: Model) -> None:
        """Put the evolved projector into a dense model. Masks are made before that, from the checkpoint's weights."""
        parameters = dict(model.module.named_parameters())
        with torch.no_grad():
            for name, tensor in self.projector.items():
                parameters[name].copy_(tensor)

    def summary(self) -> SearchHistory:
        """What a report shows of it."""
        return SearchHistory(
            best=tuple(generation.best for generation in self.history),
            uniform=tuple(generation.uniform for generation in self.history),
            chosen=self.chosen,
            validation_uniform=self.uniform_validation,
            validation_searched=self.searched_validation,
            accepted=tuple(each.index for each in self.history if each.changed == "projector"),
            eta=self.eta,
            eta_chosen=self.eta_chosen,
            correlations=tuple((ranking.eta, ranking.correlation) for ranking in self.eta_rankings),
            cost=in_words(self.costs) if self.costs else "",
        )

    def save(self, folder: Path) -> None:
        values = asdict(replace(self, projector={}))
        del values["policy"], values["projector"]
        (folder / _POLICY).write_text(self.policy.to_json(), encoding="utf-8")
        (folder / _HISTORY).write_text(json.dumps(values, indent=1), encoding="utf-8")
        save_file({name: tensor.contiguous() for name, tensor in self.projector.items()}, folder / _PROJECTOR)

    @staticmethod
    def load(folder: Path) -> "SearchResult":
        values: dict[str, Any] = json.loads((folder / _HISTORY).read_text(encoding="utf-8"))
        lists: dict[str, type] = {"history": Generation, "eta_rankings": Ranking, "costs": Cost}
        for name, kind in lists.items():
            values[name] = tuple(kind(**entry) for entry in values[name])
        return SearchResult(
            policy=Policy.from_json((folder / _POLICY).read_text(encoding="utf-8")),
            projector=load_file(folder / _PROJECTOR),
            **values,
        )
