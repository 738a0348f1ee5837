"""A run for readers: a table for the terminal, and report.md with pictures.

`format_table(results)` needs only the results; `write_report(run_dir)` reads `metrics.jsonl` and `results.json` of a
run folder and writes `report.md`, `training.png`, `admm.png` and `sparsity.png` beside them. Both leave out what a
run that was stopped does not have. Every table, picture and file names the data set that was really used.

A picture is the bytes of one PNG, or None when the run has nothing to show for it. Nothing global is touched (no
pyplot), so drawing is safe beside a notebook or in a thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rap_jax._runtime.figure import NATURAL, NEUTRAL, ROBUST, as_png, new_figure, quiet
from rap_jax._runtime.integrity import read_checked, write_atomically
from rap_jax._runtime.text import (
    as_attack,
    as_interval,
    as_pair,
    as_percent,
    as_seconds,
    as_table,
    as_training,
    templates,
)
from rap_jax.compaction.cost import cost_table
from rap_jax.config import STAGES
from rap_jax.runs.metrics import Line, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PRUNED = "#D9D9D9"
SHADES = ("#FFFFFF", "#F3F3F3")
# Where a network was cut, in the order of the report; the braces stand for the method of the stage `admm`.
_CUTS = {
    "admm": "with {}",
    "pretrain": "without {} (the pretrained network, cut directly)",
    "start": "without {} (the network at the start, cut directly)",
}
_METHODS = {
    "admm": "ADMM",
    "hydra": "HYDRA",
    "harp": "HARP",
    "twinrep": "TwinRep",
    "flyingbird": "FlyingBird",
    "magnitude": "pruning by magnitude",
    "random": "pruning at random",
}


class _Span(NamedTuple):
    """Where a stage lies on the epoch axis of the whole run."""

    stage: str
    start: float
    end: float


def training_png(metrics: list[Line], title: str) -> bytes | None:
    """Draws accuracy and loss over the epochs of the whole run, stages shaded, the kept checkpoints marked.

    A validation marked `selected` was the best of its stage so far; the last one of a stage is the one that was kept.
    """
    train, validation = _of_kind(metrics, "train"), _of_kind(metrics, "validation")
    if not train and not validation:
        return None
    spans = _spans(train + validation)
    figure = new_figure(9, 6)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for span in spans:
        ours = [line for line in validation if line["stage"] == span.stage]
        _draw_training(top, [line for line in train if line["stage"] == span.stage], span, "accuracy")
        _draw_training(bottom, [line for line in train if line["stage"] == span.stage], span, "loss")
        for name, color in (("natural_accuracy", NATURAL), ("robust_accuracy", ROBUST)):
            top.plot(_epochs(ours, span), _values(ours, name), "-o", color=color, markersize=3, linewidth=1.4)
            chosen = [line for line in ours if line.get("selected")][-1:]
            star: dict[str, Any] = {"markersize": 15, "markeredgecolor": "black", "clip_on": False, "zorder": 5}
            if chosen:  # an unclipped line without points would upset the layout
                top.plot(_epochs(chosen, span), _values(chosen, name), "*", color=color, **star)
    _label_stages(top, bottom, spans)
    top.set_ylim(-0.02, 1.02)
    top.set_ylabel("accuracy")
    top.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
    bottom.set_ylabel("training loss")
    bottom.set_xlabel("epoch of the run")
    _training_legend(figure)
    figure.suptitle(f"{title}: training")
    return as_png(figure)


def admm_png(metrics: list[Line], title: str) -> bytes | None:
    """Draws distance to the sparse set, primal residual and rho of every pruned layer over the ADMM stage."""
    from matplotlib import colormaps

    lines = _of_kind(metrics, "admm")
    if not lines:
        return None
    layers = list(dict.fromkeys(line["layer"] for line in lines))
    number = len(layers)
    # Ten colours that differ as long as they suffice, then a scale from the first layer to the last.
    colors = colormaps["tab10"](range(number)) if number <= 10 else colormaps["viridis"](np.linspace(0, 0.95, number))
    figure = new_figure(12, max(4.0, 1.6 + 0.24 * len(layers)))
    panels = figure.subplots(1, 3)
    names = {
        "distance": "distance to the sparse set\n‖w − P(w)‖ / ‖w‖",
        "primal_residual": "primal residual\n‖w − z‖ / ‖w‖",
        "rho": "penalty\nρ",
    }
    for axes, (name, text) in zip(panels, names.items(), strict=True):
        for layer, color in zip(layers, colors, strict=True):
            ours = [line for line in lines if line["layer"] == layer]
            epochs = [line["epoch"] for line in ours]
            axes.plot(epochs, _values(ours, name), "-o", color=color, markersize=3, label=layer)
        _log_scale(axes, _values(lines, name))
        axes.set_title(text, fontsize=10)
        axes.set_xlabel("epoch of the ADMM stage")
        quiet(axes)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
    figure.suptitle(f"{title}: ADMM by layer")
    return as_png(figure)


def sparsity_png(sparsity: dict[str, Any], title: str) -> bytes | None:
    """Draws which share of every layer's weights is kept and which is pruned.

    Args:
      sparsity: `{"layers": {name: {"size", "zeros", ...}}, "overall": {...}}`.
      title: start of the picture's title.
    """
    layers = sparsity.get("layers") or {}
    if not layers:
        return None
    rows = [*layers.items(), ("overall", sparsity["overall"])]
    figure = new_figure(9, 1.3 + 0.34 * len(rows))
    axes = figure.subplots()
    for place, (_, row) in enumerate(rows):
        kept = row["size"] - row["zeros"]
        share = kept / row["size"] if row["size"] else 0.0
        axes.barh(place, share, color=NATURAL, height=0.7, label="kept" if place == 0 else None)
        axes.barh(place, 1 - share, left=share, color=PRUNED, height=0.7, label="pruned" if place == 0 else None)
        axes.text(1.02, place, f"{100 * share:5.1f}%  {kept:,} of {row['size']:,} kept", va="center", fontsize=9)
    axes.axhline(len(layers) - 0.5, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
    axes.set_xlabel("share of the weights")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside lower right", ncols=2, frameon=False, fontsize=9)
    figure.suptitle(f"{title}: weights kept and pruned")
    return as_png(figure)


def _of_kind(metrics: list[Line], kind: str) -> list[Line]:
    return [line for line in metrics if line["kind"] == kind]


def _spans(lines: list[Line]) -> list[_Span]:
    """Puts the stages that have lines one after the other; each line counts its epochs from its stage's start."""
    spans: list[_Span] = []
    for stage in STAGES:
        epochs = [line["epoch"] for line in lines if line["stage"] == stage]
        if epochs:
            start = spans[-1].end if spans else 0.0
            spans.append(_Span(stage, start, start + max(epochs)))
    return spans


