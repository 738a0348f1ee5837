"""How a report writes numbers, attacks and tables."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2

# PGD alone is judged by the last image of each restart, in runs and in the tables of the paper. An evaluation looks at
# the images on the way too, which breaks as many examples or more.
PGD_ANY_STEP = "PGD, any step"


def as_percent(share: float) -> str:
    """Writes a share in [0, 1]."""
    return f"{100 * share:.2f}%"


def as_seconds(seconds: float | None) -> str:
    """Writes a time, or - if there is none."""
    return "-" if seconds is None else f"{seconds:,.1f}"


def as_interval(accuracy: dict[str, Any], kind: str) -> str:
    """Writes the `natural` or the `robust` accuracy with its interval."""
    low, high = accuracy[f"{kind}_interval"]
    return f"{as_percent(accuracy[f'{kind}_accuracy'])} [{100 * low:.2f}, {100 * high:.2f}]"


def as_pair(accuracy: dict[str, Any]) -> str:
    """Writes both accuracies in words."""
    return (
        f"{as_percent(accuracy['natural_accuracy'])} natural and {as_percent(accuracy['robust_accuracy'])} PGD accuracy"
    )


def as_attack(attack: dict[str, Any]) -> str:
    """Writes the settings of a PGD attack."""
    count = lambda number, what: f"{number} {what}{'s' if number != 1 else ''}"
    start = "random start" if attack["random_start"] else "start at the image"
    falling = " falling to a tenth" if attack.get("step_schedule") == "geometric" else ""
    return (
        f"{attack['norm']}, epsilon {as_radius(attack['epsilon'])}, step {as_radius(attack['step_size'])}{falling}, "
        f"{count(attack['num_steps'], 'step')}, {count(attack['num_restarts'], 'restart')}, {start}"
    )


def as_training(train: dict[str, Any]) -> str:
    """Writes what a training step did with its images, from the `train` part of a run's config."""
    parts = [_as_kind(train)]
    augment = train["augment"]
    values = {  # `get`: settings that came after some results
        "BatchNorm by the batch inside the attack": train["attack"] and train["attack_batch_norm"] == "batch",
        f"leaky backward pass of {train.get('train_leaky_slope')} inside the attack": train.get("train_leaky_slope"),
        f"crop padding {augment['crop_padding']}": augment["crop_padding"],
        "horizontal flip": augment["horizontal_flip"],
        f"label smoothing {train['label_smoothing']}": train["label_smoothing"],
        f"mixup {train['mixup_alpha']}": train["mixup_alpha"],
        "distilled from the dense network (RSLAD) after pretrain": train.get("distillation") == "rslad",
        f"weights perturbed by {train.get('awp_gamma')} of their norm": train.get("awp_gamma"),
        f"mean of weights with decay {train.get('ema_decay')}": train.get("ema_decay"),
        "passes in bfloat16": train["compute_dtype"] == "bfloat16",
    }
    return "; ".join(parts + [text for text, is_on in values.items() if is_on])


def _as_kind(train: dict[str, Any]) -> str:
    attack = train["attack"]
    if not attack:
        return "natural images, no attack"
    if not train["free_replays"]:
        return f"PGD, {as_attack(attack)}"
    radius, replays = as_radius(attack["epsilon"]), train["free_replays"]
    return f"free adversarial training, {attack['norm']}, epsilon {radius}, {replays} updates on each batch in a row"


def as_radius(value: float) -> str:
    """Writes 8/255 as people do, and 0.3 as 0.3."""
    in_255ths = round(value * 255)
    is_fraction = 0 < in_255ths < 255 and abs(value * 255 - in_255ths) < 1e-4 and f"{value:.4g}" != str(value)
    return f"{in_255ths}/255" if is_fraction else f"{value:.4g}"


def as_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table whose columns line up in a terminal: the first to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    rule = "|:" + "-" * (widths[0] + 1) + "|" + "".join("-" * (width + 1) + ":|" for width in widths[1:])
    lines = []
    for row in (header, *rows):
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([lines[0], rule, *lines[1:]])


def templates(folder: Path, filters: Iterable[Callable[..., str]], *, autoescape: bool = False) -> jinja2.Environment:
    """The templates in a folder; each filter has the name of its function."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {function.__name__: function for function in filters}
    return environment
