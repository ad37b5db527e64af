"""What it costs: `make bench`, or `python -m benchmarks --help`. README.md says how it is measured and read.

__main__.py   the command
sockets.py    the socket part: every row's client does every test, in turns     rows.py   what each row is
tc.py         the TC part: packets by themselves (packets.py), and end to end
control.py    the control part: what the agent takes
cluster.py    the cluster part: what agent and controller take on a real API server
"""