def _epochs(lines: list[Line], span: _Span) -> list[float]:
    return [span.start + line["epoch"] for line in lines]


def _values(lines: list[Line], name: str) -> np.ndarray:
    return np.array([line[name] for line in lines], dtype=float)


def _draw_training(axes: Axes, lines: list[Line], span: _Span, name: str) -> None:
    """Draws the noisy values of single batches faintly and their running mean over a 30th of the stage on top."""
    epochs, values = _epochs(lines, span), _values(lines, name)
    width = max(1, len(values) // 30)
    axes.plot(epochs, values, color=NEUTRAL, linewidth=0.6, alpha=0.35 if width > 1 else 1.0)
    if width > 1:
        counts = np.convolve(np.ones_like(values), np.ones(width), "same")
        axes.plot(epochs, np.convolve(values, np.ones(width), "same") / counts, color=NEUTRAL, linewidth=1.6)


def _label_stages(top: Axes, bottom: Axes, spans: list[_Span]) -> None:
    for place, span in enumerate(spans):
        for axes in (top, bottom):
            axes.axvspan(span.start, span.end, color=SHADES[place % 2], zorder=0, linewidth=0)
            if place:
                axes.axvline(span.start, color="black", linewidth=0.8, linestyle=":")
        place_at = ((span.start + span.end) / 2, 1.0)
        transform = top.get_xaxis_transform()
        top.annotate(span.stage, place_at, xycoords=transform, xytext=(0, 4), textcoords="offset points", ha="center")
    for axes in (top, bottom):
        quiet(axes)
        if spans[-1].end > 0:
            axes.set_xlim(0, spans[-1].end * 1.01)


def _training_legend(figure: Figure) -> None:
    axes = figure.axes[0]
    handles = [
        *axes.plot([], [], "-o", color=NATURAL, markersize=4, label="natural, validation"),
        *axes.plot([], [], "-o", color=ROBUST, markersize=4, label="under attack, validation"),
        *axes.plot([], [], "-", color=NEUTRAL, label="training batch, as trained on"),
        *axes.plot([], [], "*", color="white", mec="black", markersize=12, label="kept checkpoint"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)


def _log_scale(axes: Axes, values: np.ndarray) -> None:
    """Sets a log scale if there is anything to show on one; within a decade its ticks are plain numbers."""
    values = values[np.isfinite(values) & (values > 0)]
    if not values.size:
        return
    axes.set_yscale("log", nonpositive="mask")
    if values.max() < 10 * values.min():
        axes.set_ylim(values.min() / 1.15, values.max() * 1.15)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:.3g}")


Results = dict[str, Any]


def format_table(results: Results) -> str:
    """Returns the results as text of at most 100 columns that reads well in a terminal and as Markdown.

    Args:
      results: the content of `results.json`. Stages, `cut`, `test` and `sparsity` may be missing.
    """
    parts = [f"{_title(results)}, seed {results.get('seed')}, {results['model'].get('num_params', 0):,} parameters"]
    rows = list(_accuracy_rows(results))
    if rows:
        header = ("Stage", "Natural accuracy", "PGD accuracy", "Images", "Seconds")
        parts += [as_table(header, rows), _notes(results)]
    if sparsity := _sparsity(results):
        parts.append(_sparsity_table(sparsity))
    seconds = results.get("seconds", {}).get("total")
    time = f"\n- Time, with validation: {as_seconds(seconds)} s" if seconds else ""
    parts.append(f"- Run folder: {results.get('run_dir', '-')}{time}")
    if results.get("cost"):
        parts[-1] += f"\n- What it costs, dense, pruned and compacted: {results.get('run_dir', '-')}/report.md"
    return "\n\n".join(parts) + "\n"


def write_report(run_dir: str | os.PathLike[str]) -> Path:
    """Writes `report.md` and its pictures into `run_dir`, each file whole or not at all.

    Args:
      run_dir: folder with `results.json` and, if there is one, `metrics.jsonl`.

    Returns:
      The path of `report.md`.

    Raises:
      ValueError: `results.json` is missing or cannot be read.
    """
    folder = Path(run_dir).expanduser()
    results, path = _read_results(folder / "results.json"), folder / "metrics.jsonl"
    metrics = read_metrics(path) if path.exists() else []
    title = _title(results)
    pictures = {
        "training": training_png(metrics, title),
        "admm": admm_png(metrics, title),
        "sparsity": sparsity_png(_sparsity(results), title),
    }
    for name, png in pictures.items():
        if png is not None:
            write_atomically(folder / f"{name}.png", png)
    text = _markdown(results, [name for name, png in pictures.items() if png is not None])
    write_atomically(folder / "report.md", text)
    return folder / "report.md"


def _read_results(path: Path) -> Results:
    try:
        results = read_checked(path.read_text())
    except (OSError, ValueError) as error:
        hint = "expected the JSON that a run writes at its end; finish the run or give another folder"
        raise ValueError(f"{path} cannot be read ({error}); {hint}.") from error
    missing = [key for key in ("dataset", "model", "stages") if key not in results]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}; expected the results of a run of rap_jax.")
    return results


