"""Policies judged block by block out of a checkpoint's files are worth what they are with the model in memory."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from searching import SAMPLES, run_search, short_search
from tiny import make_samples

from slimdeploy.config import PruneConfig
from slimdeploy.model import Model
from slimdeploy.policy import DENSE, Level, Policy
from slimdeploy.progress import Progress
from slimdeploy.prune import RankedWeights, Stats, collect_stats
from slimdeploy.search.fitness import ModelJudge, PrunedModel
from slimdeploy.search.journal import Journal
from slimdeploy.search.out_of_core import StreamedJudge
from slimdeploy.streaming import load_streamed

CONFIG = PruneConfig(criterion="wanda")
PARTS = [make_samples(3, seed=1), make_samples(2, seed=2)]


def _policies(model: Model) -> list[Policy]:
    names = [layer.name for layer in model.layers()]
    return [
        Policy(dict.fromkeys(names, DENSE)),
        Policy(dict.fromkeys(names, Level(0.6))),
        Policy({name: Level(0.3 + 0.5 * (i % 2), values="int4") for i, name in enumerate(names)}),
    ]


@pytest.mark.parametrize("include", [(), ("lm_head",)])
def test_losses_and_norm_terms_are_those_of_the_model_in_memory(
    tiny_checkpoint: Path, tiny_model: Model, include: tuple[str, ...]
) -> None:
    tiny_model.include = include
    stats = collect_stats(tiny_model, make_samples(3), "wanda", 3, Progress.silent())
    policies = _policies(tiny_model)
    whole = ModelJudge(PrunedModel(tiny_model, RankedWeights(tiny_model, CONFIG, stats, group=0)), PARTS)
    on_disk = load_streamed(str(tiny_checkpoint), "float32", include=include)
    streamed = StreamedJudge(on_disk, CONFIG, stats, 0, PARTS)
    assert (streamed.samples, streamed.tokens) == (whole.samples, whole.tokens)
    for parts in (range(2), range(1, 2)):
        expected = [loss for losses in whole.losses(policies, parts) for loss in losses]
        found = [loss for losses in streamed.losses(policies, parts) for loss in losses]
        assert [loss.divergence for loss in found] == pytest.approx([x.divergence for x in expected], abs=1e-6)
        assert [loss.answers for loss in found] == pytest.approx([x.answers for x in expected], abs=1e-6)
    for policy in policies:
        assert streamed.norm_term(policy) == pytest.approx(whole.norm_term(policy), abs=1e-6)


def test_a_norm_term_needs_no_losses_first(tiny_checkpoint: Path, tiny_model: Model, stats: Stats) -> None:
    policy = _policies(tiny_model)[1]
    whole = ModelJudge(PrunedModel(tiny_model, RankedWeights(tiny_model, CONFIG, stats, group=0)), PARTS)
    streamed = StreamedJudge(load_streamed(str(tiny_checkpoint), "float32"), CONFIG, stats, 0, PARTS)
    assert streamed.norm_term(policy) == pytest.approx(whole.norm_term(policy), abs=1e-6)


def test_all_policies_of_a_generation_are_judged_in_one_pass_over_the_blocks(
    tiny_checkpoint: Path, tiny_model: Model, stats: Stats
) -> None:
    model = load_streamed(str(tiny_checkpoint), "float32")
    assert model.streamed is not None
    judge = StreamedJudge(model, CONFIG, stats, 0, PARTS)
    read: list[str] = []
    load = model.streamed._load

    def noted(names: Iterable[str]) -> None:
        names = list(names)
        read.extend(names)
        load(names)

    model.streamed._load = noted  # type: ignore[method-assign]
    list(judge.losses(_policies(tiny_model), range(2)))
    walked = [*model.vision_blocks(), *model.language_blocks()]
    assert set(read) == {name for block in walked for name in model.streamed.parameters_of(block)}
    assert set(Counter(read).values()) == {1}
    assert len(model.streamed.blocks) > len(walked), "the block behind the features is not read at all"


def test_a_search_that_was_killed_goes_on_and_what_is_known_is_not_read_again(
    tiny_checkpoint: Path, stats: Stats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = short_search(generations=3, projector_steps=0, start=())
    model = load_streamed(str(tiny_checkpoint), "float32")
    undisturbed = run_search(model, stats, config)
    note, notes = Journal.note, 0

    def killed(self: Journal, of: str, value: object) -> None:
        nonlocal notes
        note(self, of, value)
        notes += 1
        if notes == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "note", killed)
    with pytest.raises(KeyboardInterrupt):
        run_search(model, stats, config, journal=tmp_path)
    for asked_again in (True, False):
        if not asked_again:
            monkeypatch.setattr(StreamedJudge, "losses", lambda *_: pytest.fail("the journal knows the losses"))
            monkeypatch.setattr(StreamedJudge, "norm_term", lambda *_: pytest.fail("the journal knows the norms"))
        result = run_search(model, stats, config, journal=tmp_path)
        assert (result.policy, result.history) == (undisturbed.policy, undisturbed.history)


def test_what_a_search_leaves_out_because_the_model_stays_on_disk_is_noted(tiny_checkpoint: Path) -> None:
    model = load_streamed(str(tiny_checkpoint), "float32")
    stats = collect_stats(model, SAMPLES["calibration"], "sparsegpt", 3, Progress.silent())
    config = short_search(generations=1, offspring=1, survivors=1)
    config = config.model_copy(update={"prune": PruneConfig(criterion="sparsegpt")})
    run_search(model, stats, config, progress=(progress := Progress.silent()))
    assert [note.partition(":")[0] for note in progress.notes] == [
        "The search did not start from ECoFLaP's policy as well",
        "The search judged SparseGPT's masks alone, without the weights that make up for others",
        "The projector did not evolve",
    ]
    nothing_asked = config.search.model_copy(update={"start": (), "projector_steps": 0})
    masks = config.model_copy(update={"search": nothing_asked, "prune": CONFIG})
    run_search(model, stats, masks, progress=(progress := Progress.silent()))
    assert progress.notes == []
