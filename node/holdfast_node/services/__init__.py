"""What an owner does for its shards without being called, one file for each duty. Each duty is a
`ShardService`."""
