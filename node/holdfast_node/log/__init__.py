"""The shards that a node owns, and the way of an entry: gathered, appended to its shard's log,
settled when it is committed."""
