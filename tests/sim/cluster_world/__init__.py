"""The third simulator: whole production nodes on simulated machines. One seed is one world.

Nothing of Holdfast is replaced here. A node is production's `NodeServer`, from `run` on: its
engine, flusher, committer, host of replicas, links, snapshots, reconfigurations, hand-overs, view
watcher, membership and controller. A gateway is production's `Dispatcher` behind a `ViewWatcher`.
The simulator replaces what they stand on, at the seams that third parties give (seams.py). These
are the event loop and its sockets (loop.py, network.py), clocks and chance (machine.py), RocksDB
(rocks.py), gRPC (rpc.py), and etcd's server (etcd.py).
"""
