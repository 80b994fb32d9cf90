"""What the report page is made of.

A chart is a dict: title, svg, wide (it scrolls on a phone), head and rows of the table below it,
note, name.  A picture is a dict: src, alt, caption; where the page's filter is to find it also
label, and where a label was judged verdict: "right", "wrong" or "unknown".
"""

from markupsafe import Markup

from .embed import inline_svg

SPACE = "\N{NO-BREAK SPACE}"
NONE = "-"  # in a table, where there is nothing to say
MANY = 20  # classes, above which a chart with a name a class is as wide as the page
_SIZE = (4.6, 3.6)  # inches: on a phone's 360 px its letters can still be read


def chart(figure, title, name, table, wide=False, note="", size=_SIZE):
    """A chart dict of a matplotlib Figure.

    name: begins the ids inside, no two alike on a page;  table: the head, and the rows
    size: inches, where the chart is not wide
    """
    label = f"{title}; the numbers are in the table below"
    svg = Markup(inline_svg(figure, label, name, None if wide else size))
    facts = {"title": title, "svg": svg, "wide": wide, "note": note, "name": name}
    return facts | {"head": table[0], "rows": table[1]}


def percent(part, whole):
    return f"{100 * part / whole:.1f}{SPACE}%" if whole else NONE
