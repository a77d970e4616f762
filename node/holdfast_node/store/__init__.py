"""Bytes on disk: RocksDB, the keys of its rows, what a data directory says of itself, and how much
room there is."""
