"""Figures and pictures as parts of one HTML file: inline SVG, data URIs."""

import base64
import html
import io
import re
import warnings

import cv2
import matplotlib

from report.figures import BLUE, GREEN, GREY, ORANGE, PALE, PURPLE, RED, SKY, add_legend

SIDE = 64  # pixels, the most a side of an embedded picture has
# The page's style sheet has each colour in a light and a dark form.
_COLOURS = {BLUE: "blue", ORANGE: "orange", GREEN: "green", RED: "red", GREY: "grey"}
_COLOURS |= {SKY: "sky", PURPLE: "purple", PALE: "pale", "#000000": "ink", "#e6e6e6": "line"}
_PLAIN = {"svg.fonttype": "none", "svg.hashsalt": "report", "font.family": "sans-serif"}


def inline_svg(figure, label, name):
    """A matplotlib Figure as an <svg> element: text stays text, colours follow the page's.

    label: what a screen reader says;  name: begins its ids, one for each figure of a page
    The figure loses its title, which the page writes itself, and its white ground.
    """
    _narrow_legends(figure)
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.set_title("")
        if axes.get_facecolor()[:3] == (1, 1, 1):
            axes.patch.set_visible(False)
    file = io.StringIO()
    with matplotlib.rc_context(_PLAIN), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the browser has the fonts
        figure.savefig(file, format="svg", metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>|<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"| id="[a-z]+\w*_\d+"', "", svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    for colour, variable in _COLOURS.items():
        svg = re.sub(colour, f"var(--{variable})", svg, flags=re.I)
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    sized = f'<svg role="img" aria-label="{html.escape(label)}" width="{width}" height="{height}"'
    return re.sub(r'<svg width="\S+" height="\S+"', sized, svg, count=1)


def _narrow_legends(figure):
    """Two entries a line, or one: several beside each other would be cut off."""
    for legend in list(figure.legends):
        legend.remove()
        longest = max(map(len, figure.axes[0].get_legend_handles_labels()[1]))
        add_legend(figure, figure.axes[0], 1 if longest > 28 else 2)


def data_uri(picture):
    """uint8 RGB (S,S,3) -> a data URI of at most SIDE pixels a side."""
    if picture.shape[0] > SIDE:
        picture = cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    _, webp = cv2.imencode(".webp", picture[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, 90])
    return "data:image/webp;base64," + base64.b64encode(webp).decode()
