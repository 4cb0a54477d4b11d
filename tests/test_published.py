"""ScienceQA and VizWiz as they are published: what becomes of an entry, of the parts, and of each flaw."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from published_sets import write_json, write_science_qa, write_vizwiz

from slimdeploy.config import DataConfig
from slimdeploy.data import load_samples
from slimdeploy.errors import DataError
from slimdeploy.metrics import credit
from slimdeploy.samples import SPLITS, Sample, Split

COUNTS = {"calibration": 2, "search": 2, "train": 3, "validation": 2, "test": 4}


def load(folder: Path, **settings: Any) -> dict[Split, list[Sample]]:
    return load_samples(DataConfig.model_validate({"source": str(folder), **COUNTS, **settings}), SPLITS)


def by_id(splits: dict[Split, list[Sample]]) -> dict[str, Sample]:
    return {sample.id: sample for samples in splits.values() for sample in samples}


@pytest.fixture
def science_qa(tmp_path: Path) -> Path:
    return write_science_qa(tmp_path / "ScienceQA", train=9, test=4)


@pytest.fixture
def vizwiz(tmp_path: Path) -> Path:
    return write_vizwiz(tmp_path / "VizWiz", train=9, val=4)


def change(file: Path, edit: Callable[[Any], Any]) -> None:
    """Edit what a JSON file holds, in place."""
    value = json.loads(file.read_text())
    edit(value)
    write_json(file, value)


class TestScienceQA:
    def test_a_problem_becomes_a_lettered_question(self, science_qa: Path) -> None:
        samples = by_id(load(science_qa))
        assert samples["1"] == Sample(
            id="1",
            question="Figure: 1.\nWhich is 1?\nA. a leaf\nB. a stone\nC. B\n"
            "Answer with the letter of the right choice.",
            images=(science_qa / "images" / "train" / "1" / "image.png",),
            answers=("B",),
            choices=("A", "B", "C"),
            kind="language science",
            metric="letter",
        )
        assert samples["6"].images == ()
        assert samples["6"].question.startswith("Which is 6?\nA.")
        assert samples["6"].answers == ("A",)

    def test_only_the_letter_counts_even_where_a_choice_reads_like_one(self, science_qa: Path) -> None:
        sample = by_id(load(science_qa))["1"]  # its third choice is the text "B"
        earned = {answer: credit(sample, answer) for answer in ("B", "(b)", "B. a stone", "C", "a stone")}
        assert earned == {"B": 1, "(b)": 1, "B. a stone": 1, "C": 0, "a stone": 0}

    def test_the_test_split_is_the_published_one_and_the_others_are_from_train(self, science_qa: Path) -> None:
        splits = load(science_qa)
        assert {split: len(samples) for split, samples in splits.items()} == COUNTS
        assert {sample.id for sample in splits["test"]} == {"10", "11", "12", "13"}
        assert len(by_id(splits)) == sum(COUNTS.values())

    def test_what_test_holds_too_is_left_out_of_training(self, science_qa: Path) -> None:
        def copy_into_test(problems: dict[str, Any]) -> None:
            problems["13"] = problems["3"] | {"split": "test"}

        change(science_qa / "problems.json", copy_into_test)
        ids = by_id(load(science_qa, train=2))
        assert "13" in ids
        assert "3" not in ids
        with pytest.raises(DataError, match=r"pid_splits.json, 'train', holds 8 different samples, but .* 2 \+ 3 \+ 2"):
            load(science_qa)

    def test_pictures_may_lie_beside_the_files_or_elsewhere(self, science_qa: Path, tmp_path: Path) -> None:
        shutil.move(science_qa / "images", tmp_path / "pictures")
        assert by_id(load(science_qa, images=str(tmp_path / "pictures")))["1"].images
        for part in ("train", "test"):
            shutil.move(tmp_path / "pictures" / part, science_qa / part)
        assert by_id(load(science_qa))["1"].images == (science_qa / "train" / "1" / "image.png",)

    @pytest.mark.parametrize("name", ["problems.json", "pid_splits.json"])
    def test_a_file_that_is_missing_or_broken_is_named_with_where_to_get_it(self, science_qa: Path, name: str) -> None:
        for spoilt, said in (("{", "is not valid JSON"), ("[]", "holds no JSON object"), (None, "is missing")):
            (science_qa / name).unlink()
            if spoilt:
                (science_qa / name).write_text(spoilt)
            with pytest.raises(DataError, match=rf"{name} {said}.*; .* of lupantech/ScienceQA"):
                load(science_qa)

    @pytest.mark.parametrize(
        ("spoilt", "said"),
        [
            ({"answer": 3}, "'answer' is 3, but the 3 choices are counted from 0; correct it"),
            ({"answer": -1}, "'answer' is -1, but the 3 choices"),
            ({"choices": []}, "'answer' is 1, but the 0 choices"),
            ({"answer": "B"}, "is no problem of ScienceQA"),
            ({"choices": "red"}, "is no problem of ScienceQA"),
            ({"choices": [1, 2, 3]}, r"texts, not 'Figure: 1.', 'image.png' and \[1, 2, 3\]"),
            ({"hint": 3}, "texts, not 3, "),
            ({"image": ["image.png"]}, r"texts, not 'Figure: 1.', \['image.png'\]"),
            ({"question": None}, "is no problem of ScienceQA"),
            ({"subject": 3}, "'kind' is 3, not a text"),
        ],
    )
    def test_a_flaw_names_file_and_problem(self, science_qa: Path, spoilt: dict[str, Any], said: str) -> None:
        change(science_qa / "problems.json", lambda problems: problems["1"].update(spoilt))
        with pytest.raises(DataError, match=rf"ScienceQA/problems.json, problem '1': .*{said}"):
            load(science_qa)

    def test_a_picture_that_is_missing_names_problem_and_path(self, science_qa: Path) -> None:
        (science_qa / "images" / "test" / "11" / "image.png").unlink()
        with pytest.raises(
            DataError, match=r"problem '11': .*images/test/11/image.png does not exist; put .*data.images"
        ):
            load(science_qa)

    def test_an_id_that_has_no_problem_is_named_with_its_part(self, science_qa: Path) -> None:
        change(science_qa / "pid_splits.json", lambda parts: parts["train"].append("99"))
        with pytest.raises(
            DataError, match=r"pid_splits.json lists problem '99' in 'train', but problems.json has none"
        ):
            load(science_qa)

    def test_an_id_that_is_listed_twice_is_an_error(self, science_qa: Path) -> None:
        change(science_qa / "pid_splits.json", lambda parts: parts["train"].append("1"))
        with pytest.raises(DataError, match=r"the id '1' stands at .*problem '1' already"):
            load(science_qa)

    @pytest.mark.parametrize("part", ["train", "test"])
    def test_a_part_that_is_missing_is_named(self, science_qa: Path, part: str) -> None:
        change(science_qa / "pid_splits.json", lambda parts: parts.pop(part))
        with pytest.raises(DataError, match=rf"pid_splits.json has no list '{part}', but \['min"):
            load(science_qa)

    def test_more_samples_than_a_part_has_names_the_part_and_counts_that_work(self, science_qa: Path) -> None:
        with pytest.raises(
            DataError, match=r"'test', holds 4 different samples, but \[data\] asks for 5; set for instance test = 4$"
        ):
            load(science_qa, test=5)


class TestVizWiz:
    def test_an_entry_keeps_every_human_answer_and_trains_on_the_commonest(self, vizwiz: Path) -> None:
        sample = by_id(load(vizwiz))["VizWiz_train_00000001.jpg"]
        assert sample == Sample(
            id="VizWiz_train_00000001.jpg",
            question="What is in can 1?\nAnswer with one word or a short phrase, or with 'unanswerable' if the picture "
            "does not show it.",
            images=(vizwiz / "train" / "VizWiz_train_00000001.jpg",),
            answers=("soup",) * 6 + ("tomato soup",) * 3 + ("unsuitable",),
            kind="other",
            metric="vqa",
        )
        # One of ten said so: nothing of it is left if that one is left out, a third of full credit otherwise.
        assert credit(sample, "Unsuitable.") == pytest.approx(9 * (1 / 3) / 10)

    def test_validation_is_what_it_is_judged_on_because_test_has_no_answers(self, vizwiz: Path) -> None:
        splits = load(vizwiz)
        assert {split: len(samples) for split, samples in splits.items()} == COUNTS
        assert all(sample.id.startswith("VizWiz_val_") for sample in splits["test"])
        assert all(s.id.startswith("VizWiz_train_") for split in SPLITS if split != "test" for s in splits[split])
        assert {sample.kind for sample in splits["test"]} == {"other", "unanswerable"}

    def test_annotations_and_pictures_may_lie_in_the_folder_itself(self, vizwiz: Path) -> None:
        expected = by_id(load(vizwiz))
        for file in (*vizwiz.glob("Annotations/*.json"), *vizwiz.glob("*/*.jpg")):
            shutil.move(file, vizwiz / file.name)
        for part in ("train", "val"):
            (vizwiz / part).rmdir()
        assert by_id(load(vizwiz)).keys() == expected.keys()

    def test_without_validation_the_formats_that_a_folder_may_have_are_named(self, vizwiz: Path) -> None:
        (vizwiz / "Annotations" / "val.json").unlink()
        with pytest.raises(
            DataError, match=r"one file per split, or ScienceQA \(.*\) or VizWiz \(train.json, val.json\)"
        ):
            load(vizwiz)

    @pytest.mark.parametrize(
        ("spoilt", "said"),
        [
            ({"answers": None}, "is no entry of VizWiz"),
            ({"image": None}, "is no entry of VizWiz"),
            ({"question": 3}, "is no entry of VizWiz"),
            ({"answers": [{"answer_confidence": "yes"}]}, "'answers' is .*None"),
            ({"answers": [3.5, {}]}, "'answers' is"),
            ({"image": "gone.jpg"}, "train/gone.jpg does not exist"),
        ],
    )
    def test_a_flaw_names_file_and_entry(self, vizwiz: Path, spoilt: dict[str, Any], said: str) -> None:
        change(vizwiz / "Annotations" / "train.json", lambda entries: entries[1].update(spoilt))
        with pytest.raises(DataError, match=rf"Annotations/train.json, entry 2: .*{said}"):
            load(vizwiz)

    def test_a_folder_of_our_own_may_hold_a_file_of_that_name(self, tmp_path: Path) -> None:
        for number, name in enumerate((*SPLITS, "val")):
            write_json(tmp_path / f"{name}.json", [{"question": f"What is {number}?", "answer": "red"}])
        assert load(tmp_path)["test"][0].question == "What is 4?"
