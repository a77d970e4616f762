"""What a turn can do beside its object's rows, one file for each thing: notifications, alarms,
expiry, dead letters.

Each is a `TurnEffect`: it is staged into the turn's entry, and what has to happen at the commit
waits on that entry. `outbox` is the pure core that decides which notification goes next. `records`
is what is stored.
"""
