"""The kinds of cluster_app, in a process whose disk and wall clock have the faults of
holdfast.verify.inside."""

from cluster_app import app  # type: ignore[import-not-found]  # beside this file, for a node
from holdfast.verify.inside import install

__all__ = ["app"]

install()
