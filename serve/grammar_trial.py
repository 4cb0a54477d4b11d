"""A program of its own that compiles a grammar, so that one which explodes can be ended from outside.

llguidance cannot be interrupted: `multipleOf: 1000003` keeps it busy for minutes, which none of its limits count, and
a chain of a thousand `$ref` overflows its stack. Reads {"grammar", "limits", "seconds"} from stdin as JSON and writes
what is wrong with the grammar, or nothing. Imports nothing of slimdeploy, which takes longer than most grammars.
"""

import json
import math
import os
import resource
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import llguidance

_STACK_BYTES = 4 * 2**20  # less than threads of the server have, so that what fits here fits there
_MEMORY_BYTES = 2**30  # of addresses; a small grammar takes a quarter
_NICE = 10


def main() -> None:
    task = json.load(sys.stdin)
    os.nice(_NICE)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    seconds = math.ceil(task["seconds"]) + 1  # should the server be gone, which ends this one otherwise
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.stack_size(_STACK_BYTES)
    with ThreadPoolExecutor(1) as thread:  # what is raised there ends this program, too
        sys.stdout.write(thread.submit(_fault, task).result())


def _fault(task: dict[str, Any]) -> str:
    """Empty where there is none."""
    limits = llguidance.LLParserLimits(**task["limits"])
    matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), task["grammar"], log_level=0, limits=limits)
    if not matcher.is_error():
        matcher.compute_bitmask()  # a grammar that no text meets fails here
    return matcher.get_error()


if __name__ == "__main__":
    main()
