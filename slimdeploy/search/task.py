"""What a search is given, and where it notes what it finds out and what it spends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..config import Config
from ..model import Model
from ..progress import Progress
from ..prune import Stats
from ..samples import Sample, Split
from .cost import Ledger
from .journal import Journal
from .space import Space


@dataclass(frozen=True)
class Task:
    """The model is dense."""

    model: Model
    stats: Stats
    samples: Mapping[Split, Sequence[Sample]]
    config: Config
    space: Space
    progress: Progress
    journal: Journal
    ledger: Ledger = field(default_factory=Ledger)
