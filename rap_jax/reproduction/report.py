"""The report of a table: report.md, report.html and its figures, in the folder `tables/NAME` of the plan.

Both files are made from the same `TableResults` and the same sections: Markdown here, HTML by `report.html.jinja`.
"""

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rap_jax._runtime.integrity import write_atomically
from rap_jax._runtime.text import as_attack, as_percent, as_table, templates
from rap_jax.reproduction.figures import Picture, draw
from rap_jax.reproduction.formats import (
    NOTHING,
    Code,
    anchor,
    as_difference,
    as_number,
    as_seeds,
    as_size,
    as_spread,
    plain,
    shade,
    shown,
)
from rap_jax.reproduction.results import (
    ATTACKED_MARGIN,
    NATURAL_MARGIN,
    AttackReliability,
    LateEpochs,
    MeasuredCell,
    Results,
    TableResults,
    Value,
    attack_reliability,
    is_run,
    late_epochs,
    setting_differences,
    training_epochs,
)

# The share of the most frequent class among the test images of MNIST and of CIFAR-10, in percent.
_ONE_CLASS = (11.35, 10.0)
# Numbers of the paper that are no achievement to reach.
_NOT_HARD = (*_ONE_CLASS, 0.0)
Inline = tuple[str, ...]  # texts and `Code` in a row


class Section(NamedTuple):
    """A part of a report. Its texts are plain: Markdown and HTML escape them."""

    heading: str
    text: str = ""
    header: tuple[str, ...] = ()  # of a table
    rows: tuple[tuple[str, ...], ...] = ()
    points: tuple[Inline, ...] = ()  # a list below the table
    ids: tuple[str, ...] = ()  # of the rows, for links in HTML; none or one for each row
    is_folded: bool = False  # in HTML


def write_report(
    found: TableResults,
    out: Path,
    failures: Mapping[str, str],
    paper: Mapping[str, Mapping[str, Any]],
    *,
    pictures: bool = True,
) -> Path:
    """Writes the report of a table as far as it is done, each file whole or not at all.

    Args:
      found: the table.
      out: folder of the plan.
      failures: name of a job that has failed -> its message; those of other tables are passed over.
      paper: job name -> its config with the settings of the paper, as nested dicts.
      pictures: whether to draw figures and to write report.html; else report.md alone, without figures.

    Returns:
      The folder of the report.
    """
    folder = out / "tables" / found.table.name
    folder.mkdir(parents=True, exist_ok=True)
    parts = sections(found, out, failures, paper)
    figures = draw(found) if pictures else ()
    for figure in figures:
        write_atomically(folder / f"{figure.name}.png", figure.png)
    if pictures:
        write_atomically(folder / "report.html", as_html(found, parts, figures))
    write_atomically(folder / "report.md", as_markdown(found, parts, figures))
    return folder


def sections(
    found: TableResults, out: Path, failures: Mapping[str, str], paper: Mapping[str, Mapping[str, Any]]
) -> tuple[Section, ...]:
    """The sections below the numbers of a table; see `write_report` for the arguments."""
    parts = [*_reliability(attack_reliability(found)), *_late_epochs(found, late_epochs(found, out))]
    parts += [_settings(found, paper), *_missing(found, failures), _numbers(found), _jobs(found)]
    return tuple(parts)


def as_markdown(found: TableResults, parts: Iterable[Section], figures: Sequence[Picture] = ()) -> str:
    """The report as Markdown, with links to figures beside it."""
    grids = _joined_grids(found) if found.table.by_block else _grids(found)
    texts = [f"# {plain(found.table.title)}", plain(found.table.about), plain(summary(found)), *grids]
    texts += ["\n".join(f"- {plain(note)}" for note in notes(found))]
    texts += [f"![{plain(figure.caption)}]({figure.name}.png)" for figure in figures]
    texts += ["## Cells", _cells(found)]
    for part in parts:
        texts += [f"## {plain(part.heading)}", plain(part.text)]
        texts += [as_table(part.header, [tuple(map(shown, row)) for row in part.rows])] if part.rows else []
        texts += ["\n".join(f"- {''.join(map(shown, point))}" for point in part.points)]
    return "\n\n".join(text for text in texts if text) + "\n"


