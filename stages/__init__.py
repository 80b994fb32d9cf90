"""What makes a step a program.

program     exit codes, errors in one line
signals     Ctrl-C and SIGTERM: save first, then stop
flags       command lines
device      where a step computes: device, threads, memory
folder      a stage's folder: its states, its files, what a finished stage hands on
inherit     settings from the stage before; what --resume may not change
dataset     the labelled set and its split
checkpoint  model.pt and resume.pt
training    steps 1, 3 and 4: follow a training, log it, save it, test once at the end
scoring     step 2: the walk over the pool
"""
