"""One page of HTML that shows a run, or several side by side: launch/report.py."""
