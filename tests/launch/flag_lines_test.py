"""Flagfiles as the editors of any system write them: read right, or refused by file and line."""

import re
from pathlib import Path

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.flag_lines import as_line, read_lines
from launch.flagfiles import expand_flagfiles

TEXT = "# café\n--name=a_run\n\n// end\n--data_dir=/café/my data\n"
MEANT = ["--name=a_run", "--data_dir=/café/my data"]


def arguments(folder: Path, content: str | bytes) -> list[str]:
    path = folder / "mine.flags"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return [line.argument for line in read_lines(path)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_any_encoding_with_a_mark_and_any_line_ends(tmp_path: Path, encoding: str, end: str) -> None:
    content = TEXT.replace("\n", end)
    assert arguments(tmp_path, content.encode(encoding)) == MEANT
    assert arguments(tmp_path, content.rstrip(end).encode(encoding)) == MEANT


def test_big_endian_utf_16_and_a_mark_before_a_flag(tmp_path: Path) -> None:
    assert arguments(tmp_path, ("\ufeff" + TEXT).encode("utf-16-be")) == MEANT
    assert arguments(tmp_path, "\ufeff--seed=3\n\ufeff# joined\n\ufeff--width=2\n") == ["--seed=3", "--width=2"]


def test_latin_1_does_no_harm_in_a_comment_and_is_refused_in_a_flag(tmp_path: Path) -> None:
    assert arguments(tmp_path, "# café … naïve\n--seed=3\n".encode("cp1252")) == ["--seed=3"]
    with pytest.raises(ValueError, match=r"mine\.flags, line 2 has the byte 0xe9, which is no UTF-8; .* Save the file"):
        arguments(tmp_path, "# ok\n--name=café\n".encode("latin-1"))


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("--width=2 \t", "--width=2"),
        ("\u00a0--width=2\u00a0", "--width=2"),
        ("--width = 2", "--width=2"),
        ("--width 2", "--width=2"),
        ("-width\t2", "-width=2"),
        ("--nomeasure_cost", "--nomeasure_cost"),
        ("--measure_cost false", "--measure_cost=false"),
        ("--raw_data_dir=", "--raw_data_dir="),
        ('--raw_data_dir=""', "--raw_data_dir="),
        ('--data_dir="/my data"', "--data_dir=/my data"),
        ("--data_dir='/my data'", "--data_dir=/my data"),
        ('"--data_dir=/my data"', "--data_dir=/my data"),
        ("--data_dir=/it's here", "--data_dir=/it's here"),
        ("--mnist_flags=--width=2", "--mnist_flags=--width=2"),
        ('--mnist_flags="--width=2 --seed=3"', "--mnist_flags=--width=2 --seed=3"),
        ("--flagfile lenet_mnist", "--flagfile=lenet_mnist"),
    ],
)
def test_a_flag_in_each_of_its_forms(tmp_path: Path, line: str, meant: str) -> None:
    assert arguments(tmp_path, line) == [meant]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("; ini comment", "line 2 is '; ini comment'; expected --name=value, one flag in a line, or a comment that"),
        ("[section]", r"line 2 is '\[section\]'; expected --name=value"),
        ("width=2", "line 2 is 'width=2'; expected --name=value"),
        ("–width=2", "line 2 is '–width=2', which begins with EN DASH in place of --; expected"),
        ("—width=2", "which begins with EM DASH in place of --"),
        ("−−width=2", "which begins with MINUS SIGN in place of --"),
        ("-–width=2", "which begins with EN DASH in place of --"),
        ("--width=2 --seed=3", "which goes on with '--s'; expected --name=value, one flag in a line"),
        ("--measure_cost --seed=3", "which goes on with '--s'"),
        ("--data_dir=/data # mine", "which goes on with '#'"),
        ("--data_dir=/data \\", r"which goes on with '\\\\'"),
        ("--dry_run \\", r"which goes on with '\\\\'"),
        ("--data_dir=“/data”", "has the typographic quote “ in '“/data”'"),
        ('--data_dir=/data"', "has quotes that do not pair in '/data\"'"),
        ("--data_dir=/data”", "has the typographic quote ” in"),
        ('--data_dir="/data', "has quotes that do not pair in '\"/data'"),
        ('--name="a" --data_dir="b"', "has quotes that do not pair"),
        ("--data_dir=/da\u200bta", r"has the invisible U\+200B \(ZERO WIDTH SPACE\)"),
        ("--data_dir=\u202a/data", r"has the invisible U\+202A"),
        ("--wid\u00adth=2", r"has the invisible U\+00AD \(SOFT HYPHEN\)"),
        ("--data_dir=/da\x1bta", r"has the invisible U\+001B"),
        ("--wïdth=2", "line 2 is '--wïdth=2'; expected"),
    ],
)
def test_what_could_mean_another_thing_is_refused_by_line(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path / 'mine.flags'))}, line 2 .*") as error:
        arguments(tmp_path, f"# mine\n{line}\n--seed=3\n")
    assert re.search(message, str(error.value)), error.value


@pytest.mark.parametrize(
    "content", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "--seed=3\n".encode("utf-16-le"), b"\xff\xfe-\0s"]
)
def test_what_is_no_text_is_refused_by_its_name(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ValueError, match=r"The flagfile .*mine\.flags (holds zero bytes|is damaged).*Save it as UTF-8"):
        arguments(tmp_path, content)


def test_an_empty_file_has_no_flags(tmp_path: Path) -> None:
    assert arguments(tmp_path, b"") == arguments(tmp_path, b"\xef\xbb\xbf") == arguments(tmp_path, b"\r\n\r\n") == []


def test_a_missing_flagfile_is_refused_with_the_line_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "mine.flags").write_text("# mine\n--flagfile=gone.flags\n")
    with pytest.raises(ValueError, match=r"mine\.flags, line 2: --flagfile is 'gone\.flags'; expected a file of flags"):
        expand_flagfiles(["command", f"--flagfile={tmp_path / 'mine.flags'}"])
    with pytest.raises(ValueError, match=f"expected a file of flags, .* {re.escape(str(tmp_path))} is a folder"):
        expand_flagfiles(["command", f"--flagfile={tmp_path}"])


VALUES = st.text(st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"]), max_size=20)


@hypothesis.settings(max_examples=200, deadline=None)
@given(st.sampled_from(["--data_dir", "-name"]), VALUES | st.text("\"' -a#\\“”", max_size=8))
def test_any_value_is_written_and_read_alike(tmp_path_factory: pytest.TempPathFactory, name: str, value: str) -> None:
    argument = f"{name}={value}"
    line = as_line(argument)
    try:
        assert arguments(tmp_path_factory.getbasetemp(), line) == [argument]
    except ValueError as error:
        assert "quotes that do not pair" in str(error) and '" -' in value


def test_a_line_break_is_not_written() -> None:
    with pytest.raises(ValueError, match=r"--out_dir has the invisible U\+000A"):
        as_line("--out_dir=/one\n--seed=3")
