"""What makes a step a program.  To be read in the order of a step:

flags       command lines
program     exit codes, errors in one line, Ctrl-C and SIGTERM, output
device      what a step computes with: device, precision, threads
folder      a stage's folder: its states, its files and their hashes, its one writer
lifetime    a stage from its first look at its folder to its result.json, and what it hands on
inherit     settings from the preset, the stage before and the flags; what --resume may not change
prepare     the way of the settings, from the flags to a job: data, start, config.json
training    steps 1, 3 and 4: follow a training, log it, save it, test once at the end
scoring     step 2: the walk over the pool
ray_engine  the same on Ray Data, over shards that lie anywhere
checkpoint  model.pt and resume.pt
whole_run   a run folder read back, for the report page
"""
