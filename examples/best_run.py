"""Print the id of the best finished run in a run store: python examples/best_run.py
examples/apportion.sqlite"""

import math
import sys

from apportion.db.runs.store import RunStore

store = RunStore(f"sqlite:///{sys.argv[1]}")
finished = [run for run in store.runs() if run.state == "finished"]
print(min(finished, key=lambda run: math.inf if run.best is None else run.best).id)
