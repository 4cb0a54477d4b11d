"""What a sample is: pictures, a question and the answers that count as right.

Knows nothing of files or models; `slimdeploy.data` reads samples from disk, `slimdeploy.images` decodes pictures.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from .errors import DataError

Split = Literal["calibration", "search", "train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

ImageSource = Path | bytes
"""An encoded picture (PNG, JPEG, WebP, GIF): where it lies, or its bytes."""


@dataclass(frozen=True)
class Sample:
    """One question about zero or more pictures.

    answers: every text that counts as right; the first is the one to train on; empty where none is known.
    choices: the options of a multiple choice, or empty.
    kind: the type of question, for reports by type; empty where it is not known.
    """

    id: str
    question: str
    images: tuple[ImageSource, ...] = ()
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    kind: str = ""

    def content_hash(self) -> str:
        """sha256 of the pictures' bytes and the question: equal for equal content, whatever the id.

        Splits are disjoint by this hash.
        """
        digest = hashlib.sha256()
        for image in self.images:
            encoded = image if isinstance(image, bytes) else image.read_bytes()
            digest.update(hashlib.sha256(encoded).digest())
        digest.update(self.question.encode())
        return digest.hexdigest()


def require_answers(samples: Iterable[Sample], purpose: str) -> None:
    """Raises DataError that names the first sample without an answer; `purpose` says what answers are needed for."""
    for sample in samples:
        if not sample.answers:
            raise DataError(f"sample '{sample.id}' has no answer, but {purpose} needs one; add 'answer' to it")
