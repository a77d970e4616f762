"""The duties of an owner for its shards beside calls, one file for each. Most duties are a
`ShardService`."""