def as_html(found: TableResults, parts: Iterable[Section], figures: Sequence[Picture] = ()) -> str:
    """The report as one HTML file without scripts, with the figures inside."""
    filters = (as_number, as_difference, as_spread, as_seeds, as_size, shade, anchor)
    environment = templates(Path(__file__).parent, filters, autoescape=True)
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    environment.tests["code"] = lambda text: isinstance(text, Code)
    return environment.get_template("report.html.jinja").render(
        found=found, summary=summary(found), notes=notes(found), sections=parts, figures=figures
    )


def summary(found: TableResults) -> str:
    """How much of a table is done, and how many of the paper's numbers are reached."""
    text = f"{len(found.results)} of {len(found.results) + len(found.missing)} jobs are done."
    compared = [value for value in found.values if value.paper is not None]
    if not compared:
        return f"{text} The paper has no number to compare with."
    done = [value for value in compared if value.by_seed]
    reached = [value for value in done if value.is_reached]
    easy = sum(value.paper in _NOT_HARD for value in reached)
    words = f", {easy} of them where the paper's network had collapsed or nothing was left of it" if easy else ""
    return (
        f"{text} Of {len(compared)} numbers of the paper, {len(done)} have one of ours beside them: {len(reached)} "
        f"reached{words}, {len(done) - len(reached)} not."
    )


def notes(found: TableResults) -> Iterator[str]:
    """What a reader has to know of the numbers, each in a sentence or two."""
    yield (
        "Ours is the mean over the seeds, on the test set, which each run reads once; the difference is ours less the "
        "paper's, in points. PGD is judged by the last image of each restart."
    )
    if stuck := sorted({value.paper for value in found.values if value.paper in _ONE_CLASS}):
        yield (
            f"{' or '.join(map(as_number, stuck))} is what a network has that answers one class for every image: there "
            "the paper's training collapsed."
        )
    auto_attack = [value for value in found.values if value.label == "AutoAttack"]
    if images := sorted({value.num_images for value in auto_attack if value.by_seed}):
        yield (
            f"AutoAttack is measured on the first {' or '.join(f'{number:,}' for number in images)} test images, "
            "natural and PGD accuracy on all. The paper has no AutoAttack."
        )
    if len(epochs := training_epochs(found)) > 1:
        parts = (f"{number} in {', '.join(columns)}" for number, columns in epochs.items())
        yield f"Epochs of training, all stages together: {'; '.join(parts)}."
    jobs = {job.name for value in auto_attack for job in value.jobs}
    if any(name in jobs and not results.get("auto_attack") for name, results in found.results.items()):
        yield "This scale runs no AutoAttack: the column of that name shows what a short PGD leaves at any step."
    yield "Minutes of training are those of all stages with validation, the mean over the seeds; devices stand below."
    yield (
        f"Reached: above the paper's number, or at most {NATURAL_MARGIN:g} point (natural) or {ATTACKED_MARGIN:g} "
        "points (under attack) below it."
    )


def _reliability(found: Sequence[AttackReliability]) -> Iterator[Section]:
    if not found:
        return
    rows, explanations = [], dict[str, str]()
    for each in found:
        numbers = map(as_number, (each.with_gradients, each.square, each.auto_attack))
        cell = f"{each.row}, {each.column}"
        rows.append((cell, str(each.seed), *numbers, ", ".join(each.findings) or NOTHING))
        for name, text in each.findings.items():
            explanations.setdefault(name, f"{name}: {cell}, seed {each.seed}: {text}")
    yield Section(
        "Reliability of the attacks",
        "Percent of the attacked images: robust under the components of AutoAttack that use gradients; of these, "
        "broken by Square, which uses none; robust under all. The more Square breaks, the more the gradients mislead, "
        "and the more PGD, in which the paper reports, overstates robustness. Warnings: of the evaluation.",
        ("Cell", "Seed", "Robust to gradients", "Broken by Square", "AutoAttack", "Warnings"),
        tuple(rows),
        tuple((text,) for text in explanations.values()),
    )


def _chooses(config: Mapping[str, Any]) -> str:
    """The attack by which a run chooses its epochs."""
    strong = config.get("selection") == "strong"
    return "APGD-T and Square on 1,000 images" if strong else f"PGD, {as_attack(config['select_attack'])}"


