"""--num_seeds: the flags of each seed, and what is refused."""

from pathlib import Path

import pytest
import tiny
from tiny import parse_flags as parse

from launch import main as command
from launch.configs import config_from_flags
from launch.flagfiles import serialize_flags
from launch.seeds import check_seeds, fill_in_seed, flags_of_seeds


def test_each_seed_has_the_flags_that_give_it_alone(tmp_path: Path) -> None:
    given = ("--name=net_{seed}", "--seed=4", "--out_dir=/runs/some", "--start_run=/dense/w4_seed{seed}")
    each = flags_of_seeds(parse(*tiny.FLAGS, *given, "--num_seeds=2"))
    configs = [config_from_flags(values) for values in each]
    assert [config.seed for config in configs] == [4, 5]
    assert [config.name for config in configs] == ["net_4", "net_5"]
    assert [config.start.run_dir for config in configs] == ["/dense/w4_seed4", "/dense/w4_seed5"]
    for config, values in zip(configs, each, strict=True):
        (tmp_path / "run.flags").write_text(serialize_flags(values))
        alone = parse(f"--flagfile={tmp_path / 'run.flags'}")
        assert config_from_flags(alone) == config
        assert (alone["num_seeds"].value, alone["out_dir"].value) == (1, f"/runs/some/seed{config.seed}")


def test_a_folder_may_name_the_seed_and_need_not_be_given() -> None:
    (named,) = flags_of_seeds(parse("--out_dir=/runs/w4_seed{seed}", "--seed=3"))
    (default,) = flags_of_seeds(parse("--seed=3"))
    assert (named["out_dir"].value, default["out_dir"].value) == ("/runs/w4_seed3", None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--num_seeds=2", "--num_model_shards=2"), "num_model_shards is 2; expected 1 with --num_seeds=2"),
        (("--num_seeds=2", "--stream_data"), "stream_data is True; expected none with --num_seeds=2"),
        (("--num_seeds=2", "--target=tpu:v5e:2x2"), "expected none with --num_seeds=2: it compiles the step of one"),
        (("--num_seeds=2", "--distributed"), "num_seeds is 2; expected 1 with several processes"),
        (("--num_seeds=2", f"--seed={2**32 - 1}"), "expected a seed such that all 2 are below"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        check_seeds(parse(*arguments))
    assert "\n" not in str(refused.value)


@pytest.mark.e2e
def test_the_command_trains_prints_and_goes_on(tmp_path: Path) -> None:
    given = ("--admm_epochs=0", "--retrain_epochs=0", "--num_seeds=2", "--seed=0")
    run = lambda *more: tiny.start_command(tmp_path / "run", *given, *more, num_devices=2)
    dry = run("--dry_run")
    out, _ = dry.communicate()
    assert "Of 2 seeds a device has 1" in out and not (tmp_path / "run").exists()
    tables = []
    for _ in range(2):
        process = run()
        out, error = process.communicate()
        assert process.returncode == 0, error
        tables.append(out)
    assert tables[0] == tables[1] and "| mean" in tables[0] and str(tmp_path / "run" / "seed1") in tables[0]
    (alone,) = (tmp_path / "run/seed1/run.flags",)
    assert "--seed=1\n" in alone.read_text() and "--num_seeds=1\n" in alone.read_text()
    one = tiny.start_command(tmp_path / "run" / "seed1", *given, "--num_seeds=1", "--seed=1", num_devices=2)
    out, error = one.communicate()
    assert one.returncode == 0 and "seed 1" in out, error  # the folder is that of a run alone


def test_the_flag_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"error: flag --num_seeds=-1: .* integer in the range \[1, 1024\]"):
        command.main(["main", "--num_seeds=-1"])


def test_one_seed_fills_in_the_placeholder_as_well() -> None:
    values = parse("--seed=7", "--out_dir=/runs/{seed}", "--name=tiny{seed}")
    fill_in_seed(values)
    assert (values["out_dir"].value, values["name"].value, values["start_run"].value) == ("/runs/7", "tiny7", None)
