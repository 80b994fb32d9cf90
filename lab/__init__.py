"""The teaching lab: nine exercises on the four steps.

lab.md    the one source: text, tasks and solutions
build     makes student.ipynb, solutions.ipynb and the sheet README.md of it
kit       what the cells call
checks    what the cells ask about an answer
__main__  the lab in a terminal
grade     the points of a class
slides    ten slides of a run's pictures
"""
