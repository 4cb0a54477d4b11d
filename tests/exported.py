"""What a fixture hands to a test: an export and what its verification said."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Exported:
    folder: Path
    verification: dict[str, Any]
