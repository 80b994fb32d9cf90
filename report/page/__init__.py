"""The report page: one HTML file of a run, or of several side by side, nothing fetched.

render      the page as a whole
conclusion  what the runs say: a sentence, a picture, the differences with their intervals
steps       the four steps, the learning curves, the settings
selected    what step 2 has kept and left out
tested      what the networks say of the test images
parts       charts and pictures as the template takes them
embed       figures as inline SVG, pictures as data URIs
"""