def _title(results: Results) -> str:
    return f"{results['dataset']}, {results['model']['name']} of width {results['model'].get('width')}"


def _method(results: Results) -> str:
    """What a reader calls the method that prunes in the stage `admm`; the first results name none."""
    return _METHODS[results.get("config", {}).get("prune", {}).get("method", "admm")]


def _sparsity(results: Results) -> dict[str, Any]:
    """Returns the sparsity of the run, or that of its last stage if it did not come to its end."""
    found = [results["stages"].get(stage, {}).get("sparsity") for stage in STAGES] + [results.get("sparsity")]
    return next((sparsity for sparsity in reversed(found) if sparsity), {})


def _accuracies(results: Results) -> Iterator[tuple[str, str, dict[str, Any], float | None]]:
    """Yields name, split, accuracy and seconds of every evaluation that there is, in the order of the run."""
    for stage in ("start", *STAGES):
        result = results["stages"].get(stage, {})
        if "validation" in result:
            yield stage, "validation", result["validation"], result.get("seconds")
        if "cut" in result:
            yield f"{stage}, cut", "validation", result["cut"], None
    if results.get("test"):
        yield "test", "test", results["test"], results.get("seconds", {}).get("test")


def _accuracy_rows(results: Results) -> Iterator[tuple[str, ...]]:
    for name, split, accuracy, seconds in _accuracies(results):
        cells = (as_interval(accuracy, "natural"), as_interval(accuracy, "robust"))
        yield (name, *cells, f"{accuracy['num_examples']:,} {split}", as_seconds(seconds))


