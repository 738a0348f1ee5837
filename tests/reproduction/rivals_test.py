"""Table `rivals`: methods of pruning differ by their rule alone, and start from the networks of the table `robust`."""

import dataclasses
import io
import re
from pathlib import Path
from typing import Any

import fake_results as fake
import pytest
from PIL import Image

from launch.job_configs import config_of
from rap_jax.config import PruneConfig, RunConfig
from rap_jax.reproduction import figures
from rap_jax.reproduction.job import Job, in_order
from rap_jax.reproduction.recipes import scale_of
from rap_jax.reproduction.report import as_markdown, sections, write_report
from rap_jax.reproduction.results import TableResults, collect
from rap_jax.reproduction.tables import build_table
from rap_jax.training.optimizer import plan_stages

# Budgets by method: of single weights, of filters.
BUDGETS = {
    "admm": ({"layer", "global", "erk", "lamp"}, {"layer", "erk", "lamp"}),
    "magnitude": ({"layer", "lamp"}, {"layer", "lamp"}),
    "random": ({"layer"}, {"layer"}),
    "hydra": ({"layer", "lamp"}, {"layer", "lamp"}),
    "harp": ({"global"}, {"global"}),
    "twinrep": ({"global"}, {"global"}),
    "flyingbird": ({"layer", "erk"}, set[str]()),
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "harp": {"name": "sgd", "learning_rate": 0.1},
    "twinrep": {"weight_decay": 2e-4},
}
RATIOS = {"irregular": {0.9, 0.95, 0.99}, "filter": {0.5, 0.75, 0.875}}


def runs(scale: str, **changes: int) -> dict[Job, RunConfig]:
    """The training runs of the table with their configs."""
    jobs = in_order(build_table("rivals", scale_of(scale, **changes)).jobs)
    configs = {job: config_of(job) for job in jobs if job.module == "launch.main"}
    return {job: config for job, config in configs.items() if isinstance(config, RunConfig)}


def pruned(scale: str) -> dict[Job, RunConfig]:
    return {job: config for job, config in runs(scale).items() if config.prune.sparsity}


def test_every_method_has_its_budgets_at_every_sparsity() -> None:
    places = [
        (config.prune.method, config.prune.structure, config.prune.budget, ratio, config.seed)
        for config in pruned("quick").values()
        for ratio in {ratio for _, ratio in config.prune.sparsity}
    ]
    expected = {
        (method, structure, budget, ratio, seed)
        for method, budgets in BUDGETS.items()
        for structure, of_structure in zip(RATIOS, budgets, strict=True)
        for budget in of_structure
        for ratio in RATIOS[structure]
        for seed in (0, 1)
    }
    assert len(places) == len(expected) == 138 and set(places) == expected


def test_methods_differ_by_their_rule_alone() -> None:
    """All else, epochs and the attack of the training among it, is that of ADMM at the same sparsity."""
    neutral = {}
    for job, config in pruned("quick").items():
        (ratio,) = {ratio for _, ratio in config.prune.sparsity}
        # The radius rises once more after a cut; HARP and TwinRep have an optimizer of their own in their stage.
        stage = dataclasses.replace(config.admm, epsilon_ramp_epochs=0)
        if (method := config.prune.method) in OPTIMIZERS:
            usual = next(iter(neutral.values())).admm.optimizer
            assert stage.optimizer == dataclasses.replace(usual, **OPTIMIZERS[method])
            stage = dataclasses.replace(stage, optimizer=usual)
        assert config.prune.harp_growth == (0.2 / stage.num_epochs if method == "harp" else 0.01)
        same = dataclasses.replace(config, name="run", prune=of_any_method(config), admm=stage)
        of_admm = neutral.setdefault((config.prune.structure, ratio, config.seed), same)
        assert same == of_admm, job.name
    assert {(config.pretrain.num_epochs, config.admm.num_epochs, config.retrain.num_epochs)
            for config in neutral.values()} == {(0, 4, 12)}  # fmt: skip


def of_any_method(config: RunConfig) -> PruneConfig:
    """The settings of pruning without those of a method."""
    return dataclasses.replace(config.prune, method="admm", budget="layer", harp_growth=0.01)


def test_the_radius_rises_after_each_cut_that_leaves_little() -> None:
    for job, config in pruned("quick").items():
        ratio = max(ratio for _, ratio in config.prune.sparsity)
        assert (config.admm.epsilon_ramp_epochs > 0) == (config.prune.method != "admm"), job.name
        assert (config.retrain.epsilon_ramp_epochs > 0) == (ratio in (0.99, 0.875)), job.name


