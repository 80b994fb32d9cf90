"""What makes claims runs, and runs verdicts.

claim.py       what a claim is: its words, arms, tests and the rows of its figure
arms.py        an arm of a claim becomes runs of the four steps
sizes.py       how many images an arm has in each step, and what one costs
runs.py        what a run is: its identity, its folder, its command line
work.py        several runs at a time, one a core
cluster.py     the same on a SLURM cluster
progress.py    rates, one line of progress, when to stop
rows.py        runs.csv: a row a run
statistics.py  the tests behind the verdicts
figures.py     the figure of a claim
page.py        verdicts.md
"""
