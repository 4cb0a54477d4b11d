"""The report survives its own file, invents nothing, and its page holds no other host and no foreign markup."""

import json
import re
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from slimdeploy.config import Target
from slimdeploy.errors import ArtifactError, ValidateError
from slimdeploy.measurements import RequestRecord, Run
from slimdeploy.report import (
    LayerSparsity,
    Loss,
    Report,
    SearchHistory,
    Sizes,
    Stage,
    first_mistakes,
    from_json,
    now,
    read_json,
    this_machine,
    to_json,
    write_json,
)
from slimdeploy.report_html import render_html, verdict, write_html
from slimdeploy.report_plots import search_curve, write_plot
from slimdeploy.samples import Sample
from slimdeploy.scoring import Accuracy, score
from slimdeploy.svg import Axis, Plot, round_ticks
from slimdeploy.targets import Measured, judge

HOSTILE = "<script>alert('x')</script>\"&'"
HISTORY = SearchHistory(
    (0.9, 0.7, 0.7), (0.9, 0.8, 0.8), "evolution", 0.82, 0.75, (2,), 0.02, 1, ((0.0, 0.4), (0.02, 0.6)), "3 evaluations"
)
TARGETS = [
    Target(metric="ttft", percentile=95, max_ms=250),
    Target(metric="tpot", percentile=95, max_ms=15),
    Target(metric="accuracy_retention", min=0.5),
]


def endpoint_only(failed: int = 0) -> Report:
    """What `slimdeploy validate URL` alone can know."""
    good = [RequestRecord(f"s{i}", i, i + 0.1 + i / 1e4, i + 0.3, 5, 11, answer="red") for i in range(40 - failed)]
    bad = [RequestRecord(f"f{i}", 40 - i, error="HTTP 500") for i in range(failed)]
    run = Run("http://127.0.0.1:8000/v1", "demo", 4, 16, 4, 41.0, (*good, *bad))
    targets = tuple(judge(TARGETS, Measured(run)))
    return Report("demo", "slimdeploy validate", now(), this_machine(), {"slimdeploy": "0"}, run=run, targets=targets)


def full(name: str = "demo") -> Report:
    report = endpoint_only(failed=1)
    kinds = {"colour": Accuracy(0.96, 0.01, 400), name: Accuracy(1.0, 0.0, 30)}
    stages: dict[Stage, Accuracy | None] = {
        "dense": Accuracy(0.95, 0.01, 430, kinds),
        "pruned": Accuracy(0.80, 0.02, 430, kinds),
        "restored": Accuracy(0.94, 0.01, 430, kinds),
        "artifact": Accuracy(0.94, 0.01, 430, kinds),
    }
    layers = [
        LayerSparsity(f"language.layers.{i}.mlp.fc1", "language", 64, 32, i / 10, "unstructured") for i in range(9)
    ]
    layers += [LayerSparsity(f"projector.linear_{name}", "projector", 64, 32, 0.5, "2:4")]
    samples = [Sample("s1", name, answers=("red",)), Sample("s2", "Which?", answers=("blue", "navy"))]
    return replace(
        report,
        model=name,
        accuracy=stages,
        size_bytes=Sizes(16_000_000, 8_000_000),
        agreement={"torch_onnx": 1.0},
        policy=tuple(layers),
        search=HISTORY,
        restoration=tuple(Loss(step, 1 / (1 + step)) for step in range(50)),
        mistakes=first_mistakes(samples, [name, "blue"]),
        notes=(f"A note on {name}.",),
    )