def test_networks_are_shared_with_the_table_robust() -> None:
    ours, robust = (
        {job.name: job for job in in_order(build_table(name, scale_of("quick")).jobs)} for name in ("rivals", "robust")
    )
    shared = ours.keys() & robust.keys()
    assert all(ours[name] == robust[name] for name in shared)
    dense = {f"lenet_mnist_robust_dense_w8_seed{seed}" for seed in (0, 1)}
    admm = {f"lenet_mnist_robust_admm_w8_to_w{to}_seed{seed}" for to in (1, 2, 4) for seed in (0, 1)}
    assert shared == dense | admm | {f"auto_attack_{name}" for name in admm}
    starts = {need.name for job in ours.values() if job.module == "launch.main" for need in job.needs}
    assert starts == dense


@pytest.mark.parametrize("scale", ["smoke", "quick", "paper"])
def test_every_stage_can_be_planned(scale: str) -> None:
    for config in runs(scale, num_seeds=1).values():
        assert len(plan_stages(config, 4_000)) == (2 if config.prune.sparsity else 1)


def test_a_narrower_scale_takes_its_widest_network() -> None:
    table = build_table("rivals", scale_of("quick", max_width=4, num_seeds=3))
    assert {config.model.width for config in runs("quick", max_width=4, num_seeds=1).values()} == {4}
    assert table.left_out == ("pruned from w=8, here from w=4",)
    assert len(table.cells[0].network) == 3


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> TableResults:
    """The table of quick without one seed of a cell and without a whole other cell."""
    out = tmp_path_factory.mktemp("rivals")
    table = build_table("rivals", scale_of("quick"))
    missing = re.compile("hydra_lamp_irregular_95_w8_seed1|random_layer_filter_75_")
    accuracies = lambda job: (0.97, 0.9, 0.85 + 0.01 * fake.seed_of(job) + 0.02 * ("_erk_" in job.name))
    fake.fill(out, table, accuracies, without=lambda job: bool(missing.search(job.name)))
    return collect(table, out)


def test_a_grid_for_each_structure(found: TableResults, tmp_path: Path) -> None:
    text = as_markdown(found, sections(found, tmp_path, {}, {}))
    grids = text[: text.index("## Cells")].split("## ")[1:]
    assert [grid.partition(":")[0] for grid in grids] == ["single weights", "filters"]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in grids[0].splitlines() if "|" in line]
    assert lines[0] == ["", "90%", "95%", "99%"]
    names = [line[0] for line in lines[2:] if line[0]]
    assert len(names) == 13 and names[:2] == ["ADMM, layer", "ADMM, global"] and names[-1] == "FlyingBird, erk"
    rows = {line[0]: (line, below) for line, below in zip(lines[2::2], lines[3::2], strict=True)}
    assert rows["ADMM, erk"][0][1] == "97.00 (97.00 to 97.00) / 87.50 (87.00 to 88.00)"
    assert rows["HYDRA, lamp"][0][2] == "97.00, 1 of 2 seeds / 85.00, 1 of 2 seeds"
    assert rows["HARP, global"][1][3] == "75.00% zeros, 205,426 parameters, 91,584 multiply-adds, 19.0 minutes"
    random = [line for line in grids[1].splitlines() if line.startswith("| random, layer")]
    assert [cell.strip() for cell in random[0].split("|")[2:5]][1] == "- / -"


def test_the_figure_has_a_line_for_each_method_and_budget(found: TableResults) -> None:
    ((weights, filters),) = figures._panels(found)
    assert [len(panel.lines) for panel in (weights, filters)] == [13, 10]
    colors = {line.name.partition(", ")[0]: line.color for line in weights.lines}
    assert len(set(colors.values())) == 7
    assert len({(line.color, line.mark) for line in weights.lines}) == 13
    for line in filters.lines:
        assert line.color == colors[line.name.partition(", ")[0]]
        assert list(line.points) == [50, 75, 87.5]
    erk = next(line for line in weights.lines if line.name == "FlyingBird, erk")
    assert [value.mean for value in erk.points.values()] == [87.5] * 3


def test_the_report_is_written_whole(found: TableResults, tmp_path: Path) -> None:
    folder = write_report(found, tmp_path, {}, {})
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.md", "rivals.png"]
    assert Image.open(io.BytesIO((folder / "rivals.png").read_bytes())).width > 600
    html = (folder / "report.html").read_text()
    assert html.count('<table class="grid">') == 2
    assert "the paper's" not in (folder / "report.md").read_text().partition("## Cells")[0].partition("![")[2]
