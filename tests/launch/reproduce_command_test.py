"""launch.reproduce: what it prints, what it refuses, and a table at smoke scale that is killed and goes on."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fake_results as fake
import pytest
from fake_results import QUICK

from launch import plan, reproduce
from launch.job_configs import config_of
from launch.reproduce_flags import FLAGS, GROUPS, help_text, plan_from_flags
from rap_jax._runtime.integrity import write_checked
from rap_jax.config import RunConfig
from rap_jax.reproduction.checks import check_settings
from rap_jax.reproduction.job import Job
from rap_jax.reproduction.recipes import scale_of
from rap_jax.reproduction.tables import build_table

SMOKE = ("--table=C1", "--scale=smoke")


def command(*arguments: str) -> None:
    FLAGS.unparse_flags()
    reproduce.main(["reproduce", *arguments])


def refused(*arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        command(*arguments)
    text = str(stopped.value.code)
    assert text.startswith("error: ") and "\n" not in text
    return text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "table is None; expected one or more of 2, 3, 4, 5"),
        (("--table=7",), "table is '7'; expected one of 2, 3, 4, 5"),
        (("--table=2", "--scale=huge"), "huge"),
        (("--table=2", "--num_seeds=-1"), "num_seeds is -1; expected a number from 0"),
        (("--table=2", "--num_at_once=0"), "num_at_once is 0; expected a number from 1"),
        (("--table=2", "--list", "--collect"), "mode is ['list', 'collect']; expected one of --dry_run, --list"),
        (("--table=2", "--mnist_flags='"), "expected flags as in a shell"),
        (("--table=2", "--max_width=3"), "max_width is 3; expected one of 1, 2, 4, 8, 16"),
        (("--table=2", "--level=1"), "level is 1; expected --list with it"),
        (("--table=6", "--scale=smoke"), "table is '6'; expected a larger --max_width"),
        (("--table=2", "--mnist_flags=--admm_epochs=3"), "expected no lengths of stages"),
        (("--table=2", "--list", "--mnist_flags=--batch_size=0"), "lenet_mnist_natural_w1_seed0: batch_size is 0"),
        (("--table=2", "more"), "Unexpected argument 'more'"),
        (("--tabel=2",), "tabel"),
        (("--table=2", "--mnist_flags=--batch_size=64 --seed=5"), "expected none of --name, --seed"),
        (("--table=2", "--cifar10_flags=--out_dir=elsewhere"), "--out_dir, --dry_run, which the plan itself gives"),
        (("--table=2", "--out=setup.cfg"), "setup.cfg'; expected a folder"),
        (("--table=2", "--collect", "--out=no/such/folder"), "no/such/folder is not there"),
    ],
)
def test_wrong_flags_are_refused(arguments: tuple[str, ...], message: str) -> None:
    assert message in refused(*arguments)


def test_a_command_for_each_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = f"--out={tmp_path / 'with a space'}"
    command("--table=2", "--num_seeds=2", "--mnist_flags=--batch_size=64", "--list", out)
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    FLAGS.unparse_flags()
    FLAGS(["", "--table=2", "--num_seeds=2", "--mnist_flags=--batch_size=64", out])
    plan = plan_from_flags()
    assert lines == [job.command(plan.out) for job in plan.jobs]
    assert all(("--batch_size=64" in line) == (line[2] == "launch.main") for line in lines)
    # What is done is left out, and levels can be run one after the other.
    done = plan.jobs[0]
    (plan.out / done.folder).mkdir(parents=True)
    config = dataclasses.asdict(config_of(done))
    (plan.out / done.folder / "results.json").write_text(write_checked({"config": config}))
    found: list[str] = []
    for level in range(3):
        command("--table=2", "--num_seeds=2", "--mnist_flags=--batch_size=64", "--list", f"--level={level}", out)
        found += capsys.readouterr().out.splitlines()
    assert sorted(map(shlex.split, found)) == sorted(line for line in lines if line != done.command(plan.out))
    assert "--start_run" not in found[0] and "launch.evaluate" in found[-1]


def test_a_report_before_anything_has_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command("--table=5,scratch", "--collect", f"--out={tmp_path}")
    folders = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [folder.name for folder in folders] == ["5", "scratch"]
    text = (folders[0] / "report.md").read_text()
    assert text.startswith("# Table 5") and "lenet_mnist_inherited_w8_to_w2_seed1" in text
    assert (folders[0] / "report.html").exists()


def test_a_report_without_pictures_is_its_text(tmp_path: Path) -> None:
    table = build_table("2", QUICK)
    fake.fill(tmp_path, table)
    for more, expected in (("--nopictures", ["report.md"]), ("--pictures", ["report.html", "report.md", "table2.png"])):
        command("--table=2", "--max_width=4", "--collect", f"--out={tmp_path}", more)
        files = sorted((tmp_path / "tables" / "2").iterdir())
        assert [file.name for file in files] == expected
        assert ("](table2.png)" in (tmp_path / "tables" / "2" / "report.md").read_text()) == ("png" in str(files))


def test_a_dry_run_lists_the_jobs_with_what_they_took_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "_COMMITTED", tmp_path / "results")
    out, arguments = tmp_path / "out", ("--table=2", "--max_width=2", "--num_seeds=2", "--dry_run")
    done = build_table("2", scale_of("quick", max_width=2, num_seeds=2))
    fake.fill(tmp_path / "results" / "quick", done, without=lambda job: "_natural_" in job.name or "seed1" in job.name)
    fake.fill(out, done, without=lambda job: job.name != "lenet_mnist_dense_w2_seed0")
    (out / "runs" / "lenet_mnist_dense_w2_seed0" / "network" / "0").mkdir(parents=True)
    command(*arguments, f"--out={out}")
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines() if "_seed" in line]
    cells = {row[0].split()[1]: (row[0].split()[0], *row[1:]) for row in rows}
    dense, pruned = cells["lenet_mnist_dense_w2_seed0"], cells["lenet_mnist_admm_w2_to_w1_seed1"]
    assert dense[1:] == ("", "6", "mnist", "done")
    # The other seed took ten minutes with the same settings.
    assert pruned[1:] == (cells["lenet_mnist_dense_w2_seed1"][0], "6 + 18", "mnist", "10.0")
    assert cells["lenet_mnist_natural_w2_seed0"][-1] == "-"
    assert cells["auto_attack_lenet_mnist_admm_w2_to_w1_seed0"][1:] == (cells["lenet_mnist_admm_w2_to_w1_seed0"][0], "",
                                                                       "1,000", "-")  # fmt: skip
    assert f"{len(cells)} jobs, 1 done." in printed and "without 6 of unknown time" in printed
    # Jobs of other settings say nothing of the time.
    command(*arguments, f"--out={tmp_path / 'new'}", "--mnist_flags=--batch_size=64")
    assert "0.0 hours" in capsys.readouterr().out and not (tmp_path / "new").exists()


def test_results_of_other_settings_are_refused(tmp_path: Path) -> None:
    """A table must not mix what was trained with other flags, or evaluated on other images."""
    command("--table=C1", "--collect", f"--out={tmp_path}")
    plan_arguments = ["", "--table=C1", "--num_seeds=1", f"--out={tmp_path}"]
    FLAGS.unparse_flags()
    FLAGS(plan_arguments)
    plan = plan_from_flags()
    for job in (plan.jobs[0], next(job for job in plan.jobs if job.module == "launch.evaluate")):
        path = tmp_path / job.folder / "results.json"
        path.parent.mkdir(parents=True)
        settings = config_of(job)
        config = json.loads(json.dumps(dataclasses.asdict(settings)))
        location = {"data": config["data"] | {"data_dir": "elsewhere"}} if isinstance(settings, RunConfig) else {}
        rest = {"network": {"sha256": "1"}, "sources": []}
        if not isinstance(settings, RunConfig):
            (tmp_path / plan.jobs[0].folder / "stages").mkdir()
            (tmp_path / plan.jobs[0].folder / "stages" / "test.json").write_text('{"network": "1"}')
        path.write_text(write_checked(rest | {"config": config | location}))
        check_settings(job, tmp_path, settings)
        if isinstance(settings, RunConfig):
            other = {"data": config["data"] | {"dataset": "mnist_5k"}}
            path.write_text(write_checked({"config": config | other}))
            with pytest.raises(ValueError, match="data.dataset: mnist_5k in the folder, mnist now"):
                check_settings(job, tmp_path, settings)
        else:
            path.write_text(write_checked(rest | {"config": config, "network": {"sha256": "2"}}))
            with pytest.raises(ValueError, match="was made from another network than"):
                check_settings(job, tmp_path, settings)
        changed = config | {"seed": 7}
        path.write_text(write_checked({"config": changed}))
        with pytest.raises(SystemExit, match=r"holds results of other settings:\n  seed: 7 in the folder, 0 now"):
            command(*plan_arguments[1:], "--collect")
        path.write_text(write_checked({}))
        assert "has no config; move it away" in refused(*plan_arguments[1:], "--collect")
        path.unlink()


def test_results_belong_to_the_networks_that_are_there(tmp_path: Path) -> None:
    """Of a pruned network its dense one, of transferred images the network that they were made on."""
    FLAGS.unparse_flags()
    FLAGS(["", "--table=6", "--num_seeds=1", "--max_width=4"])
    jobs = {job.name: job for job in plan_from_flags().jobs}
    pruned = jobs["lenet_mnist_admm_w4_to_w1_seed0"]
    transfer = jobs[f"transfer_{pruned.name}"]

    def write(place: str, name: str, content: dict[str, Any]) -> None:
        path = tmp_path / place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(write_checked(content))

    write(pruned.needs[0].folder, "stages/test.json", {"network": "dense"})
    write(pruned.folder, "stages/test.json", {"network": "pruned"})
    run, evaluation = config_of(pruned), config_of(transfer)
    start = {"weights": "final", "sha256": "dense"}
    sources = [{"sha256": "dense"}]
    found = {"network": {"sha256": "pruned"}, "sources": sources}
    for job, settings, right, wrong in (
        (pruned, run, {"start": start}, {"start": start | {"sha256": "another"}}),
        (transfer, evaluation, found, found | {"sources": [{"sha256": "another"}]}),
        (transfer, evaluation, found, found | {"network": {"sha256": "another"}}),
    ):
        config = {"config": dataclasses.asdict(settings)}
        write(job.folder, "results.json", config | right)
        check_settings(job, tmp_path, settings)
        write(job.folder, "results.json", config | wrong)
        with pytest.raises(ValueError, match=f"{job.name} was made from another network than"):
            check_settings(job, tmp_path, settings)


def write_results(out: Path, job: Job, **changes: Any) -> None:
    config = json.loads(json.dumps(dataclasses.asdict(config_of(job))))
    (out / job.folder).mkdir(parents=True, exist_ok=True)
    (out / job.folder / "results.json").write_text(write_checked({"name": job.name, "config": config | changes}))


def test_a_network_that_is_needed_has_to_be_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Results that were copied without networks, as those of the repository: no plan goes on with them."""
    arguments = ("--table=C1", "--num_seeds=1", "--max_width=2", f"--out={tmp_path}")
    FLAGS.unparse_flags()
    FLAGS(["", *arguments])
    dense = next(job for job in plan_from_flags().jobs if job.name == "lenet_mnist_dense_w2_seed0")
    write_results(tmp_path, dense)
    for more in ("--list", "--dry_run", "--nocollect"):
        assert "1 runs in" in (text := refused(*arguments, more)) and "no network, and jobs that are not" in text
        assert dense.folder in text and "choose another --out" in text
    (tmp_path / dense.folder / "network" / "0").mkdir(parents=True)
    command(*arguments, "--list")
    assert "--start_run" in capsys.readouterr().out


