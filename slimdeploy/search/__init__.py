"""The policy search: how much of each weight matrix goes, so that the whole meets its budget and loses least.

`model_search` puts it to a model. What decides (`evolution`, `space`, `allocation`) knows no torch, nor does what this
file imports.
"""

from .cost import Cost
from .evolution import Generation, Outcome, Plan, evolve
from .space import Space, search_space

__all__ = ["Cost", "Generation", "Outcome", "Plan", "Space", "evolve", "search_space"]
