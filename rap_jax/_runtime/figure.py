"""What all pictures have in common: drawn without pyplot, so that nothing global is touched, and handed over as PNG.

matplotlib takes longer to import than all of this package, so it is imported where a picture is drawn."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe-Ito colours: told apart by colour-blind readers and in grey.
NATURAL, ROBUST, NEUTRAL = "#0072B2", "#D55E00", "#888888"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, whose parts make room for each other."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def as_png(figure: Figure) -> bytes:
    """The bytes of a PNG file, the same for the same figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None}, bbox_inches="tight", pad_inches=0.15)
    return buffer.getvalue()


def quiet(axes: Axes) -> None:
    """A faint grid behind the data, and no frame above and to the right."""
    axes.grid(True, color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
