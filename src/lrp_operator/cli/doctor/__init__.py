"""`lrpctl doctor`: can this node redirect, in which of the four modes, and what stands in the way?

    examine (reads the node) ──▶ Findings ──▶ diagnose (pure) ──▶ Report ──▶ command (a table, JSON or YAML)

It needs no agent and changes nothing. Where the agent decides something by itself (which hooks a mode needs, whether a
pod's link has a place for its programs), its own code is asked. What can't be seen is said, never guessed.
"""
