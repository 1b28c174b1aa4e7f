"""Print the id of the best finished run in a run store: python examples/best_run.py
examples/apportion.sqlite"""

import sys

from apportion.db.runs.store import RunStore

store = RunStore(f"sqlite:///{sys.argv[1]}")
print(min((run for run in store.runs() if run.state == "finished"), key=lambda run: run.best).id)
