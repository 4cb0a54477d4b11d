"""Our server beside others that are installed: a LLaVA of random weights of the 1B shape, each request its own picture.

make bench-serve
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from onnx_exports import TINY, Form, export, traced_graphs
from onnx_speed import LARGE
from random_llava import Shape, gathered, half_of, write_checkpoint
from results import Row, markdown_table, publish
from rich.console import Console
from rich.table import Table
from serve_load import Figures, LoadError, ask, questions
from serve_memory import as_artifact
from servers import Load, Running, Server, ServerError, llama_cpp, openvino, ours, running, vllm
from servers.others import moment

from slimdeploy.errors import ValidateError
from slimdeploy.progress import Progress
from slimdeploy.samples import Sample
from slimdeploy.writing import new_folder

OURS = (
    Form("packed int4 26:64", "packed-int4", gathered, "26:64", vision="packed-int8"),
    Form("packed int8 50%", "packed-int8", half_of),
)
FIRST = f"ours, {OURS[0].name}"
PEERS = (openvino, vllm, llama_cpp)
RIVALS = (openvino.INT4, vllm.BF16, llama_cpp.Q4_0)
TOKENS = 64
"""Of an answer."""
CONTEXT = 1024
"""Of a prompt of some 620 tokens, and its answer."""
THREADS = 2
ROUNDS = 2
WAVES = {1: 2, 4: 1, 8: 1}
"""Of a round, by their streams: so many requests are sent at once and answered before the next."""
QUIET, TRIES = 0.05, 3
"""The share of the machine that other programs may take; what they disturb is measured again, so often at most."""


@dataclass(frozen=True)
class Round:
    """What one start of a server gave. by_streams: each wave's figures, by its streams.

    others: the largest share of the machine that other programs took meanwhile, 0 to 1.
    """

    load_s: float
    peak_bytes: int
    by_streams: Mapping[int, Sequence[Figures]]
    others: float


@dataclass(frozen=True)
class Measured:
    """Medians of a server's rounds, and of their waves."""

    rounds: int
    others: float
    load_s: float
    peak_bytes: float
    by_streams: Mapping[int, Figures]


Found = Mapping[str, Measured]
"""By a server's name."""


def prepare(folder: Path, shape: Shape, load: Load) -> tuple[list[Server], list[str]]:
    """Servers with all that they read, which is kept in the folder; and what is to be said of those left out."""
    found = [ours.server(f"ours, {form.name}", artifact(folder, shape, form), load) for form in OURS]
    remarks = []
    for peer in PEERS:
        if peer.VARIABLE in os.environ:
            found += peer.servers(_checkpoint(folder, shape, None), folder, load)
        else:
            remarks.append(f"{peer.NAME} is not measured: {peer.VARIABLE} is not set.")
    return found, remarks


def _checkpoint(folder: Path, shape: Shape, form: Form | None) -> Path:
    """The same random weights for all, pruned where a form says so."""
    path = folder / (form.prune.__name__ if form else "dense")
    if not path.exists():
        with new_folder(path) as new:
            write_checkpoint(new, shape, prune=form.prune if form else None, visible=True)
    return path


def artifact(folder: Path, shape: Shape, form: Form) -> Path:
    """Made where the folder does not have it yet."""
    path = folder / form.folder
    if not path.exists():
        source = _checkpoint(folder, shape, form)
        with new_folder(path) as new:
            as_artifact(export(form, source, traced_graphs(source), new).folder, form)
    return path


def measure(
    servers: Sequence[Server], rounds: int, side: int, log: Path, progress: Progress
) -> tuple[dict[str, Measured], list[str]]:
    """In every round each server is started, asked and ended in turn; medians. side: of a picture, in pixels.

    One that fails is left out, and what went wrong is to be said. An interruption ends the last round early. log: where
    servers write.
    """
    samples = questions(side)
    rounds_of: dict[str, list[Round]] = {server.name: [] for server in servers}
    problems: dict[str, str] = {}
    try:
        for server in [server for _ in range(rounds) for server in servers]:
            if server.name in problems:
                continue
            try:
                rounds_of[server.name].append(_round(server, samples, log))
                progress.say(f"{server.name}: {rounds_of[server.name][-1]}")
            except (ServerError, LoadError, ValidateError) as error:
                problems[server.name] = f"{server.name} could not be measured: {error}."
    except KeyboardInterrupt:
        progress.say("stopped; what is whole counts")
    found = {name: _medians(each) for name, each in rounds_of.items() if each and name not in problems}
    return found, list(problems.values())


def _round(server: Server, samples: Iterator[Sample], log: Path) -> Round:
    for left in reversed(range(TRIES)):
        start = moment()
        with running(server, log) as live:
            others = start.share_of_others(moment())
            if others > QUIET and left:
                continue
            ask(live.url, samples, 1, TOKENS)  # warms up
            waves = {streams: [_wave(live, samples, streams) for _ in range(count)] for streams, count in WAVES.items()}
            disturbed = max([others, *(share for each in waves.values() for share, _ in each)])
            by_streams = {streams: [figures for _, figures in each] for streams, each in waves.items()}
            return Round(live.load_s, live.most_memory(), by_streams, disturbed)
    raise AssertionError("the last try counts")


