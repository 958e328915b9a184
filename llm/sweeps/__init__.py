"""Many runs of one config, each in its own process.

grid.py       override dicts and the stable names of their runs
executors.py  runs processes side by side on this machine
report.py     results.csv, the table of means over seeds, the figures
sweep.py      `launch.py --sweep`: from the sweep file to the report
"""
