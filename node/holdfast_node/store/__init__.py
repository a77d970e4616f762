"""Bytes on disk: RocksDB, the keys of its rows, the facts of a data directory, and the free
space."""
