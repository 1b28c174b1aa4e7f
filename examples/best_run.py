"""Print the id of the best finished run in a run store: python examples/best_run.py
examples/apportion.sqlite"""

import math
import sys

from apportion.db.runs.sqlite import sqlite_url
from apportion.db.runs.store import RunStore

store = RunStore(sqlite_url(sys.argv[1]), reading=True)
finished = [run for run in store.runs() if run.state == "finished"]
print(min(finished, key=lambda run: math.inf if run.best is None else run.best).id)
