"""The agent and the controller as they are, but for pauses in which nothing happens that a test looks at.

Their parts take other timing as arguments; here they are given some. What is about a pause itself, such as an agent
that is killed in it, starts the programs themselves. Each is a module of its own, as neither is to import the other.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
"""Where they are to be started."""
AGENT = (sys.executable, "-m", "tests.cluster.hurried.agent")
CONTROLLER = (sys.executable, "-m", "tests.cluster.hurried.controller")