def _notes(results: Results) -> str:
    """Returns one line per attack that was used, and what the brackets and the cuts are."""
    splits: dict[str, list[str]] = {}
    for _, split, accuracy, _ in _accuracies(results):
        names = splits.setdefault(as_attack(accuracy["attack"]), [])
        names += [] if split in names else [split]
    lines = [f"- PGD on {' and '.join(names)}: {attack}" for attack, names in splits.items()]
    lines.append("- PGD accuracy: right on the clean image and on the last image of every restart.")
    lines.append("- In brackets: 95% interval (Wilson).")
    method = _method(results)
    cuts = {"start": "at the start", "pretrain": f"after pretrain (no {method})", "admm": f"after {method}"}
    found = [text for stage, text in cuts.items() if "cut" in results["stages"].get(stage, {})]
    lines += [f"- Cut: the weights to prune set to zero {' or '.join(found)}, no retraining yet."] if found else []
    return "\n".join(lines)


def _sparsity_table(sparsity: dict[str, Any]) -> str:
    rows = []
    for name, row in (*sparsity["layers"].items(), ("overall", sparsity["overall"])):
        size, kept = f"{row['size']:,}", f"{row['size'] - row['zeros']:,}"
        structures = (f"{row[f'{s}_kept']:,} of {row[s]:,}" if s in row else "-" for s in ("filters", "columns"))
        rows.append((name, size, kept, as_percent(row["sparsity"]), *structures))
    return as_table(("Layer", "Weights", "Kept", "Sparsity", "Filters kept", "Columns kept"), rows)


def _markdown(results: Results, pictures: list[str]) -> str:
    evaluations = [(name, split, accuracy) for name, split, accuracy, _ in _accuracies(results) if ", cut" not in name]
    dense, pruned = (results["stages"].get(stage, {}).get("validation") for stage in ("pretrain", "retrain"))
    method = _method(results)
    cuts = [(text.format(method), results["stages"].get(stage, {}).get("cut")) for stage, text in _CUTS.items()]
    filters = (as_pair, as_percent, as_training, cost_table)
    template = templates(Path(__file__).parent, filters).get_template("report.md.jinja")
    text: str = template.render(
        run=results,
        title=_title(results),
        method=method,
        table=format_table(results).strip(),
        pictures=pictures,
        headline=evaluations[-1] if evaluations else None,
        zeros=_sparsity(results).get("overall", {}).get("sparsity"),
        dense=dense,
        pruned=pruned,
        cuts=[(text, cut) for text, cut in cuts if cut],
    )
    return text + "\n"
