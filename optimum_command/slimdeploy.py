"""`optimum-cli export slimdeploy`, which is `slimdeploy export` among optimum's own exports.

Installed into optimum/commands/register, where optimum looks for commands of other packages and reads every file,
whatever its user asked for: so this one imports next to nothing. Without optimum nobody reads it.
"""

import sys
from argparse import ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

from slimdeploy.export_arguments import add_export_arguments


class SlimdeployExportCommand(BaseOptimumCLICommand):
    """Takes the arguments of `slimdeploy export`, and exits as it does."""

    COMMAND = CommandInfo(name="slimdeploy", help="Prune and export a vision-language model, as a deploy.toml says.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        add_export_arguments(parser)

    def run(self) -> None:
        from slimdeploy.cli import export

        assert self.args is not None  # optimum runs a command with what it has parsed
        sys.exit(export(self.args))


REGISTER_COMMANDS = [(SlimdeployExportCommand, ExportCommand)]
