"""Samples from disk, in splits that never overlap. Knows file formats; keeps no picture and no sound.

A source is "demo", one file, a folder with one file per split, or a data set's folder as it is published
(`published`). A file holds a JSON array, or one JSON object per line; every entry is recognised by its keys:

- `question`, with `image` or `images`, or `audio`, `answer` or `answers`, `choices`, `kind` or `type`;
- `conversations` (LLaVA) or `messages` (OpenAI): the first question and the answer to it are taken.
"""

import hashlib
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from .config import DataConfig
from .errors import DataError
from .images import check_image
from .published import Published, read_published
from .records import Located, read_records
from .samples import SPLITS, Sample, Split
from .sounds import check_sound

# The test split is handed out first, so that its samples stay what they are when other counts change.
_ORDER: tuple[Split, ...] = ("test", "validation", "calibration", "search", "train")


def load_samples(config: DataConfig, splits: Collection[Split]) -> dict[Split, list[Sample]]:
    """The samples of `splits`; which samples a split has does not depend on the other splits asked for.

    From one file or a published data set every split gets exactly the number that `config` says. Other folders have the
    splits ready: each gets the first samples of its file, at most that number.
    Raises DataError that names the file and line for whatever cannot be used.
    """
    if config.source == "demo":
        from .demo import samples

        return {split: samples(split, getattr(config, split)) for split in splits}
    source = Path(config.source)
    images = Path(config.images) if config.images else None
    counts: dict[Split, int] = {split: getattr(config, split) for split in SPLITS}
    if source.is_dir():
        published = read_published(source, images)
        if published is None:
            return _from_folder(source, images or source, counts, splits)
        drawn = draw_published(published, counts)
    elif source.is_file():
        drawn = draw_splits(read_records(source, images or source.parent), counts, str(source))
    else:
        raise DataError(f"{source} does not exist; data.source is 'demo', a file or a folder with one file per split")
    return {split: drawn[split] for split in splits}


def shortfalls(config: DataConfig, samples: Mapping[Split, Sequence[Sample]]) -> tuple[str, ...]:
    """Sentences on splits that hold fewer samples than asked for, as files of a folder may."""
    return tuple(
        f"{config.source} has {len(own)} of the {getattr(config, split)} samples that data.{split} asks for."
        for split, own in samples.items()
        if len(own) < getattr(config, split)
    )


def draw_splits(
    located: Iterable[Located], counts: dict[Split, int], source: str, home: dict[str, Split] | None = None
) -> dict[Split, list[Sample]]:
    """Hand the samples out to the splits in the order of a hash; those with equal content go to the same split.

    The hash knows only the sample itself, so a few more samples move only those at the borders between splits.
    No more pictures are read than are needed.
    home: the splits of contents that were handed out before, which no other split gets; filled up here.
    """
    drawn: dict[Split, list[Sample]] = {split: [] for split in _ORDER if split in counts}
    home = {} if home is None else home
    for item in sorted(located, key=_order):
        open_split = next((split for split in drawn if len(drawn[split]) < counts[split]), None)
        if open_split is None:
            break
        split = home.setdefault(_checked_hash(item), open_split)
        if split in drawn and len(drawn[split]) < counts[split]:  # a duplicate whose split is full is left out
            drawn[split].append(item.sample)
    if any(len(drawn[split]) < counts[split] for split in drawn):
        raise DataError(_too_few(source, counts, different=sum(split in drawn for split in home.values())))
    return drawn


def draw_published(published: Published, counts: dict[Split, int]) -> dict[Split, list[Sample]]:
    """The test split out of what the data set is judged on, the others out of what it is learned from.

    What the test split holds is left out of the others.
    """
    home: dict[str, Split] = {}
    test: dict[Split, int] = {"test": counts["test"]}
    others: dict[Split, int] = {split: count for split, count in counts.items() if split != "test"}
    judged = draw_splits(published.test.samples, test, published.test.source, home)
    return judged | draw_splits(published.train.samples, others, published.train.source, home)


def _order(item: Located) -> str:
    sample = item.sample
    digest = hashlib.sha256(sample.question.encode())
    for source in (*sample.images, *sample.sounds):
        digest.update(hashlib.sha256(source if isinstance(source, bytes) else source.name.encode()).digest())
    return digest.hexdigest() + sample.id


def _checked_hash(item: Located) -> str:
    """The sample's content hash, after a check of its media, whole: training would meet them after hours."""
    try:
        for image in item.sample.images:
            check_image(image)
        for sound in item.sample.sounds:
            check_sound(sound)
    except DataError as error:
        remedy = "put an intact file there (data.images says where pictures and sounds are), or take the sample out"
        raise DataError(f"{item.where}: sample '{item.sample.id}': {error}; {remedy}") from None
    return item.sample.content_hash()


def _too_few(source: str, counts: dict[Split, int], different: int) -> str:
    if different < len(counts):
        return f"{source} holds {different} different samples; each of {', '.join(counts)} needs at least one"
    asked = " + ".join(map(str, counts.values())) + (f" = {sum(counts.values())}" if len(counts) > 1 else "")
    fitting = fitting_counts(counts, different)
    settings = ", ".join(f"{split} = {fitting[split]}" for split in counts)
    return f"{source} holds {different} different samples, but [data] asks for {asked}; set for instance {settings}"


def fitting_counts(counts: dict[Split, int], available: int) -> dict[Split, int]:
    """Counts that sum to at most `available`: small wishes are met, the large ones share the rest equally."""
    fitting: dict[Split, int] = {}
    for position, split in enumerate(sorted(counts, key=lambda split: counts[split])):
        share = (available - sum(fitting.values())) // (len(counts) - position)
        fitting[split] = min(counts[split], share)
    return fitting


def _from_folder(
    folder: Path, images: Path, counts: dict[Split, int], splits: Collection[Split]
) -> dict[Split, list[Sample]]:
    files = {split: _split_file(folder, split) for split in SPLITS}
    for split in splits:
        if files[split] is None:
            raise DataError(
                f"{folder} has no {split}.jsonl; a folder given as data.source holds one file per split, or ScienceQA "
                "(problems.json, pid_splits.json) or VizWiz (train.json, val.json) as it is published"
            )
    # Every file that is there is read, so that an overlap shows at the first step and not at the last.
    located = {
        split: list(itertools.islice(read_records(file, images), counts[split]))
        for split, file in files.items()
        if file is not None
    }
    _refuse_overlap(located)
    return {split: [item.sample for item in located[split]] for split in splits}


def _split_file(folder: Path, split: Split) -> Path | None:
    return next((file for suffix in (".jsonl", ".json") if (file := folder / f"{split}{suffix}").is_file()), None)


def _refuse_overlap(located: dict[Split, list[Located]]) -> None:
    seen: dict[str, tuple[Split, Located]] = {}
    for split, items in located.items():
        for item in items:
            other_split, other = seen.setdefault(_checked_hash(item), (split, item))
            if other_split != split:
                raise DataError(
                    f"{item.where}: sample '{item.sample.id}' has the pictures and question of sample "
                    f"'{other.sample.id}' ({other.where}); the splits {other_split} and {split} must not overlap"
                )
