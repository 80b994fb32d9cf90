"""What makes claims runs, and runs verdicts.

claim       what a claim is: its words, arms, tests and the rows of its figure
arms        an arm of a claim becomes runs of the four steps
sizes       how many images an arm has in each step, and what one costs
runs        what a run is: its identity, its folder, its command line
work        several runs at a time, one a core
cluster     the same on a SLURM cluster
progress    rates, one line of progress, when to stop
rows        runs.csv: a row a run
statistics  the tests behind the verdicts
figures     the figure of a claim
page        verdicts.md
"""
