"""An evaluation for readers: a table for the terminal, and report.md with pictures.

`format_robustness(results)` needs only the results; `write_robustness_report(folder, sample)` reads `results.json` and
`examples.npz` of an evaluation and writes `report.md`, `robustness.png` and `examples.png` beside them.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rap_jax._runtime.figure import NATURAL, NEUTRAL, ROBUST, as_png, new_figure, quiet
from rap_jax._runtime.integrity import read_checked, write_atomically
from rap_jax._runtime.text import (
    PGD_ANY_STEP,
    as_attack,
    as_interval,
    as_percent,
    as_radius,
    as_seconds,
    as_table,
    templates,
)
from rap_jax.evaluation.accuracy import wilson_interval
from rap_jax.evaluation.predictions import Sample
from rap_jax.evaluation.suite import CLEAN

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Radii beyond this many times epsilon would squeeze the part that matters.
_WIDEST = 4.001
_MOST_EXAMPLES = 8


def robustness_png(results: dict[str, Any], title: str) -> bytes | None:
    """Draws accuracy over the radius with its interval, and what the attacks leave at the radius of the threat model.

    None if there were no diagnostics, from which the curve comes.
    """
    diagnosis, epsilon = results["diagnostics"], results["config"]["epsilon"]
    if diagnosis is None:
        return None
    figure = new_figure(8, 4.5)
    axes = figure.subplots()
    _draw_sweep(axes, diagnosis, epsilon)
    axes.axvline(epsilon, color="black", linewidth=0.9, linestyle="--")
    place, above = (epsilon, 1.0), axes.get_xaxis_transform()
    words = f"epsilon {as_radius(epsilon)}"
    axes.annotate(words, place, xycoords=above, xytext=(0, 4), textcoords="offset points", ha="center", fontsize=9)
    auto, worst = results["auto_attack"], results["combined"] | {"name": "worst case of all"}
    if auto is not None:
        _draw_point(axes, epsilon, auto, ROBUST, "o")
    if auto is None or auto["robust_accuracy"] != worst["robust_accuracy"]:
        _draw_point(axes, epsilon, worst, "black", "x")
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"radius ({results['config']['norm']}, pixels in [0, 1])")
    axes.set_ylabel("accuracy")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
    quiet(axes)
    axes.legend(frameon=False, fontsize=9, loc="best")
    figure.suptitle(f"{title}: accuracy under attack")
    return as_png(figure)


def examples_png(
    examples: dict[str, np.ndarray], sample: Sample, *, norm: str, epsilon: float, title: str
) -> bytes | None:
    """Draws the first broken images: clean, perturbed, and the difference, magnified; None if no attack broke one.

    Args:
      examples: arrays of `examples.npz`.
      sample: the clean images.
    """
    broken = np.flatnonzero(~np.isin(examples["broken_by"], ("", CLEAN)))[:_MOST_EXAMPLES]
    if not broken.size:
        return None
    clean, perturbed = sample.images[broken], examples["adversarial"][broken]
    difference = perturbed - clean
    largest = epsilon if norm == "linf" else float(np.abs(difference).max())
    names = [sample.class_names[label] for label in range(sample.num_classes)]
    figure = new_figure(1.35 * len(broken) + 1.6, 5.2)
    grid = figure.subplots(3, len(broken), squeeze=False)
    for column, number in enumerate(broken):
        by = examples["broken_by"][number]
        _draw_image(grid[0, column], clean[column], f"true {names[examples['label'][number]]}")
        _draw_image(grid[1, column], perturbed[column], f"predicted {names[examples['prediction'][number]]}")
        _draw_image(
            grid[2, column], 0.5 + 0.5 * difference[column] / largest, f"by {by if len(by) < 16 else 'transfer'}"
        )
    for row, words in enumerate(("clean", "perturbed", f"difference\nx {0.5 / largest:.3g}, grey is 0")):
        grid[row, 0].set_ylabel(words, fontsize=9)
    figure.suptitle(f"{title}: the first {len(broken)} images that an attack broke", fontsize=11)
    return as_png(figure)


def _draw_sweep(axes: Axes, diagnosis: dict[str, Any], epsilon: float) -> None:
    points = [point for point in diagnosis["sweep"] if point["epsilon"] <= _WIDEST * epsilon]
    total = diagnosis["num_images"]
    radii = [point["epsilon"] for point in points]
    accuracies = [point["accuracy"] for point in points]
    low, high = np.array([wilson_interval(round(accuracy * total), total) for accuracy in accuracies]).T
    axes.fill_between(radii, low, high, color=NATURAL, alpha=0.15, linewidth=0)
    axes.plot(radii, accuracies, "-o", color=NATURAL, markersize=4, label=f"PGD at each radius, {total} images")
    last = diagnosis["sweep"][-1]
    if last["epsilon"] > radii[-1]:
        words = f"at radius {last['epsilon']:.3g}: {as_percent(last['accuracy'])}"
        axes.annotate(words, (1, 0.02), xycoords="axes fraction", ha="right", fontsize=9, color=NEUTRAL)


def _draw_point(axes: Axes, epsilon: float, attack: dict[str, Any], color: str, marker: str) -> None:
    accuracy, (low, high) = attack["robust_accuracy"], attack["robust_interval"]
    label = f"{attack['name']}: {as_percent(accuracy)}, {attack['num_examples']:,} images"
    spread = [[max(0.0, accuracy - low)], [max(0.0, high - accuracy)]]
    axes.errorbar([epsilon], [accuracy], yerr=spread, fmt=marker, color=color, capsize=3, zorder=5, label=label)


def _draw_image(axes: Axes, image: np.ndarray, title: str) -> None:
    """A picture in [0, 1]; of other than one or three channels the mean."""
    shown = image if image.shape[-1] == 3 else image.mean(-1)
    axes.imshow(np.clip(shown, 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])


Results = dict[str, Any]
_WIDTH = 100
_LONGEST_NAME = 36
_LOSSES = {"ce": "cross-entropy", "margin": "the margin"}


def format_robustness(results: Results) -> str:
    """Returns the results as text of at most 100 columns that reads well in a terminal and as Markdown.

    Args:
      results: the content of `results.json`.
    """
    return _render(results, None)


def write_robustness_report(folder: str | os.PathLike[str], sample: Sample) -> Path:
    """Writes `report.md` and its pictures into `folder`, each file whole or not at all.

    Args:
      folder: with `results.json` and `examples.npz`.
      sample: the clean images.

    Returns:
      The path of `report.md`.
    """
    path = Path(folder)
    results = read_checked((path / "results.json").read_text())
    with np.load(path / "examples.npz", allow_pickle=False) as file:
        examples = {name: file[name] for name in file.files}
    title = f"{_short(results['name'])}, {results['data']['name']}"
    norm, epsilon = results["config"]["norm"], results["config"]["epsilon"]
    pictures = {
        "robustness": robustness_png(results, title),
        "examples": examples_png(examples, sample, norm=norm, epsilon=epsilon, title=title),
    }
    for name, png in pictures.items():
        if png is not None:
            write_atomically(path / f"{name}.png", png)
    write_atomically(path / "report.md", _render(results, pictures))
    return path / "report.md"


def _render(results: Results, pictures: dict[str, bytes | None] | None) -> str:
    """The text of `report.md`, with links to the pictures that there are; None for the text of the terminal."""
    environment = templates(Path(__file__).parent, (as_attack, as_interval, as_percent, as_radius))
    environment.filters |= {"as_loss": _LOSSES.__getitem__, "short": _short, "wrapped": _wrapped}
    table = as_table(("Attack", "Attacked", "Broken", "Accuracy", "Seconds"), list(_rows(results)))
    return environment.get_template("report.md.jinja").render(
        results=results, pictures=pictures, table=table, any_step=PGD_ANY_STEP
    )


def _rows(results: Results) -> Iterator[tuple[str, ...]]:
    """A row per component, then one for the whole attack; each component attacks what those before it have left."""
    total, right = results["clean"]["num_examples"], results["clean"]["natural_correct"]
    yield "none (clean images)", f"{total:,}", f"{total - right:,}", as_interval(results["clean"], "natural"), ""
    for kind in ("pgd", "auto_attack"):
        attack = results[kind]
        standard = attack.get("standard") if attack else None
        for number, part in enumerate(attack["parts"] if attack else (), start=1):
            accuracy = as_percent(part["robust_accuracy"])
            yield part["name"], f"{part['attacked']:,}", f"{part['broken']:,}", accuracy, as_seconds(part["seconds"])
            if standard and number == len(standard["parts"]):
                yield _row("AutoAttack standard", standard, right, standard["seconds"])
        if attack:
            name = PGD_ANY_STEP if kind == "pgd" else attack["name"]  # older results call it PGD
            yield _row(name, attack, right, attack["seconds"])
    for attack in results["transfer"]:
        yield _row(_short(attack["name"]), attack, right, attack["seconds"])
    yield _row("worst case of all", results["combined"], right, results["seconds"]["total"])
    if found := results.get("certificates"):
        name = f"certified, up to {found['method']}"
        yield name, "", "", as_interval(found, "certified"), as_seconds(found["seconds"])


def _row(name: str, attack: dict[str, Any], right: int, seconds: float) -> tuple[str, ...]:
    broken = f"{right - attack['robust_correct']:,}"
    return name, f"{right:,}", broken, as_interval(attack, "robust"), as_seconds(seconds)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."


def _wrapped(text: str) -> str:
    """Each line of the text in lines of at most 100 columns."""
    return "\n".join(
        textwrap.fill(
            line,
            _WIDTH,
            subsequent_indent="  " if line.startswith("- ") else "",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in text.rstrip("\n").split("\n")
    )
