"""What an evaluation found, for people: a table for the terminal, and report.md with pictures.

`format_robustness(results)` needs only the results; `write_robustness_report(folder, sample)` reads `results.json` and
`examples.npz` of an evaluation and writes `report.md`, `robustness.png` and `examples.png` beside them.
"""

import os
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rap_jax.checked_json import read_checked
from rap_jax.folder import write_atomically
from rap_jax.robustness.plots import examples_png, robustness_png
from rap_jax.robustness.sample import Sample
from rap_jax.wording import PGD_ANY_STEP, as_attack, as_interval, as_percent, as_radius, as_seconds, as_table

Results = dict[str, Any]
_WIDTH = 100
_LONGEST_NAME = 36


def format_robustness(results: Results) -> str:
    """Returns the results as text of at most 100 columns that reads well in a terminal and as Markdown.

    Args:
      results: the content of `results.json`.
    """
    title = f"{_short(results['name'])}: robustness under {_threat(results)}, {results['images']}"
    below = [*_notes(results), "", *_findings(results), "", f"- Folder: {results['out_dir']}"]
    return "\n\n".join([_wrapped(title), _table(results), "\n".join(below)]) + "\n"


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
    write_atomically(path / "report.md", _markdown(results, [name for name, png in pictures.items() if png]))
    return path / "report.md"


def _threat(results: Results) -> str:
    return f"{results['config']['norm']}, epsilon {as_radius(results['config']['epsilon'])}"


def _table(results: Results) -> str:
    return as_table(("Attack", "Attacked", "Broken", "Accuracy", "Seconds"), list(_rows(results)))


def _rows(results: Results) -> Iterator[tuple[str, ...]]:
    """A row per part, then one for the attack as a whole; each part sees what the ones before it have left."""
    total, right = results["clean"]["num_examples"], results["clean"]["natural_correct"]
    yield "none (clean images)", f"{total:,}", f"{total - right:,}", as_interval(results["clean"], "natural"), ""
    for kind in ("pgd", "auto_attack"):
        attack = results[kind]
        for part in attack["parts"] if attack else ():
            accuracy = as_percent(part["robust_accuracy"])
            yield part["name"], f"{part['attacked']:,}", f"{part['broken']:,}", accuracy, as_seconds(part["seconds"])
        if attack:
            name = PGD_ANY_STEP if kind == "pgd" else attack["name"]  # older results call it PGD
            yield _row(name, attack, right, attack["seconds"])
    for attack in results["transfer"]:
        yield _row(_short(attack["name"]), attack, right, attack["seconds"])
    yield _row("worst case of all", results["combined"], right, results["seconds"]["total"])


def _row(name: str, attack: dict[str, Any], right: int, seconds: float) -> tuple[str, ...]:
    broken = f"{right - attack['robust_correct']:,}"
    return name, f"{right:,}", broken, as_interval(attack, "robust"), as_seconds(seconds)


def _notes(results: Results) -> Iterator[str]:
    yield _wrapped(
        "- In brackets: 95% interval (Wilson). An example counts if it is right clean and under every attack of the "
        "row; parts attack what the parts before them have left."
    )
    if results["pgd"]:
        names = {"ce": "cross-entropy", "margin": "the margin"}
        losses = ", then on ".join(names[loss] for loss in results["config"]["pgd_losses"])
        yield _wrapped(f"- {PGD_ANY_STEP}: {as_attack(results['pgd']['attack'])}; on {losses}")
        yield _wrapped(
            "- Any step: one misclassified image on the way breaks an example. PGD elsewhere, as in the table of a "
            "run, is judged by the last image of each restart alone."
        )
    for attack in results["transfer"]:
        own = as_percent(attack["source"]["robust_accuracy"])
        yield _wrapped(f"- {attack['name']}: PGD images of {attack['checkpoint']}, on which that network has {own}")
    sizes = results["perturbation_sizes"]
    if sizes:
        yield (
            f"- Norm of the perturbations that broke an image: {sizes['least']:.4g} to {sizes['largest']:.4g}, "
            f"median {sizes['median']:.4g}"
        )


def _findings(results: Results) -> Iterator[str]:
    """What should make one doubt, in plain words."""
    findings = results["findings"]
    if not findings and results["diagnostics"] is None:
        yield _wrapped(
            "Findings: none. A randomised network is not examined for masked gradients. It is asked anew each time, so "
            "the counts of two lines may differ by its draws."
        )
    elif not findings:
        yield _wrapped(
            "Findings: none. Looked at: outputs, repeated and neighbouring images, zero gradients, one step against "
            "many, a radius at which everything must break"
            + (", Square against the gradients." if results["auto_attack"] else ".")
        )
    else:
        yield f"Findings ({len(findings)}), each a reason to doubt these numbers:"
    for finding in findings:
        yield _wrapped(f"- {finding['name']}: {finding['text']}")


def _markdown(results: Results, pictures: list[str]) -> str:
    parts = [f"# {results['name']} under attack", _headline(results), _table(results), "\n".join(_notes(results))]
    if "robustness" in pictures:
        parts += ["## Accuracy over the radius", "![Accuracy over the radius](robustness.png)", _of_sweep(results)]
    parts += ["## Findings", "\n".join(_findings(results))]
    if "examples" in pictures:
        parts += ["## Examples", "![Clean and perturbed images](examples.png)"]
    return "\n\n".join([*parts, "## Run it again", _again(results)]) + "\n"


def _headline(results: Results) -> str:
    clean, worst, auto = results["clean"], results["combined"], results["auto_attack"]
    text = (
        f"Of the {results['images']}, the network classifies **{as_percent(clean['natural_accuracy'])}** correctly, "
        f"and **{as_percent(worst['robust_accuracy'])}** under every attack within {_threat(results)}."
    )
    if auto:
        text += f" {auto['name']} alone leaves {as_interval(auto, 'robust')}."
    return text


def _of_sweep(results: Results) -> str:
    diagnosis = results["diagnostics"]
    last = diagnosis["sweep"][-1]
    return (
        f"PGD on the margin, 50 steps at each radius, on {diagnosis['num_images']} images; an image that is broken at "
        f"one radius counts as broken at all larger ones. At radius {last['epsilon']:.4g}, where every image can "
        f"become any other, {as_percent(last['accuracy'])} are left."
    )


def _again(results: Results) -> str:
    data, versions = results["data"], results["versions"]
    lines = [
        f"    {results['command']}\n",
        f"- Network: {results['network']['kind']}, {results['network']['checkpoint']}",
        f"- Data: {results['images']}; data set sha256 `{data['sha256']}`, attacked images `{data['attacked_sha256']}`",
        f"- Seed: {results['config']['seed']}",
        f"- Device: {results['device']}",
        f"- Versions: {', '.join(f'{name} {version}' for name, version in sorted(versions.items()))}",
        "- Each example: `examples.npz` (index, label, clean_prediction, clean_margin, broken_by, prediction, margin, "
        "size, adversarial)",
    ]
    return "\n".join(lines)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."


def _wrapped(text: str) -> str:
    indent = "  " if text.startswith("- ") else ""
    lines = textwrap.wrap(text, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines)
