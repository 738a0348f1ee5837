"""The reported attack on one split of the data, with a progress display."""

from typing import NamedTuple

import jax

from rap_jax.evaluate import Accuracy, Evaluator
from rap_jax.interrupt import Interrupt
from rap_jax.progress import Progress
from rap_jax.state import DeviceSplit, Weights


class SplitEvaluator(NamedTuple):
    """Evaluates weights.

    Attributes:
      evaluate: of a network under an attack.
      split: whose images are attacked.
      key: typed PRNG key, of the attack's random starts.
      interrupt: looked at after every batch.
    """

    evaluate: Evaluator
    split: DeviceSplit
    key: jax.Array
    interrupt: Interrupt

    def __call__(self, label: str, weights: Weights) -> Accuracy:
        """Accuracies of `weights`; `label` is shown meanwhile.

        Raises:
          Interrupted: a signal came.
        """
        with Progress(label, len(self.split.labels), unit="image") as progress:

            def on_batch(done: int, total: int) -> None:
                del total
                progress.update(done)
                self.interrupt.stop_if_requested(f"while evaluating ({label})")

            return self.evaluate(weights.params, weights.batch_stats, self.split, self.key, on_batch)
