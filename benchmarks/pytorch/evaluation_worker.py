"""The PyTorch side of `benchmarks.evaluation`: a process that evaluates a network on command.

python -m benchmarks.pytorch.evaluation_worker CASE channels_first|channels_last
"""

import sys

import torch

from benchmarks.evaluation_cases import BATCH_SIZE, CASES
from benchmarks.machine import num_cores
from benchmarks.pytorch.evaluate import evaluate
from benchmarks.pytorch.networks import create_network
from benchmarks.pytorch.worker import LAYOUTS
from benchmarks.worker import Answer, clocked, serve


def main(name: str, layout: str) -> None:
    """Answers the requests of `benchmarks.evaluation`."""
    torch.set_num_threads(num_cores())
    torch.manual_seed(0)
    case, memory_format = CASES[name], LAYOUTS[layout]
    network = create_network(case.of.model, case.of.width).to(memory_format=memory_format).eval()
    height, width, channels = case.of.input_shape
    images = torch.rand(case.num_images, channels, height, width).contiguous(memory_format=memory_format)
    with torch.no_grad():
        answers = torch.cat([network(part).argmax(1) for part in images.split(BATCH_SIZE)])
    labels = torch.from_numpy(case.labels(answers.tolist())).long()

    def evaluation() -> Answer:
        found = []
        times = clocked(lambda: found.append(evaluate(network, images, labels, case.attack, batch_size=BATCH_SIZE)))
        return times | {"natural": found[0][0], "robust": found[0][1]}

    serve({"evaluate": evaluation})


if __name__ == "__main__":
    main(*sys.argv[1:])
