"""What objects send without waiting for an answer: notifications and alarms, and the dead letters that become of those that fail.

`outbox.py` is the pure core of delivering; `records.py` what is stored; `deliveries.py` the shell that reads and writes the store and
hands calls to the dispatcher; `alarms.py` the alarms of one object, `firing.py` has them fire; `letters.py` is what operators do.
"""
