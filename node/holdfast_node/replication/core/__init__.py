"""The state machine of one shard's copy: events in, effects out. Pure: no I/O, no clock, no chance.

Production drives it (`holdfast_node.replication.host`), and so do the simulator and the model
checker (`tests/sim`, `tests/model`).
"""