class TestJson:
    @pytest.mark.parametrize("report", [endpoint_only(), full(), full(HOSTILE)], ids=["endpoint", "full", "hostile"])
    def test_the_file_gives_the_report_back(self, tmp_path: Path, report: Report) -> None:
        write_json(report, tmp_path / "report.json")
        assert read_json(tmp_path / "report.json") == report

    def test_it_holds_what_other_programs_read(self) -> None:
        values = json.loads(json.dumps(to_json(full())))
        assert values["accuracy"] == {"dense": 0.95, "pruned": 0.80, "restored": 0.94, "artifact": 0.94}
        assert values["accuracy_standard_error"]["pruned"] == 0.02
        assert values["accuracy_by_kind"]["dense"]["colour"] == 0.96
        assert values["size_bytes"] == {"dense": 16_000_000, "artifact": 8_000_000}
        first = {key: values["targets"][0][key] for key in ("metric", "percentile", "goal", "met")}
        assert first == {"metric": "ttft", "percentile": 95, "goal": 250, "met": True}
        assert values["met"] is False
        assert values["latency_ms"]["ttft"]["p50"] == pytest.approx(101.95, abs=0.1)
        assert values["latency_ms"]["ttft"]["p99"] is None
        assert values["throughput_tokens_per_s"] == pytest.approx(39 * 11 / 41)
        assert values["errors"] == {"HTTP 500": 1}
        assert values["agreement"] == {"torch_onnx": 1.0}
        assert values["notes"] == ["A note on demo."]

    def test_what_was_not_measured_is_null(self) -> None:
        values = to_json(endpoint_only())
        assert values["accuracy"] == {"dense": None, "pruned": None, "restored": None, "artifact": None}
        assert values["size_bytes"] == {"dense": None, "artifact": None}
        assert (values["policy"], values["search"], values["restoration"], values["agreement"]) == (None,) * 4
        assert values["targets"][2]["measured"] is None

    @pytest.mark.parametrize(
        ("values", "said"),
        [([], "is of version None"), ({"version": 9}, "is of version 9"), ({"version": 2}, "is not a report: model")],
    )
    def test_something_else_is_refused(self, values: object, said: str) -> None:
        with pytest.raises(ValidateError, match=said):
            from_json(values)

    def test_a_missing_or_broken_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ValidateError, match=r"report.json cannot be read"):
            read_json(tmp_path / "report.json")
        (tmp_path / "report.json").write_text("{")
        with pytest.raises(ValidateError, match=r"report.json cannot be read"):
            read_json(tmp_path / "report.json")

    def test_nothing_half_written_stays(self, tmp_path: Path) -> None:
        (tmp_path / "report.json").mkdir()
        with pytest.raises(ArtifactError, match="cannot be written"):
            write_json(full(), tmp_path / "report.json")
        assert [file.name for file in tmp_path.iterdir()] == ["report.json"]

    def test_mistakes_leave_out_right_answers_and_failures(self) -> None:
        samples = [Sample(f"s{i}", "?", answers=("red", "crimson")) for i in range(40)]
        found = first_mistakes(samples, ["red", None, *["blue"] * 38])
        assert len(found) == 12
        assert (found[0].sample_id, found[0].expected, found[0].answer) == ("s2", "red / crimson", "blue")


