"""What serving an artifact is reckoned to take, in bytes, in a process that has imported no more than a server does.

reckoned.py ARTIFACT SERVE-CONFIG-AS-JSON
"""

import sys
from pathlib import Path

from slimdeploy.artifact import open_artifact
from slimdeploy.config import ServeConfig
from slimdeploy.serve import server  # noqa: F401  for what it takes
from slimdeploy.serve.memory import all_needs, total

sys.stdout.write(str(total(all_needs(open_artifact(Path(sys.argv[1])), ServeConfig.model_validate_json(sys.argv[2])))))
