"""The effects that a turn can have beside its object's rows, one file for each: notifications,
alarms, expiry, dead letters.

Each is a `TurnEffect`. It is staged into the turn's entry, and waits on that entry if it has work
to do at the commit. `outbox` is the pure core that decides which notification goes next. `records`
has the stored records.
"""
