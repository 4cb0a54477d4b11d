"""The tables of the kernel benchmark: ratios first, then times."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rounds import Setting


@dataclass(frozen=True)
class Block:
    """Engines that were measured in the same rounds.

    against: the engine that the ratios refer to. layouts, layer_bytes: by engine. seconds: per layer.
    roof: bytes per second that could be read, by setting; empty where it could not be measured.
    """

    against: str
    layouts: Mapping[str, str]
    layer_bytes: Mapping[str, int]
    seconds: Mapping[Setting, Mapping[str, float]]
    roof: Mapping[Setting, float]

    def ratio(self, engine: str, setting: Setting, against: str | None = None) -> float:
        """How many times faster `engine` is."""
        seconds = self.seconds[setting]
        return seconds[against or self.against] / seconds[engine]

    def share_of_roof(self, engine: str, setting: Setting) -> float | None:
        """Bytes of the weights over time, against what this machine can read in that time."""
        if setting not in self.roof:
            return None
        return self.layer_bytes[engine] / self.seconds[setting][engine] / self.roof[setting]


def memory_bound(settings: Iterable[Setting]) -> list[Setting]:
    """Where reading the weights is what takes the time."""
    return [setting for setting in settings if setting.rows == 1]


def ratio_table(blocks: Sequence[Block]) -> Table:
    settings = list(blocks[0].seconds)
    table = Table("engine", "layout", "times as fast as", box=box.MARKDOWN)
    for setting in settings:
        table.add_column(setting.name, justify="right")
        if setting in memory_bound(settings):
            table.add_column("of roof", justify="right")
    for block in blocks:
        for engine, layout in block.layouts.items():
            cells = [engine, layout, block.against]
            for setting in settings:
                cells.append(f"{block.ratio(engine, setting):.2f}")
                if setting in memory_bound(settings):
                    share = block.share_of_roof(engine, setting)
                    cells.append("" if share is None else f"{share:.0%}")
            table.add_row(*cells)
    return table


def time_table(blocks: Sequence[Block]) -> Table:
    settings = list(blocks[0].seconds)
    table = Table("engine", box=box.MARKDOWN)
    for name in ("MB a layer", *(f"{setting.name}, µs" for setting in settings)):
        table.add_column(name, justify="right")
    for block in blocks:
        for engine, layer_bytes in block.layer_bytes.items():
            times = (f"{1e6 * block.seconds[setting][engine]:.0f}" for setting in settings)
            table.add_row(engine, f"{layer_bytes / 1e6:.2f}", *times)
    return table
