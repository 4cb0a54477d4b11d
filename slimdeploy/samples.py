"""What a sample is: pictures or sounds, a question and the answers that count as right.

Knows nothing of files or models; `slimdeploy.data` reads samples from disk, `slimdeploy.images` decodes pictures.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from .errors import DataError

Split = Literal["calibration", "search", "train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

AnswerMetric = Literal["exact_match", "letter", "vqa", "relaxed"]
"""How an answer is judged; `slimdeploy.metrics` says what each means."""

ImageSource = Path | bytes
"""An encoded picture (PNG, JPEG, WebP, GIF): where it lies, or its bytes."""


SoundSource = Path | bytes
"""An encoded sound (WAV of PCM samples): where it lies, or its bytes."""


@dataclass(frozen=True)
class Sample:
    """One question about zero or more pictures, or sounds for a model that hears.

    answers: every text that counts as right, or what every human said (vqa); the first is the one to train on; empty
    where none is known.
    choices: the options of a multiple choice, or empty.
    kind: the type of question, for reports by type; empty where it is not known.
    """

    id: str
    question: str
    images: tuple[ImageSource, ...] = ()
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    kind: str = ""
    metric: AnswerMetric = "exact_match"
    sounds: tuple[SoundSource, ...] = ()

    def content_hash(self) -> str:
        """sha256 of the pictures' and sounds' bytes and the question: equal for equal content, whatever the id.

        Splits are disjoint by this hash.
        """
        digest = hashlib.sha256()
        for source in (*self.images, *self.sounds):
            encoded = source if isinstance(source, bytes) else source.read_bytes()
            digest.update(hashlib.sha256(encoded).digest())
        digest.update(self.question.encode())
        return digest.hexdigest()


def fingerprints(samples: Iterable[Sample]) -> list[str]:
    """What each sample is, its answers, kind and metric included; equal for equal samples, whatever their ids."""
    return [
        json.dumps([sample.content_hash(), sample.answers, sample.choices, sample.kind, sample.metric])
        for sample in samples
    ]


def fingerprint_of_split(fingerprints: Sequence[str]) -> str:
    """One value for all samples of a split, in order."""
    return hashlib.sha256("\n".join(fingerprints).encode()).hexdigest()


def require_answers(samples: Iterable[Sample], purpose: str) -> None:
    """Raises DataError that names the first sample without an answer; `purpose` says what answers are needed for."""
    for sample in samples:
        if not sample.answers:
            raise DataError(f"sample '{sample.id}' has no answer, but {purpose} needs one; add 'answer' to it")
