"""How much accuracy each way of pruning keeps on the demo model: criteria, policies, restoration, equal bytes.

make bench-quality
"""

import argparse
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context, parent_process
from pathlib import Path

import torch
from quality_cells import Cell, FinishedCells
from quality_estimates import Figures
from quality_measure import Workshop, measure
from quality_tables import Part, parts
from results import RESULTS, publish
from rich.console import Console

from slimdeploy.config import Config, DataConfig, RestoreConfig, SearchConfig
from slimdeploy.doctor import cores
from slimdeploy.model import load_model, locate_model
from slimdeploy.progress import Progress
from slimdeploy.run_folder import fingerprint_of_folder

CELLS = RESULTS / "quality_cells.json"
ON_THE_WAY = Path(__file__).parent.parent / "build" / "quality"
QUICK = Config(
    data=DataConfig(calibration=8, search=8, train=64, validation=8, test=64),
    search=SearchConfig(generations=2, offspring=4, survivors=2, projector_steps=1),
    restore=RestoreConfig(steps=2, batch_size=8),
)


def main() -> None:
    arguments = _parser().parse_args()
    tables = parts(load_model("demo").layers())
    chosen = {name: part for name, part in tables.items() if name in (arguments.only or tables)}
    cells = cells_of(list(chosen.values()), arguments.seeds)
    console = Console(stderr=True)
    model = fingerprint_of_folder(locate_model("demo"))
    with tempfile.TemporaryDirectory() as trial, Progress(console) as progress:
        workshop = Workshop(QUICK, Path(trial), model) if arguments.quick else Workshop(Config(), ON_THE_WAY, model)
        finished = FinishedCells(Path(trial) / CELLS.name if arguments.quick else CELLS)
        if arguments.fresh:
            workshop.clear()
            finished.forget({workshop.key(cell) for cell in cells})
        if not arguments.so_far:
            measure_all(cells, workshop, finished, progress)
        found = {cell: workshop.key(cell) for cell in cells}
        figures = Figures({cell: finished.figure(key) for cell, key in found.items() if key in finished})
    details = [detail for part in chosen.values() for detail in part.details(figures)]
    rows = [row for part in chosen.values() for row in part.rows(figures)]
    keep = not (arguments.quick or arguments.only or arguments.seeds or arguments.so_far)
    publish("quality", rows, details, as_json=arguments.json, keep=keep)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the result as JSON instead of tables")
    parser.add_argument("--quick", action="store_true", help="tiny settings: figures mean nothing, nothing is written")
    finished = parser.add_mutually_exclusive_group()
    finished.add_argument("--fresh", action="store_true", help="measure finished cells again")
    parser.add_argument("--only", nargs="+", choices="ABCD", help="these tables; the cells alone are kept")
    parser.add_argument("--seeds", type=int, help="this many seeds at most; the cells alone are kept")
    finished.add_argument("--so-far", action="store_true", help="measure nothing, print what is finished")
    return parser


def cells_of(chosen: Sequence[Part], seeds: int | None = None) -> list[Cell]:
    """Each cell once, seed by seed, so that what is finished at any time is balanced.

    Of a seed, what takes no search comes first, and what is restored comes last: it shares its policy with a cell
    that is not.
    """

    def every_cell() -> Iterator[Cell]:
        for part in chosen:
            for setting in part.settings():
                count = min(part.seeds, seeds or part.seeds) if setting.has_seeds else 1
                yield from (Cell(setting, seed) for seed in range(count))

    def turn(cell: Cell) -> tuple[int, bool, bool]:
        return cell.seed, cell.setting.restore != "none", cell.setting.method == "evolution"

    return sorted(dict.fromkeys(every_cell()), key=turn)


def measure_all(cells: Sequence[Cell], workshop: Workshop, finished: FinishedCells, progress: Progress) -> None:
    """Measure the cells that are not finished, in one process per core: the model is too small for two threads."""
    waiting = [cell for cell in cells if workshop.key(cell) not in finished]
    progress.say(f"{len(cells) - len(waiting)} of {len(cells)} cells are finished")
    bar = progress.bar("cells", total=len(waiting))
    pool = ProcessPoolExecutor(cores(), get_context("spawn"), initializer=_begin_to_work)
    try:
        futures = {pool.submit(measure, cell, workshop): cell for cell in waiting}
        for future in as_completed(futures):
            cell, figure = futures[future], future.result()
            finished.add(workshop.key(cell), cell, figure)
            times = ", ".join(f"{step} {seconds:.0f} s" for step, seconds in figure.seconds.items())
            progress.say(f"{cell}: {figure.accuracy:.2%} ({times})")
            bar.advance()
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_to_work() -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """Nobody would take the figure that this process is at work on."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


if __name__ == "__main__":
    main()
