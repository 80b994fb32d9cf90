"""The teaching lab: six exercises on the four steps.

lab     the master file: text, tasks and solutions
build   makes student.ipynb and solutions.ipynb of it
checks  what the notebooks ask about an answer
"""
