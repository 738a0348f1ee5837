"""The paper's tables as jobs: shared networks, the paper's numbers in their places, and what a scale leaves out."""

import re

import pytest

from launch.flagfiles import expand_flagfiles
from rap_jax.reproduction import paper
from rap_jax.reproduction.job import Job, in_order
from rap_jax.reproduction.recipes import SCALES, scale_of, with_paper_settings
from rap_jax.reproduction.tables import TABLES, Cell, Table, build_table

ALL = [(scale, name) for scale in SCALES for name in TABLES]


def flags_of(job: Job) -> dict[str, str]:
    """The flags that count in the end, with those of the flagfile."""
    lines = expand_flagfiles(["", *job.flags])[1:]
    return dict(line.removeprefix("--").partition("=")[::2] for line in lines)


def cell(table: Table, row: str, column: str) -> Cell:
    (found,) = [one for one in table.cells if (one.row, one.column) == (row, column)]
    return found


def papers(found: Cell) -> list[float | None]:
    return [quantity.paper for quantity in found.quantities]


@pytest.mark.parametrize(("scale", "name"), ALL)
def test_every_table_is_a_plan(scale: str, name: str) -> None:
    table = build_table(name, scale_of(scale))
    places = [(one.row, one.column) for one in table.cells]
    assert len(set(places)) == len(places)
    done: set[str] = set()
    for job in in_order(table.jobs):
        assert {need.name for need in job.needs} <= done
        done.add(job.name)
    for one in table.cells:
        for quantity in one.quantities:
            of_rivals = SCALES[scale].rival_seeds if name == "rivals" else 0
            assert len(quantity.jobs) == (of_rivals or SCALES[scale].num_seeds)
            for seed, job in enumerate(quantity.jobs):
                assert job.name.endswith(f"_seed{seed}")
    if scale == "paper":
        assert not table.left_out and table.cells


def test_numbers_of_the_paper_stand_in_their_cells() -> None:
    scale = scale_of("paper")
    at = lambda name, row, column: papers(cell(build_table(name, scale), row, column))
    assert at("2", "w=8", "to 1") == [97.31, 92.16, None]
    assert at("2", "w=16", "to 8") == [99.01, 95.44, None]
    assert at("2", "w=2", "adversarial") == [11.35, 11.35]
    assert at("2", "w=4", "natural") == [99.07, 0.0]
    assert at("3", "w=4", "to 1") == [53.30, 32.41, None]
    assert at("4", "w=16", "to 2") == [71.80, 42.86, None]
    assert at("5", "w=8", "to 2") == [97.36, 90.19]
    assert at("6", "images of w=8", "16 to 4") == [96.21]
    assert at("A1", "w=16", "to 8") == [80.79, 46.4]
    assert at("B1", "kaiming_normal", "Adam") == [19.68, 19.02]
    assert at("B1", "uniform", "SGD") == [11.35, 11.35]
    assert at("C1", "w=8", "to 4") == [94.46]
    assert at("C1", "w=16", "adversarial") == [94.78]
    assert at("figure1", "w=4", "natural training") == [89.3]
    assert at("figure3", "resnet18, column", "to 2") == [74.77, 45.71]
    assert [len(build_table(name, scale).cells) for name in ("2", "5", "6", "A1", "C1")] == [20, 10, 27, 10, 14]


def test_the_paper_compares_what_it_says() -> None:
    """Differences that its text names, computed from our copy of its numbers."""
    gain = {key: paper.TABLE_4.pruned[key].adversarial - value.adversarial for key, value in paper.TABLE_A1.items()}
    assert gain[16, 1] == pytest.approx(1.81) and gain[8, 2] == pytest.approx(-0.17)
    assert min(paper.TABLE_6[16, 8].values()) == pytest.approx(paper.TABLE_2.pruned[16, 8].adversarial - 0.07)
    assert all(paper.FIGURE_3["resnet18", "filter"][w] == paper.TABLE_4.pruned[16, w] for w in (2, 4, 8))


def test_pruned_networks_of_a_width_share_their_dense_one() -> None:
    table = build_table("2", scale_of("quick", num_seeds=1))
    dense = {need.name for job in table.jobs if "_admm_" in job.name for need in job.needs}
    names = [job.name for job in in_order(table.jobs)]
    trained = {f"lenet_mnist_dense_w{w}_seed0" for w in (2, 4, 8)}
    assert trained <= dense and all(names.count(name) == 1 for name in trained)
    # Other tables need the same networks.
    for other in ("5", "6", "C1", "scratch"):
        shared = {job.name for job in in_order(build_table(other, scale_of("quick", num_seeds=1)).jobs)}
        assert "lenet_mnist_admm_w8_to_w1_seed0" in shared & set(names)


