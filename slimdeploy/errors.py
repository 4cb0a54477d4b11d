"""Every error that a user can mend, as a tree:

SlimdeployError
├── ConfigError      deploy.toml or a command-line value
├── ModelError       a checkpoint that cannot be used
├── DataError        samples or images
├── PruneError       statistics, masks, budgets that cannot be met
├── ExportError      a format that cannot hold the model or the policy
├── ArtifactError    an artifact that is incomplete, altered or too new
├── ServeError       the server cannot start
└── ValidateError    the endpoint cannot be measured

Each message names the thing, its value and the remedy in one sentence. The command line prints it without
a traceback and exits with code 2; anything else that escapes is a bug of ours.
"""


class SlimdeployError(Exception):
    """Base of all errors that a user can mend."""


class ConfigError(SlimdeployError):
    """deploy.toml, or a value given on the command line, is wrong."""


class ModelError(SlimdeployError):
    """A checkpoint is missing, incomplete, unsafe or of a family that is not supported."""


class DataError(SlimdeployError):
    """Samples are missing, malformed or overlap; an image is unreadable or too large."""


class PruneError(SlimdeployError):
    """Statistics, masks or budgets that cannot be computed or met."""


class ExportError(SlimdeployError):
    """A format cannot hold this model or policy, or an export differs from the model it came from."""


class ArtifactError(SlimdeployError):
    """An artifact is incomplete, altered or of a later version."""


class ServeError(SlimdeployError):
    """The server cannot start: a port in use, an engine that is not installed."""


class ValidateError(SlimdeployError):
    """The endpoint cannot be measured: it is down, or answers with something else than a chat completion."""


def first_line(error: Exception) -> str:
    """What another library says, short enough for a sentence of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
