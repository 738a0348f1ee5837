"""What a run found, for people: a table for the terminal, and report.md with pictures.

`format_table(results)` needs only the results; `write_report(run_dir)` reads `metrics.jsonl` and `results.json` of a
run folder and writes `report.md`, `training.png`, `admm.png` and `sparsity.png` beside them. Both leave out what a
run that was stopped does not have. Every table, picture and file names the data set that was really used.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rap_jax.checked_json import read_checked
from rap_jax.config import STAGES
from rap_jax.cost import cost_table
from rap_jax.folder import write_atomically
from rap_jax.metrics import read_metrics
from rap_jax.plots import admm_png, sparsity_png, training_png
from rap_jax.wording import as_attack, as_interval, as_pair, as_percent, as_seconds, as_table, as_training

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
    cuts = {"start": "at the start", "pretrain": "after pretrain (no ADMM)", "admm": "after ADMM"}
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
    name, dataset = results.get("name") or _title(results), results["dataset"]
    parts = [f"# {name} on {dataset}", _headline(results), format_table(results).strip()]
    for file, caption in {"training": "Training", "admm": "ADMM", "sparsity": "Sparsity"}.items():
        text = _cut_sentence(results) if file == "admm" else ""
        picture = f"![{caption} on {dataset}]({file}.png)" if file in pictures else ""
        parts += [part for part in (f"## {caption}", text, picture) if part and (text or picture)]
    if cost := results.get("cost"):  # results of earlier versions have none
        parts += ["## Cost", cost_table(cost)]
    return "\n\n".join([*parts, "## Run it again", _again(results)]) + "\n"


def _headline(results: Results) -> str:
    found = [(name, split, accuracy) for name, split, accuracy, _ in _accuracies(results) if ", cut" not in name]
    if not found:
        return f"The run on {results['dataset']} has no evaluation yet."
    name, split, last = found[-1]
    zeros = _sparsity(results).get("overall", {}).get("sparsity")
    text = (
        f"{f'With {as_percent(zeros)} of its weights at zero' if zeros else 'Dense'}, the network classifies "
        f"**{as_percent(last['natural_accuracy'])}** of {last['num_examples']:,} {results['dataset']} {split} images "
        f"correctly, and **{as_percent(last['robust_accuracy'])}** under attack"
    )
    text += "." if name == "test" else f" (after {name}; the test images have not been read)."
    dense, pruned = (results["stages"].get(stage, {}).get("validation") for stage in ("pretrain", "retrain"))
    if dense and pruned:
        text += f" On the validation images: {as_pair(dense)} after pretrain; {as_pair(pruned)} after retrain."
    return text


def _cut_sentence(results: Results) -> str:
    names = {
        "admm": "with ADMM",
        "pretrain": "without ADMM (the pretrained network, cut directly)",
        "start": "without ADMM (the network at the start, cut directly)",
    }
    found = [(text, results["stages"].get(stage, {}).get("cut")) for stage, text in names.items()]
    texts = [f"{as_pair(cut)} {text}" for text, cut in found if cut]
    return f"Right after the cut, before any retraining: {'; '.join(texts)}." if texts else ""


def _again(results: Results) -> str:
    data, versions = results.get("data", {}), results.get("versions", {})
    sizes = ", ".join(f"{size:,} {split}" for split, size in data.get("num_images", {}).items())
    lines = [
        f"    {results.get('command')}\n",
        f"- Data: {results['dataset']} ({sizes}), sha256 `{data.get('sha256')}`",
        *_settings(results.get("config")),
        f"- Seed: {results.get('seed')}; initializer: {results['model'].get('initializer')}",
        f"- Device: {results.get('device')}",
        f"- Versions: {', '.join(f'{name} {version}' for name, version in sorted(versions.items()))}",
    ]
    return "\n".join(lines)


def _settings(config: dict[str, Any] | None) -> Iterator[str]:
    """What was trained on and pruned, as far as results from elsewhere say it."""
    if not config:
        return
    yield f"- Training: {as_training(config['train'])}"
    prune, start = config["prune"], config["start"]
    if prune["sparsity"]:
        ratios = ", ".join(f"{pattern} {ratio:g}" for pattern, ratio in prune["sparsity"])
        yield f"- Pruning: {prune['structure']}, {ratios}, {prune['budget']} budget"
    if start["run_dir"]:
        yield f"- Start: the {start['weights']} weights of {start['run_dir']}"
