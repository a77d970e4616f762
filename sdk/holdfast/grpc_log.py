"""gRPC's own log, which goes past ours in no form that a reader of JSON lines takes: off in the
processes of the `holdfast` command.

gRPC looks at its environment when it is loaded, so this is imported before. Whoever wants the log
says GRPC_VERBOSITY=info.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# `holdfast ...`, `python -m holdfast ...`
if any(Path(argument).name == "holdfast" for argument in sys.orig_argv[1:4]):
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
