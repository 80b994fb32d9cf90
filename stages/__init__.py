"""What makes a step a program.  To be read in the order of a step:

flags       command lines
program     exit codes, errors in one line
signals     Ctrl-C and SIGTERM: save first, then stop
device      what a step computes with: device, precision, threads
folder      a stage's folder: its states, its files
lock        one writer to a folder at a time
records     config.json and result.json: their fields, and the hash of every file of a stage
lifetime    a stage from its first look at its folder to its result.json
finished    what a finished stage hands on to the next one
inherit     settings from the preset, the stage before and the flags; what --resume may not change
dataset     the labelled set and its split
config      config.json
start       what a training starts from: a stage, published weights, or nothing
estimate    the hours of a training on a CPU
evaluation  validation and test images through the network
training    steps 1, 3 and 4: follow a training, log it, save it, test once at the end
scoring     step 2: the walk over the pool
whole_run   a run folder read back, for the report page
checkpoint  model.pt and resume.pt
"""