def test_a_table_that_cannot_be_collected_leaves_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    FLAGS.unparse_flags()
    FLAGS(["", "--table=5", "--num_seeds=1"])
    write_results(tmp_path, plan_from_flags().jobs[0], seed=7)
    arguments = ("--table=3,5", "--num_seeds=1", f"--out={tmp_path}")
    with pytest.raises(SystemExit) as stopped:
        command(*arguments, "--collect")
    assert "Table 5, no report: " in str(stopped.value.code) and "give them again" in str(stopped.value.code)
    assert [Path(line).name for line in capsys.readouterr().out.splitlines()] == ["3"]
    with pytest.raises(SystemExit, match="Table 5: "):  # nothing is begun that could not be shown
        command(*arguments, "--list")


def test_help() -> None:
    text = help_text(100)
    assert max(map(len, text.splitlines())) <= 100
    assert all(f"--{name}" in text or f"[no]{name}" in text for names in GROUPS.values() for name in names)


def start(out: Path) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "launch.reproduce", *SMOKE, f"--out={out}"]
    environment = os.environ | {"XLA_FLAGS": ""}
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.nightly
def test_a_table_is_killed_goes_on_and_shows_what_its_runs_found(tmp_path: Path) -> None:
    first, begun = start(tmp_path), tmp_path / "runs" / "lenet_mnist_dense_w2_seed0" / "config.json"
    while not begun.exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    again = start(tmp_path)
    printed, said = again.communicate(timeout=900)
    assert again.returncode == 0, said
    # The run went on when the plan was killed; the next plan has waited for it and has not begun it anew.
    assert (tmp_path / "logs" / "lenet_mnist_dense_w2_seed0.log").read_text().count("Devices:") == 1
    folder = Path(printed.strip())
    text = (folder / "report.md").read_text()
    for name, cell in (("dense_w2", "w=2, adversarial"), ("admm_w2_to_w1", "w=2, to 1")):
        results = json.loads((tmp_path / "evaluations" / f"cw_lenet_mnist_{name}_seed0" / "results.json").read_text())
        assert results["config"]["pgd_losses"] == ["margin"]
        percent = f"{100 * results['combined']['robust_accuracy']:.2f}"
        (row,) = re.findall(rf"^\| {re.escape(cell)}: .*$", text, re.MULTILINE)
        assert row.split("|")[2].strip() == percent
    assert "4 of 4 jobs are done" in text
    # Nothing is left to do, and the same folder gives the same report.
    stamp = [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("results.json"))]
    command(*SMOKE, f"--out={tmp_path}")
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("results.json"))] == stamp
    assert (folder / "report.md").read_text() == text