class WellFormed(HTMLParser):
    """Notes the tags, and that every element is closed in order."""

    VOID = frozenset({"meta", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, _attrs: object) -> None:
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(page: str) -> WellFormed:
    parser = WellFormed()
    parser.feed(page)
    assert parser.open == []
    return parser


class TestHtml:
    @pytest.mark.parametrize(
        "report",
        [
            full(),
            full(HOSTILE),
            endpoint_only(),
            endpoint_only(failed=40),
            replace(full(), run=None, targets=()),
            replace(full(), restoration=(Loss(0, 1.0),), search=SearchHistory((0.5,), (0.6,), "uniform")),
            replace(full(), search=SearchHistory((), (), "uniform"), policy=(), restoration=()),
        ],
        ids=["full", "hostile", "endpoint", "all failed", "no endpoint", "one step", "no search"],
    )
    def test_every_report_becomes_a_well_formed_page(self, report: Report) -> None:
        assert "svg" in parsed(render_html(report)).tags or report.run is not None

    def test_hostile_texts_stay_texts(self) -> None:
        report = full(HOSTILE)
        assert report.run is not None
        hostile = replace(report.run.requests[0], error=HOSTILE)
        page = render_html(replace(report, run=replace(report.run, model=HOSTILE, url=HOSTILE, requests=(hostile,))))
        assert "script" not in parsed(page).tags
        assert "<script" not in page
        assert page.count("&lt;script&gt;") > 6

    def test_no_other_host_and_no_other_file(self) -> None:
        page = render_html(full()).replace("http://127.0.0.1:8000/v1", "")
        assert not re.search(r"https?:|//\w|@import|url\(|src=|href=", page)

    def test_the_verdict_comes_first(self) -> None:
        report = full()
        assert verdict(report) == "2 of 3 targets are missed"
        page = render_html(report)
        assert page.index("2 of 3 targets are missed</h1>") < page.index("<table")
        assert verdict(replace(report, targets=report.targets[:2])) == "1 of 2 targets is missed"
        assert verdict(replace(report, targets=report.targets[:1])) == "The target is met"
        assert verdict(replace(report, targets=(report.targets[0],) * 2)) == "All 2 targets are met"
        assert verdict(replace(report, targets=())) == "No targets were set"

    def test_notes_stand_on_the_page(self) -> None:
        assert "A note on demo." in render_html(full())

    def test_unmeasured_sections_are_absent(self) -> None:
        page = render_html(endpoint_only())
        assert "<h2>Accuracy</h2>" not in page
        assert "<h2>Compression</h2>" not in page
        assert "<h2>Latency</h2>" in page

    @pytest.mark.chromium
    def test_chromium_shows_it_without_an_error(self, tmp_path: Path) -> None:
        write_html(full(), tmp_path / "report.html")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        flags += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--dump-dom"]
        shown = subprocess.run(
            ["chromium", *flags, (tmp_path / "report.html").as_uri()],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert "2 of 3 targets are missed" in shown.stdout
        assert "CONSOLE" not in shown.stderr


class TestPlots:
    @pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.007), (23.1, 65.8), (0, 12345), (-3, 8), (99.0, 99.2)])
    def test_ticks_are_round_and_inside(self, low: float, high: float) -> None:
        ticks = round_ticks(low, high)
        assert 3 <= len(ticks) <= 8
        assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)
        mantissa = f"{ticks[1] - ticks[0]:e}"[:3]
        assert mantissa in {"1.0", "2.0", "5.0"}

    def test_larger_values_stand_higher_and_further_right(self) -> None:
        plot = Plot("t", Axis(0, 10), Axis(0, 10))
        assert plot.x(7) > plot.x(3)
        assert plot.y(7) < plot.y(3)

    def test_a_single_value_still_has_an_axis(self) -> None:
        axis = Axis.around([5.0])
        assert axis.low < 5.0 < axis.high

    def test_the_search_marks_projectors_eta_and_both_held_out_values(self) -> None:
        plot = search_curve(HISTORY)
        for words in ("projector accepted", "eta = 0.02", "searched, held out: 0.75", "uniform, held out: 0.82"):
            assert words in plot
        bare = search_curve(replace(HISTORY, accepted=(), eta_chosen=0, validation_searched=None))
        assert not any(words in bare for words in ("projector", "eta", "searched"))
        page = render_html(full())
        assert "Spearman" in page
        assert "0.600 with 0.02" in page
        assert "Cost: 3 evaluations." in page

    def test_a_plot_stands_alone_in_a_file(self, tmp_path: Path) -> None:
        write_plot(search_curve(HISTORY), tmp_path / "history.svg")
        root = ElementTree.parse(tmp_path / "history.svg").getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        style = root.find("{http://www.w3.org/2000/svg}style")
        assert style is not None
        assert "prefers-color-scheme: dark" in str(style.text)

    def test_the_page_shows_the_kinds_of_the_score(self) -> None:
        samples = [Sample(str(i), "?", answers=("a",), kind=kind) for i, kind in enumerate(("colour", "digit"))]
        page = render_html(replace(endpoint_only(), accuracy={"artifact": score(samples, ["a", "b"])}))
        assert "digit, artifact: 0.0%" in page
