"""A plan for a terminal: its jobs in order, what each needs, how long each takes, and all of them together."""

from rap_jax.reproduce.estimate import JobEstimate, PlanEstimate

_COLUMNS = 100
# Of the columns beside the name: number, what it needs, time, and the gaps.
_NEEDS, _TIME, _GAP = 16, 16, "  "


def format_plan(plan: PlanEstimate) -> str:
    """The plan as lines of 100 columns or fewer, the last of which ends with a line break."""
    numbers = {estimate.job.name: number for number, estimate in enumerate(plan.jobs, start=1)}
    width = max(len(str(len(numbers))), 1)
    room = _COLUMNS - width - _NEEDS - _TIME - 3 * len(_GAP)
    name_width = min(room, max((len(name) for name in numbers), default=0))
    line = lambda number, name, needs, time: _GAP.join(
        (number.rjust(width), _shortened(name, name_width).ljust(name_width), needs.ljust(_NEEDS), time.rjust(_TIME))
    )
    lines = [line("#", "job", "needs", "time")]
    for estimate in plan.jobs:
        needs = _shortened(", ".join(str(numbers[need.name]) for need in estimate.job.needs), _NEEDS)
        lines.append(line(str(numbers[estimate.job.name]), estimate.job.name, needs, _time_of(estimate)))
    return "\n".join([*lines, "", *_summary(plan)]) + "\n"


def as_duration(seconds: float) -> str:
    """Writes seconds in the unit that fits them."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"


def _time_of(estimate: JobEstimate) -> str:
    if estimate.done:
        return "done"
    return ("at most " if estimate.at_most else "") + as_duration(estimate.seconds)


def _summary(plan: PlanEstimate) -> list[str]:
    done = sum(estimate.done for estimate in plan.jobs)
    bounded = sum(estimate.seconds for estimate in plan.jobs if estimate.at_most)
    lines = [f"{len(plan.jobs)} jobs, {done} done; the others one after the other: {as_duration(plan.seconds)}"]
    if bounded:
        lines[0] += f", {as_duration(bounded)} of it at most"
    lines.append(
        f"Compiling once what was timed ({plan.num_kinds} kinds of work): {as_duration(plan.compile_seconds)}. "
        "Not counted: starting, reading data."
    )
    return lines


def _shortened(text: str, width: int) -> str:
    """The text, with dots for its middle if it is too long."""
    if len(text) <= width:
        return text
    left = (width - 3) // 2
    return f"{text[:left]}...{text[len(text) - (width - 3 - left) :]}"
