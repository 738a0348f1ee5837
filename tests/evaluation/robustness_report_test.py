"""The report of an evaluation says what was found, in a table that fits a terminal, in words and in pictures."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from reported_run import make_results as run_results
from reported_run import png_size, row

from rap_jax._runtime.integrity import write_checked
from rap_jax.evaluation.predictions import take_sample
from rap_jax.evaluation.report import examples_png, format_robustness, robustness_png, write_robustness_report
from rap_jax.evaluation.suite import accuracy_of
from rap_jax.training.report import format_table

SAMPLE = take_sample(tiny.tiny_dataset(), "test", 40)
PGD = {"norm": "linf", "epsilon": 8 / 255, "step_size": 0.1, "num_steps": 50, "num_restarts": 5, "random_start": True}


def share(count: int, kind: str = "robust") -> dict[str, Any]:
    return accuracy_of(np.arange(40) < count, kind)


def part(name: str, attacked: int, broken: int) -> dict[str, Any]:
    left = (attacked - broken) / 40
    return {"name": name, "attacked": attacked, "broken": broken, "robust_accuracy": left, "seconds": 12.34}


def make_results(name: str = "lenet_mnist_seed0") -> dict[str, Any]:
    sweep = [(0.0, 0.95), (0.25, 0.8), (0.5, 0.7), (1.0, 0.5), (2.0, 0.2), (4.0, 0.05)]
    return {
        "name": name,
        "images": SAMPLE.words,
        "network": {"kind": "run", "checkpoint": "runs/lenet_mnist_seed0"},
        "sources": [],
        "data": SAMPLE.about,
        "config": {"norm": "linf", "epsilon": 8 / 255, "seed": 3, "pgd_losses": ["ce", "margin"]},
        "versions": {"jax": "0.10.2"},
        "device": "2 x cpu (cpu)",
        "command": "python -m launch.evaluate --checkpoint=runs/lenet_mnist_seed0",
        "out_dir": "runs/lenet_mnist_seed0/evaluation",
        "clean": share(38, "natural"),
        "pgd": {
            "name": "PGD",
            "attack": PGD,
            "seconds": 24.7,
            "parts": [part("pgd-ce", 38, 8), part("pgd-margin", 30, 1)],
        }
        | share(29),
        "auto_attack": {"name": "AutoAttack standard", "version": "standard", "seconds": 1234.5}
        | {"parts": [part("apgd-ce", 38, 9), part("square", 29, 2)]}
        | share(27),
        "transfer": [
            {
                "name": "transfer from a_run_with_quite_a_long_name_of_its_own",
                "checkpoint": "runs/other",
                "seconds": 3.0,
            }
            | {"source": share(38, "natural") | share(9)}
            | share(36)
        ],
        "combined": share(27),
        "perturbation_sizes": {"least": 0.01, "median": 0.02, "largest": 0.0314},
        "diagnostics": {
            "sweep": [{"epsilon": times * 8 / 255, "accuracy": accuracy} for times, accuracy in sweep]
            + [{"epsilon": 1.0, "accuracy": 0.0}],
            "num_images": 40,
        },
        "findings": [],
        "seconds": {"total": 1300.0},
    }


FINDING = {"name": "zero gradients", "text": "At 43.0% of the right images the gradient is exactly zero. " * 5}


def examples(broken: int = 11) -> dict[str, np.ndarray]:
    adversarial = SAMPLE.images.copy()
    adversarial[2 : 2 + broken] = np.clip(adversarial[2 : 2 + broken] + 8 / 255, 0, 1)
    broken_by = np.array(["clean"] * 2 + ["apgd-ce"] * broken + [""] * (38 - broken))
    return {
        "label": SAMPLE.labels, "prediction": (SAMPLE.labels + 1) % 10, "broken_by": broken_by,
        "adversarial": adversarial,
    }  # fmt: skip


def make_folder(folder: Path, results: dict[str, Any], **arrays: np.ndarray) -> Path:
    (folder / "results.json").write_text(write_checked(results))
    np.savez(folder / "examples.npz", **arrays or examples())  # type: ignore[arg-type]
    return folder


def test_the_table_has_a_row_per_attack() -> None:
    text = format_robustness(make_results())
    assert text.startswith("lenet_mnist_seed0: robustness under linf, epsilon 8/255, first 40 test images of tiny\n")
    assert row(text, "none (clean images)")[1:4] == ["40", "2", "95.00% [83.50, 98.62]"]
    assert row(text, "pgd-ce")[1:] == ["38", "8", "75.00%", "12.3"]
    assert row(text, "AutoAttack standard")[1:] == ["38", "11", "67.50% [52.02, 79.92]", "1,234.5"]
    assert row(text, "transfer from a_run_with_quite_a_...")[1:3] == ["38", "2"]
    assert row(text, "worst case of all")[3] == "67.50% [52.02, 79.92]"
    assert "5 restarts, random start; on cross-entropy, then on the margin" in " ".join(text.split())
    assert "PGD images of runs/other, on which that network has 22.50%" in " ".join(text.split())
    assert "0.01 to 0.0314, median 0.02" in text and "Findings: none." in text
    assert "- Folder: runs/lenet_mnist_seed0/evaluation" in text


def test_pgd_of_any_step_has_a_name_of_its_own() -> None:
    """Results that were written before call it PGD, as the table of a run calls PGD that is judged by its last step."""
    text = format_robustness(make_results())
    assert row(text, "PGD, any step")[1:3] == ["38", "9"] and "| PGD " not in text
    assert "- Any step: one misclassified image on the way breaks an example." in text
    of_run = format_table(run_results())
    assert "- PGD accuracy: right on the clean image and on the last image of every restart." in of_run


@pytest.mark.parametrize("name", ["net", "a | Attack\nFindings of a name"])
def test_terminal_and_report_have_the_same_table_and_notes(tmp_path: Path, name: str) -> None:
    results = make_results(name)
    text = write_robustness_report(make_folder(tmp_path, results), SAMPLE).read_text()
    shown = format_robustness(results).split("\n\n")
    table = next(part for part in shown if part.startswith("| Attack "))
    notes = next(part for part in shown if part.startswith("- Robust accuracy"))
    assert f"\n\n{table}\n\n{notes}\n\n## " in text


@pytest.mark.parametrize("name", ["net", "a_module.with_a_very_long_name.and_a_function_that_is_long_too"])
def test_the_table_fits_100_columns(name: str) -> None:
    results = make_results(name) | {"findings": [FINDING]}
    lines = format_robustness(results).splitlines()
    assert max(map(len, lines)) <= 100
    table = [line for line in lines if line.startswith("|")]
    assert len({len(line) for line in table}) == 1


def test_findings_stand_below_the_table() -> None:
    text = format_robustness(make_results() | {"findings": [FINDING, FINDING | {"name": "collapsed"}]})
    assert "Findings (2), each a reason to doubt these numbers:\n- zero gradients: At 43.0%" in text
    assert text.index("worst case of all") < text.index("- collapsed: ")


def test_the_report_has_words_and_pictures(tmp_path: Path) -> None:
    results = make_results() | {"findings": [FINDING]}
    text = write_robustness_report(make_folder(tmp_path, results), SAMPLE).read_text()
    assert text.startswith("# lenet_mnist_seed0 under attack\n\nOf the first 40 test images of tiny, the network")
    assert "**95.00%** correctly, and **67.50%** under every attack within linf, epsilon 8/255." in text
    assert "AutoAttack standard alone leaves 67.50% [52.02, 79.92]." in text
    assert "At radius 1, where every image can become any other, 0.00% are left." in text
    for words in ("## Findings", "- zero gradients: ", "](robustness.png)", "](examples.png)", results["command"]):
        assert words in text
    assert SAMPLE.about["attacked_sha256"] in text and "jax 0.10.2" in text
    for name in ("robustness", "examples"):
        width, height = png_size(tmp_path / f"{name}.png")
        assert width > 500 and height > 300


def test_what_is_missing_is_left_out(tmp_path: Path) -> None:
    results = make_results() | {"pgd": None, "auto_attack": None, "transfer": [], "diagnostics": None}
    results["perturbation_sizes"] = None
    text = write_robustness_report(make_folder(tmp_path, results, **examples(0)), SAMPLE).read_text()
    assert "png" not in text and "PGD" not in text and "AutoAttack" not in text
    assert not list(tmp_path.glob("*.png"))


def test_pictures_are_the_same_for_the_same_numbers() -> None:
    first, second = (robustness_png(copy.deepcopy(make_results()), "title") for _ in range(2))
    assert first == second is not None
    grids = [examples_png(examples(n), SAMPLE, norm="l2", epsilon=0.5, title="title") for n in (1, 3)]
    assert all(grids) and grids[0] != grids[1]


def test_colours_and_extremes_are_drawn() -> None:
    colour = SAMPLE._replace(images=np.repeat(SAMPLE.images, 3, axis=-1))
    arrays = examples() | {"adversarial": colour.images.copy()}
    assert examples_png(arrays, colour, norm="linf", epsilon=8 / 255, title="title")
    results = make_results() | {"combined": share(0), "auto_attack": share(40) | {"name": "AutoAttack standard"}}
    assert robustness_png(results, "title")