COMMITTED = Path(reproduce.__file__).parent.parent / "results"


@pytest.mark.e2e
@pytest.mark.parametrize(
    "arguments", [("--table=2,5,6,C1,scratch,robust",), ("--table=3,4", "--cifar10_flags=--dataset=cifar10_unverified")]
)
def test_the_committed_reports_are_those_of_the_committed_results(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    shutil.copytree(COMMITTED / "quick", tmp_path / "quick", ignore=shutil.ignore_patterns("tables"))
    command(*arguments, "--collect", "--nopictures", f"--out={tmp_path / 'quick'}")
    reports = list((tmp_path / "quick" / "tables").glob("*/report.md"))
    assert len(reports) == len(arguments[0].split(","))
    for report in reports:
        committed = COMMITTED / "quick" / report.relative_to(tmp_path / "quick")
        assert report.read_text() == committed.read_text(), committed


def test_committed_reports_link_to_no_picture() -> None:
    reports = list(COMMITTED.rglob("*.md"))
    assert len(reports) > 80
    assert not [report for report in reports if re.search(r"\]\([^)]*\.(png|html)\)", report.read_text())]


@pytest.mark.e2e
def test_a_task_of_a_slurm_array_runs_its_line(tmp_path: Path) -> None:
    script = Path(reproduce.__file__).with_name("reproduce.slurm")
    (tmp_path / "level0.txt").write_text("echo first\necho 'second  line'\necho third\n")

    def task(number: str) -> subprocess.CompletedProcess[str]:
        line = ["bash", str(script), "level0.txt"]
        environment = os.environ | {"SLURM_ARRAY_TASK_ID": number}
        return subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    assert task("2").stdout == "echo 'second  line'\nsecond  line\n"
    (tmp_path / "level0.txt").write_text("bash -c 'exit 3'\n")
    assert task("1").returncode == 3