def _wave(live: Running, samples: Iterator[Sample], streams: int) -> tuple[float, Figures]:
    """The least disturbed of some tries, with the share of the machine that others took."""
    tries = []
    while not tries or (min(share for share, _ in tries) > QUIET and len(tries) < TRIES):
        start = moment()
        figures = ask(live.url, samples, streams, TOKENS)
        tries.append((start.share_of_others(moment()), figures))
    return min(tries, key=lambda each: each[0])


def _medians(rounds: Sequence[Round]) -> Measured:
    def of(streams: int, figure: str) -> float:
        return statistics.median(getattr(wave, figure) for each in rounds for wave in each.by_streams[streams])

    return Measured(
        len(rounds),
        max(each.others for each in rounds),
        statistics.median(each.load_s for each in rounds),
        statistics.median(each.peak_bytes for each in rounds),
        {streams: Figures(**{field.name: of(streams, field.name) for field in fields(Figures)}) for streams in WAVES},
    )


def rows_of(found: Found) -> Iterator[Row]:
    """All that is ours in them is one artifact's, so that no figure is bought with another."""
    one, eight = min(WAVES), max(WAVES)
    yield _faster(found, "a token of one stream", lambda each: each.by_streams[one].tpot_ms, 1.3, llama_cpp.Q4_0)
    for peer in (vllm.BF16, openvino.INT4):
        yield _faster(found, "the first token of one stream", lambda each: each.by_streams[one].ttft_s, 1, peer)
    yield _faster(found, f"an answer of {TOKENS} tokens", lambda each: each.by_streams[one].answer_s, 1.8, *RIVALS)
    yield _faster(
        found,
        f"tokens a second of {eight} streams",
        lambda each: 1 / each.by_streams[eight].tokens_per_second,
        1.2,
        *RIVALS,
    )
    yield _ratio(found, "peak memory", lambda each: each.peak_bytes, openvino.INT4)
    mine = found.get(FIRST)
    yield Row("load", mine and mine.load_s, "s" if mine else f"{FIRST} was not measured", 3, at_most=True)


def _faster(found: Found, what: str, time: Callable[[Measured], float], goal: float, *peers: str) -> Row:
    """Against the fastest of the peers that were measured."""
    there = {peer: time(found[peer]) for peer in peers if peer in found}
    name = f"{what}, against "
    if FIRST not in found or not there:
        missing = FIRST if there else " or ".join(peers)
        return Row(name + " or ".join(peers), None, f"{missing} was not measured", goal, at_most=False)
    best = min(there, key=there.__getitem__)
    return Row(name + best, there[best] / time(found[FIRST]), "times as fast", goal, at_most=False)


def _ratio(found: Found, what: str, amount: Callable[[Measured], float], peer: str) -> Row:
    if FIRST in found and peer in found:
        return Row(f"{what}, against {peer}", amount(found[FIRST]) / amount(found[peer]), "times", 1, at_most=True)
    missing = FIRST if peer in found else peer
    return Row(f"{what}, against {peer}", None, f"{missing} was not measured", 1, at_most=True)


def table_of(found: Found) -> Table:
    streams, answer = " / ".join(map(str, WAVES)), f"{TOKENS} tokens, s"
    times = ("first token, s", "ms a token", answer, "tokens/s")
    table = markdown_table(f"{streams} streams", *times, "peak memory, MB", "load, s", "rounds", "others")
    for name, each in found.items():
        figures = each.by_streams.values()
        table.add_row(
            name,
            " / ".join(f"{figure.ttft_s:.2f}" for figure in figures),
            " / ".join(f"{figure.tpot_ms:.1f}" for figure in figures),
            " / ".join(f"{figure.answer_s:.2f}" for figure in figures),
            " / ".join(f"{figure.tokens_per_second:.1f}" for figure in figures),
            f"{each.peak_bytes / 1e6:.0f}",
            f"{each.load_s:.1f}",
            str(each.rounds),
            f"{each.others:.0%}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the result as JSON instead of tables")
    parser.add_argument("--quick", action="store_true", help="a tiny model: figures mean nothing, nothing is written")
    parser.add_argument("--folder", type=Path, help="keeps models and exports for the next time, 20 GB with all peers")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="servers whose names begin so; nothing is written")
    parser.add_argument("--flash", action="store_true", help=f"{llama_cpp.Q4_0_FLASH} too, which takes minutes a round")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"{ROUNDS} by default")
    arguments = parser.parse_args()
    shape, rounds = (TINY, 1) if arguments.quick else (LARGE, arguments.rounds)
    load = Load(max(WAVES), CONTEXT, THREADS)
    with tempfile.TemporaryDirectory() as made:
        folder = (arguments.folder or Path(made)).absolute()
        servers, remarks = prepare(folder, shape, load)
        if not arguments.flash:
            servers = [server for server in servers if server.name != llama_cpp.Q4_0_FLASH]
        if arguments.only:
            servers = [server for server in servers if server.name.startswith(tuple(arguments.only))]
        found, problems = measure(
            servers, rounds, shape.image, Path(made) / "server.log", Progress(Console(stderr=True))
        )
    note = (
        f"Random weights of the 1B shape behind a tower of {LARGE.vision.blocks} blocks, {THREADS} threads, medians of "
        "interleaved rounds. Each request has a picture of its own of 576 tokens and is answered by "
        f"{TOKENS}. Others: the largest share of the machine that other programs took."
    )
    details = [table_of(found), note, *remarks, *problems]
    keep = not (arguments.quick or arguments.only)
    publish("serve", list(rows_of(found)), details, as_json=arguments.json, keep=keep)


if __name__ == "__main__":
    main()
