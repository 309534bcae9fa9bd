"""How all figures look: one style, colours that everyone can tell apart, the same bytes for the same data."""

import textwrap

import matplotlib
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from seam.files import atomic_write
from seam.log import log

INK, GREY, FAINT = "#222222", "#767676", "#d9d9d9"
BLUE, RED = "#0072B2", "#D55E00"  # better and worse; as all colours here from Okabe and Ito's palette
COLOURS = (BLUE, RED, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"
LONGEST = 26  # characters of a name


def style():
    """The style of every figure, for `with style():` or as `@style()` on a function that draws."""
    return matplotlib.rc_context(
        {
            "font.family": "DejaVu Sans",
            "font.size": 9,
            "axes.titlesize": 9.5,
            "axes.titlelocation": "left",
            "axes.titlepad": 6,
            "axes.labelsize": 9,
            "axes.labelcolor": INK,
            "axes.edgecolor": GREY,
            "axes.linewidth": 0.7,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "axes.grid": True,
            "grid.color": "#ececec",
            "grid.linewidth": 0.7,
            "xtick.color": GREY,
            "ytick.color": GREY,
            "xtick.labelcolor": INK,
            "ytick.labelcolor": INK,
            "xtick.labelsize": 8,
            "ytick.labelsize": 8,
            "text.color": INK,
            "lines.linewidth": 1.4,
            "legend.frameon": False,
            "legend.fontsize": 8,
            "figure.titlesize": 11,
            "figure.titleweight": "bold",
            "savefig.dpi": 200,
            "pdf.fonttype": 42,
        }
    )


def blank(width, height, title):
    """A figure of so many inches with its title and, as long as nothing is drawn, no axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08, wspace=0.03, hspace=0.04)
    figure.suptitle(title, x=0.01, ha="left")
    return figure


def empty(title, sentence):
    """A figure that says why there is nothing to see."""
    figure = blank(7, 1.6, title)
    figure.text(0.01, 0.45, sentence, color=GREY)
    return figure


def looks(names):
    """{name: {"color", "marker"}}: no two alike among the first thirty-six, and neighbours differ in both."""
    size = len(COLOURS)
    return {
        name: {"color": COLOURS[place % size], "marker": MARKERS[(place + place // size) % size]}
        for place, name in enumerate(names)
    }


def short(name):
    """A name that is not too long for its place."""
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def spread(values):
    """The limits of an axis that shows all these values."""
    low, high = values.min().min(), values.max().max()
    room = max(0.05 * (high - low), 0.15)
    return low - room, high + room


@style()
def note(figure, start, names, lines=2):
    """A note below the figure: `start` and the names, as many as there is room for in so many lines.

    Gives the area in inches that `save` has to take to have it on the picture.
    """
    width, height = figure.get_size_inches()
    for number in range(len(names), 0, -1):
        more = f" and {len(names) - number} more" if number < len(names) else ""
        wrapped = textwrap.wrap(f"{start}{'; '.join(names[:number])}{more}", int(width / 0.062))
        if len(wrapped) <= lines:
            break
    # Laid out once and for all, legends at a place of their own: on their own they follow what is saved.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for legend in figure.legends:
        legend.set_bbox_to_anchor((0, 0, 1, 1), figure.transFigure)
    figure.text(0.01, 0, "\n".join(wrapped), color=RED, fontsize=7.5, va="top")
    return Bbox([[0, -0.14 * len(wrapped) - 0.06], [width, height]])


@style()
def save(figure, paths, area=None):
    """Write the figure to each path in the format that its suffix names, whole or not at all, without a time stamp.

    area: what of it, in inches; by default all of it.
    """
    for path in paths:
        kind = str(path).rsplit(".", 1)[-1]
        metadata = {"CreationDate": None} if kind == "pdf" else None
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format=kind, metadata=metadata, bbox_inches=area)


def save_all(figures, output):
    """Write each of {name: figure} to output[name], a PNG file, and output[name_pdf], a PDF file."""
    for name, figure in figures.items():
        paths = output[name], output[f"{name}_pdf"]
        save(figure, paths)
        log.info("%s", " ".join(paths))