def _late_epochs(found: TableResults, runs: Sequence[LateEpochs]) -> Iterator[Section]:
    if not runs:
        return
    configs = [results["config"] for results in found.results.values() if is_run(results)]
    attacks = dict.fromkeys(_chooses(config) for config in configs if config["train"]["attack"])
    yield Section(
        "How far late epochs lie apart",
        f"Accuracy on validation in the last third of the epochs of a run's last stage, under the attack by which an "
        f"epoch is chosen: {' or '.join(attacks)}. A run keeps the best epoch "
        f"of the whole stage. The numbers above are those of its network on the test set, under the "
        f"reported attack.",
        ("Cell", "Seed", "Epochs", "Kept", "Their mean", "Lowest to highest", "Last"),
        tuple(_late_row(run) for run in runs),
    )


def _late_row(run: LateEpochs) -> tuple[str, ...]:
    numbers = (run.kept, sum(run.late) / len(run.late), run.late[-1])
    kept, mean, last = map(as_number, numbers)
    spread = f"{as_number(min(run.late))} to {as_number(max(run.late))}"
    first = run.num_epochs - len(run.late) + 1
    return f"{run.row}, {run.column}", str(run.seed), f"{first} to {run.num_epochs}", kept, mean, spread, last


def _settings(found: TableResults, paper: Mapping[str, Mapping[str, Any]]) -> Section:
    heading = "Settings that differ from the paper's"
    runs = [results for results in found.results.values() if is_run(results)]
    if not runs:
        return Section(heading, "No run is done yet.")
    held_out = sorted({results["data"]["num_images"]["validation"] for results in runs})
    num_seeds = max(value.num_seeds for value in found.values)
    rows = [(Code(row.name), " or ".join(row.here), row.paper) for row in setting_differences(found, paper)]
    return Section(
        heading,
        f"The paper trains on all training images, keeps the epoch that is best on the test set, and has one run for a "
        f"cell (10 in Table B1). Here {' or '.join(f'{number:,}' for number in held_out)} training images are held out "
        f"and choose the epoch, and a cell has {num_seeds} seed{'s' if num_seeds > 1 else ''}."
        + (" Of the settings below, several values mean that the runs of the table differ." if rows else ""),
        ("Setting", "Here", "The paper, and its code where it is silent"),
        tuple(rows),
    )


def _missing(found: TableResults, failures: Mapping[str, str]) -> Iterator[Section]:
    if found.table.left_out:
        yield Section("Wider than this scale runs", f"{'; '.join(found.table.left_out)}.")
    failed = [(Code(job.name), ": ", Code(failures[job.name])) for job in found.missing if job.name in failures]
    if failed:
        yield Section("Failed", points=tuple(failed))
    waiting = [(Code(job.name),) for job in found.missing if job.name not in failures]
    if waiting:
        total = len(found.missing) + len(found.results)
        yield Section(f"Not done yet: {len(waiting)} of {total} jobs", points=tuple(waiting), is_folded=True)


def _numbers(found: TableResults) -> Section:
    rows, ids = [], []
    for cell in found.cells:
        for value in cell.values:
            for seed, percent in value.by_seed.items():
                numbers = (str(seed), as_number(percent), f"{value.num_images:,}")
                rows.append((f"{cell.row}, {cell.column}", value.label, *numbers, Code(value.jobs[seed].name)))
                ids.append(anchor(cell, value, seed))
    header = ("Cell", "Quantity", "Seed", "Percent", "Images", "Job")
    return Section("Every number, by seed", "", header, tuple(rows), ids=tuple(ids), is_folded=True)


def _jobs(found: TableResults) -> Section:
    """The command, data and versions of each finished job, also of those that others began with."""
    data, environments, points = dict[str, str](), dict[str, str](), list[Inline]()
    for name, results in found.results.items():
        of_data = data.setdefault(_data(results), f"D{len(data) + 1}")
        of_device = environments.setdefault(_environment(results), f"E{len(environments) + 1}")
        about = f", seed {_seed(results)}, {of_data}, {of_device}: "
        points.append((Code(name), about, Code(str(results.get("command", NOTHING)))))
    points += [(f"{short}: {text}",) for text, short in (data | environments).items()]
    text = "With the jobs that they began from. The folder of a job has all of its settings in results.json."
    return Section("Every job", text if points else "No job is done yet.", points=tuple(points), is_folded=True)