@pytest.mark.parametrize("scale", SCALES)
def test_a_network_from_scratch_gets_the_epochs_of_a_pruned_one(scale: str) -> None:
    for family, recipe in scale_of(scale).recipes.items():
        given = dict(
            line.removeprefix("--").partition("=")[::2]
            for line in expand_flagfiles(["", f"--flagfile={recipe.flagfile}", *recipe.flags])[1:]
        )
        assert recipe.epochs == sum(int(given[f"{stage}_epochs"]) for stage in ("pretrain", "admm", "retrain")), family
        has_ramp = float(given.get("pretrain_epsilon_ramp_epochs", 0)) > 0
        assert has_ramp == (recipe.ramp_epochs > 0)
    jobs = {job.name: flags_of(job) for job in in_order(build_table("scratch", scale_of(scale)).jobs)}
    ramps = {kind: jobs[f"lenet_mnist_{kind}_w1_seed0"] for kind in ("scratch", "paper_recipe")}
    assert float(ramps["scratch"]["pretrain_epsilon_ramp_epochs"]) > 0
    assert float(ramps["paper_recipe"].get("pretrain_epsilon_ramp_epochs", 0)) == 0
    assert ramps["scratch"]["pretrain_epochs"] == ramps["paper_recipe"]["pretrain_epochs"]


def test_ratios_are_those_of_the_widths() -> None:
    jobs = {job.name: flags_of(job) for job in in_order(build_table("2", scale_of("paper", num_seeds=1)).jobs)}
    found = {name: flags["sparsity"] for name, flags in jobs.items() if "_admm_" in name and "auto" not in name}
    for name, sparsity in found.items():
        width, to = map(int, re.findall(r"w(\d+)_to_w(\d+)", name)[0])
        assert sparsity == ",".join(f"{layer}:{1 - to / width}" for layer in ("conv1", "conv2", "fc1"))
    assert len(found) == 10


def test_each_table_trains_and_attacks_as_it_says() -> None:
    scale = scale_of("paper", num_seeds=1)
    of = lambda name: {job.name: flags_of(job) for job in in_order(build_table(name, scale).jobs)}
    # C&W is PGD on the margin, transferred images are made by PGD on the cross-entropy; the paper's steps, all images.
    for name, kind, loss in (("C1", "cw_", "margin"), ("6", "transfer_", "ce")):
        attacks = [flags for job, flags in of(name).items() if job.startswith(kind)]
        assert attacks
        for flags in attacks:
            assert (flags["pgd_losses"], flags["auto_attack"], flags["num_images"]) == (loss, "none", "0")
            assert (flags["pgd_num_steps"], flags["pgd_step_size"], flags["pgd_num_restarts"]) == ("40", "0.01", "1")
    for job, flags in of("5").items():
        if "_inherited_" in job:
            assert flags["start_weights"] == "initial" and flags["retrain_epochs"] == "83"
            assert (flags["pretrain_epochs"], flags["admm_epochs"], flags["sparsity"]) == ("0", "0", "none")
    cut = [flags for job, flags in of("A1").items() if "_cut_" in job]
    admm = [flags for job, flags in of("4").items() if "_admm_" in job and not job.startswith("auto")]
    assert len(cut) == len(admm) == 10
    assert {flags["admm_epochs"] for flags in cut} == {"0"} and {flags["admm_epochs"] for flags in admm} == {"200"}
    assert {flags["retrain_epochs"] for flags in (*cut, *admm)} == {"200"}
    structures = {flags.get("structure") for job, flags in of("figure3").items() if "_admm_" in job}
    assert structures == {"filter", "column", "irregular"}
    natural = [flags for job, flags in of("2").items() if "_natural_" in job]
    assert {flags["train_attack"] for flags in natural} == {"none"}


def test_what_a_scale_leaves_out_is_said() -> None:
    assert build_table("2", scale_of("quick")).left_out == ("all of w=16",)
    assert "16 to 1" in build_table("5", scale_of("quick")).left_out
    wide = build_table("2", scale_of("quick", max_width=16))
    assert not wide.left_out and len(wide.cells) == 20


def test_users_flags_win() -> None:
    scale = scale_of("quick", num_seeds=2, mnist_flags=("--batch_size=64",), cifar10_flags=("--dataset=other",))
    for name, flag, value in (("2", "batch_size", "64"), ("4", "dataset", "other")):
        for job in in_order(build_table(name, scale).jobs):
            if job.module == "launch.main":
                assert flags_of(job)[flag] == value


@pytest.mark.parametrize("name", TABLES)
def test_every_job_has_one_with_the_settings_of_the_paper(name: str) -> None:
    scale = scale_of("quick", num_seeds=2)
    ours, papers = (in_order(build_table(name, each).jobs) for each in (scale, with_paper_settings(scale)))
    assert [job.name for job in ours] == [job.name for job in papers]
    assert all(flags_of(job)["dual_keeps_graph"] == "" for job in papers if job.module == "launch.main")


def test_a_network_from_scratch_has_one_stage_in_the_paper() -> None:
    jobs = {job.name: flags_of(job) for job in build_table("scratch", with_paper_settings(scale_of("quick"))).jobs}
    for kind in ("scratch", "paper_recipe"):
        given = jobs[f"lenet_mnist_{kind}_w1_seed0"]
        assert given["pretrain_epochs"] == "83" and float(given.get("pretrain_epsilon_ramp_epochs", 0)) == 0


def test_wrong_names_are_refused() -> None:
    with pytest.raises(ValueError, match="scale is 'huge'; expected one of smoke, quick, paper"):
        scale_of("huge")
    with pytest.raises(ValueError, match="table is '7'; expected one of 2, 3, 4"):
        build_table("7", scale_of("quick"))
