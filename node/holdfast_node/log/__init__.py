"""The shards that a node owns, and the way of an entry: it is gathered, appended to its shard's
log, and settled when it is committed."""
