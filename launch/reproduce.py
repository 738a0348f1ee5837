"""The paper's tables and figures, with our numbers beside them: `python -m launch.reproduce --table=2`.

Called again with the same flags it goes on where it stopped.
"""

import functools
import sys

from launch.command import in_words, parse, start
from launch.reproduce_flags import FLAGS, help_text, plan_from_flags


def main(arguments: list[str]) -> None:
    """Does what the flags say; ends with the folders of the reports."""
    with in_words("plan"):
        from launch.plan import carry_out

        parse(FLAGS, arguments)
        plan = plan_from_flags()
        failed = carry_out(plan)
    if failed:
        sys.exit(f"error: {len(failed)} of {len(plan.jobs)} jobs failed or were skipped; see above, and the report.")


run = functools.partial(start, main, help_text)  # entry point of the console script


if __name__ == "__main__":
    run()
