"""`holdfast verify`: a cluster under faults, and the proof that it kept its promises. command.py is
the command.
"""
