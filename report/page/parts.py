"""What the report page is made of.

A chart is a dict: title, svg, kind ("wide": it scrolls sideways on a phone; "tall": it scrolls
down; or ""), head and rows of the table below it, note, name.  A picture is a dict: src, alt,
caption; where the page's filter is to find it also label, and where a label was judged verdict:
"right", "wrong", "none" (wrong, of an image of no class) or "unknown".
"""

from markupsafe import Markup

from .embed import inline_svg

SPACE = "\N{NO-BREAK SPACE}"
NONE = "-"  # in a table, where there is nothing to say
MANY = 20  # classes, above which a chart with a row a class scrolls


def chart(figure, title, name, table, kind="", note=""):
    """A chart dict of a matplotlib Figure.

    name: begins the ids inside, no two alike on a page;  table: the head, and the rows
    """
    label = f"{title}; the numbers are in the table below"
    facts = {"title": title, "svg": Markup(inline_svg(figure, label, name)), "kind": kind}
    return facts | {"note": note, "name": name, "head": table[0], "rows": table[1]}


def percent(part, whole):
    return f"{100 * part / whole:.1f}{SPACE}%" if whole else NONE
