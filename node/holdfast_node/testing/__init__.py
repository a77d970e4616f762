"""A whole cluster in one process and on virtual time, for tests of applications. Users import it as
`holdfast.testing`."""

from holdfast_node.testing.cluster import InProcessCluster

__all__ = ["InProcessCluster"]
