"""What a search cost is added up by what it was for, and told in one line."""

from slimdeploy.search.cost import Cost, Ledger, in_words


def test_costs_add_up_by_what_they_were_for() -> None:
    ledger = Ledger()
    ledger.add("on 8 search samples", 0, 0, 0.0)
    ledger.add("on 64 search samples", 1, 900, 0.5)
    ledger.add("on 8 search samples", 1, 100, 0.25)
    ledger.add("on 8 search samples", 1, 100, 0.25)
    assert ledger.costs() == (Cost("on 8 search samples", 2, 200, 0.5), Cost("on 64 search samples", 1, 900, 0.5))


def test_the_line_tells_the_sum_and_its_parts() -> None:
    costs = [Cost("on 8 search samples", 1640, 155_520, 65.4), Cost("projector steps", 0, 1_830, 3.14)]
    assert in_words(costs) == (
        "1,640 evaluations, 0.16 M tokens, 69 s: "
        "1,640 on 8 search samples (0.16 M, 65 s), projector steps (1,830, 3.1 s)"
    )