def _data(results: Results) -> str:
    data = results.get("data", {})
    attacked = f", attacked images {data['attacked_sha256']}" if "attacked_sha256" in data else ""
    return f"{data.get('name', NOTHING)}, sha256 {data.get('sha256', NOTHING)}{attacked}"


def _environment(results: Results) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in sorted(results.get("versions", {}).items()))
    return f"{results.get('device', NOTHING)}; {versions}"


def _seed(results: Results) -> str:
    seed = results.get("seed", results.get("config", {}).get("seed", NOTHING))
    return str(seed) if is_run(results) else f"{seed} of the attack"


def _grids(found: TableResults) -> Iterator[str]:
    for label in found.labels:
        values = [value for value in found.values if value.label == label]
        given = ", ours (the paper)" if any(value.paper is not None for value in values) else ""
        places = [(cell.row, cell.column) for cell in found.cells if any(v.label == label for v in cell.values)]
        rows, columns = (dict.fromkeys(place[axis] for place in places) for axis in (0, 1))
        columns = dict.fromkeys(column for column in found.columns if column in columns)
        table = [(plain(row), *(_in_grid(found.value(row, column, label)) for column in columns)) for row in rows]
        yield f"## {plain(label)} accuracy{given}"
        yield as_table(("", *map(plain, columns)), table)


def _joined_grids(found: TableResults) -> Iterator[str]:
    """A grid for each block of rows: accuracies, and what the network costs in a line below them."""
    for rows, columns in found.blocks:
        lines = []
        for row in rows:
            cells = [found.cell(row, column) for column in columns]
            lines.append((plain(row.partition(", ")[2]), *map(_accuracies, cells)))
            lines.append(("", *map(_cost, cells)))
        yield f"## {plain(rows[0].partition(', ')[0])}: natural / AutoAttack accuracy"
        yield (
            "Lowest to highest seed in brackets. Below: the network of the first seed after compaction, and minutes of "
            "training."
        )
        yield as_table(("", *map(plain, columns)), lines)


def _accuracies(cell: MeasuredCell | None) -> str:
    """Natural and AutoAttack accuracy, with the seeds where they are not all done."""
    texts = []
    for value in (value for value in (cell.values if cell else ()) if value.label in ("natural", "AutoAttack")):
        spread = f" ({as_spread(value)})" if as_spread(value) else ""
        partly = f", {as_seeds(value)}" if 0 < len(value.by_seed) < value.num_seeds else ""
        texts.append(f"{as_number(value.mean)}{spread}{partly}")
    return " / ".join(texts)


def _cost(cell: MeasuredCell | None) -> str:
    if cell is None or cell.size is None or cell.minutes is None:
        return NOTHING
    counts = ((cell.size.compacted, "parameters"), (cell.size.multiply_adds, "multiply-adds"))
    parts = [f"{number:,} {what}" for number, what in counts if number is not None]
    return ", ".join((f"{as_percent(cell.size.sparsity)} zeros", *parts, f"{cell.minutes:.1f} minutes"))


def _in_grid(value: Value | None) -> str:
    if value is None:
        return ""
    partly = f", {as_seeds(value)}" if 0 < len(value.by_seed) < value.num_seeds else ""
    given = f" ({as_number(value.paper)})" if value.paper is not None else ""
    return f"{as_number(value.mean)}{partly}{given}"


def _cells(found: TableResults) -> str:
    rows = []
    for cell in found.cells:
        sizes: tuple[str, ...] = (NOTHING,) * 4
        if (size := cell.size) is not None and cell.minutes is not None:
            compacted = NOTHING if size.compacted is None else f"{size.compacted:,}"
            sizes = (f"{size.parameters:,}", compacted, as_percent(size.sparsity), f"{cell.minutes:.1f}")
        for number, value in enumerate(cell.values):
            reached = ("yes" if value.is_reached else "no") if value.difference is not None else NOTHING
            ours = (as_number(value.mean), as_spread(value) or NOTHING, as_seeds(value))
            theirs = (as_number(value.paper), as_difference(value), reached)
            name = plain(f"{cell.row}, {cell.column}: {value.label}")
            rows.append((name, *ours, *theirs, *(sizes if number == 0 else ("",) * 4)))
    header = ("Cell", "Ours", "Lowest to highest", "Done", "Paper", "Difference", "Reached", "Parameters",
              "After compaction", "Zeros", "Minutes")  # fmt: skip
    return as_table(header, rows)
