"""Turns off gRPC's own log in the processes of the `holdfast` command. Its lines are not JSON, so a
reader of our log could not read them.

gRPC reads its environment when it is loaded, so this module is imported before gRPC. To get the
log, set GRPC_VERBOSITY=info.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# `holdfast ...`, `python -m holdfast ...`
if any(Path(argument).name == "holdfast" for argument in sys.orig_argv[1:4]):
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
