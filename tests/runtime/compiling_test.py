"""The flags of XLA with which the tests compile."""

from compiling import known_flags


def test_a_flag_that_this_xla_does_not_know_is_left_out() -> None:
    known = "--xla_force_host_platform_device_count=2"
    assert known_flags((known, "--xla_of_another_version=true")) == known
