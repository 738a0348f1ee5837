"""What the parts of AutoAttack give away."""

from rap_jax.diagnostics.finding import Finding

# The share that the official implementation warns at.
_SQUARE_SHARE = 0.002


def check_square(robust_after: dict[str, float], num_images: int) -> list[Finding]:
    """An attack without gradients that finds what those with gradients did not.

    Args:
      robust_after: name of each part of AutoAttack, in their order -> robust accuracy after it.
      num_images: that were attacked.
    """
    names = list(robust_after)
    if "square" not in names[1:]:
        return []
    before = robust_after[names[names.index("square") - 1]]
    lost = before - robust_after["square"]
    if lost <= _SQUARE_SHARE:
        return []
    return [
        Finding(
            "Square beats the gradients",
            f"Square, which uses no gradients, broke {round(lost * num_images)} of the {round(before * num_images)} "
            f"images that the attacks before it, which do, had left ({lost:.2%} of all): the more there are, the more "
            f"the gradients mislead. The true robust accuracy is likely lower; try version plus, more queries and "
            f"restarts of Square, or an attack written for this network.",
        )
    ]


def check_left_out(version: str, num_classes: int) -> list[Finding]:
    """Parts that cannot be run with so few classes, or aim at fewer than AutoAttack does."""
    if num_classes >= 10 or (version == "rand" and num_classes >= 3):
        return []
    lost = {2: "The losses dlr and targeted dlr need more", 3: "The targeted dlr loss needs more"}.get(num_classes)
    what = f"{lost}, so parts are left out" if lost else f"Targeted attacks aim at the {num_classes - 1} wrong ones"
    text = f"There are {num_classes} classes. {what}; the result is not that of AutoAttack with 9 targets."
    return [Finding("few classes", text)]
