"""Objects in memory: calls come in, turns run one at a time for each object, and answers leave when
the writes that they tell of are committed."""
