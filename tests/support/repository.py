"""Where the files of this repository are."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
SUPPORT = Path(__file__).parent
# The real MNIST, where it is at hand.
OFFICIAL_MNIST = ROOT.parent / "shared" / "data" / "mnist"
