"""The jobs of the robust study: what is judged on which images, and which flags make a row."""

from rap_jax.reproduction import robust
from rap_jax.reproduction.recipes import MNIST, SCALES

QUICK = SCALES["quick"]


def test_the_ablation_is_judged_on_half_as_many_validation_images() -> None:
    cells = robust.ablation(QUICK).cells
    judged = {job for cell in cells for quantity in cell.quantities for job in quantity.jobs}
    assert all("--split=validation" in job.flags and "--num_images=500" in job.flags for job in judged)
    tested = {job for cell in robust.sizes(QUICK).cells for quantity in cell.quantities for job in quantity.jobs}
    assert not any("--split=validation" in job.flags for job in tested)


def test_a_taught_network_differs_by_its_teacher_alone() -> None:
    alone, taught = (robust.pruned(QUICK, MNIST, 4, 2, 0, distilled=distilled) for distilled in (False, True))
    more = set(taught.flags) - set(alone.flags)
    assert more - {f"--name={taught.name}"} == {"--distillation=rslad"}
    assert taught.inputs == alone.inputs and taught.name != alone.name


def test_each_row_of_the_ablation_changes_flags_of_its_own() -> None:
    jobs = [job for cell in robust.ablation(QUICK).cells for job in cell.network]
    assert len({(job.flags, job.inputs) for job in jobs}) == len({job.name for job in jobs}) == len(jobs)
