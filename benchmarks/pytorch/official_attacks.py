"""The official attacks (PyPI package pyautoattack) from given starts, and what they did; images are [N, H, W, C] here.

Croce and Hein, 2020, https://arxiv.org/abs/2003.01690. Needs the extra `bench`.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from unittest import mock

import numpy as np
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_projections import projection_l2, projection_linf
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import nn
from torch.nn import functional as F  # noqa: N812  the name that PyTorch's own code has

from benchmarks.parity.traces import LossValues, Nearest, Path

NORMS = {"linf": "Linf", "l2": "L2"}
# What they warn of is counted in the traces.
SILENT = logging.getLogger("benchmarks.pytorch.official")
SILENT.propagate = False
SILENT.addHandler(logging.NullHandler())

_PROJECTIONS = {"linf": projection_linf, "l2": projection_l2}


class Recorder(nn.Module):
    """Hands images on to a network, and keeps them and the answers."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.images: list[np.ndarray] = []
        self.logits: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> logits [N, K]."""
        logits = self.network(images)
        self.images.append(to_numpy(images))
        self.logits.append(logits.detach().clone())
        return logits


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """Inside of it the official attacks compute in float64, where their images and the network's weights are that.

    In float32 two sides go different ways in the end, as does the official code from images moved by 1e-7. What is
    more, its projection for L2 sums numbers of very different size, and misses the hyperplane by far where a gradient
    has entries that are tiny but not 0; a network that adversarial training has made insensitive to noise has many.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
            yield
    finally:
        torch.set_default_dtype(before)


def to_torch(images: np.ndarray) -> torch.Tensor:
    """[N, H, W, C] -> [N, C, H, W]."""
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def to_numpy(images: torch.Tensor) -> np.ndarray:
    """[N, C, H, W] -> [N, H, W, C], a copy."""
    return images.detach().permute(0, 2, 3, 1).contiguous().numpy().copy()


def to_labels(labels: np.ndarray) -> torch.Tensor:
    """int [N] -> int64 [N]."""
    return torch.from_numpy(labels.astype(np.int64))


@torch.no_grad()
def logits_of(network: nn.Module, images: np.ndarray) -> np.ndarray:
    """[N, H, W, C] -> [N, K]."""
    return network(to_torch(images)).numpy()


def loss_values(logits: np.ndarray, labels: np.ndarray, targets: np.ndarray) -> dict[str, LossValues]:
    """The losses of logits [N, K], by name; the margin with the sign of `rap_jax`."""
    apgd = APGDAttack_targeted(None, eps=1.0, device="cpu")
    apgd.y_target = to_labels(targets)
    square = SquareAttack(lambda logits: logits.clone(), eps=1.0)
    losses: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
        "ce": lambda z, y: F.cross_entropy(z, y, reduction="none"),
        "dlr": apgd.dlr_loss,
        "targeted dlr": apgd.dlr_loss_targeted,
        "margin": lambda z, y: -square.margin_and_loss(z, y)[1],
    }
    found = {}
    for name, loss in losses.items():
        z = torch.from_numpy(logits.copy()).requires_grad_()
        values = loss(z, to_labels(labels))
        (gradients,) = torch.autograd.grad(values.sum(), z)
        found[name] = LossValues(values.detach().numpy(), gradients.numpy())
    return found


def image_gradients(network: nn.Module, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The gradient of the cross-entropy of each image, [N, H, W, C]."""
    x = to_torch(images).requires_grad_()
    loss = F.cross_entropy(network(x), to_labels(labels), reduction="sum")
    return to_numpy(torch.autograd.grad(loss, x)[0])


def project(norm: str, points: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """The perturbation of points [N, D] onto w.x = b inside [0, 1], with w [N, D] and b [N], in their precision."""
    return _PROJECTIONS[norm](*(torch.from_numpy(x.copy()) for x in (points, weights, bias))).numpy()


def apgd_path(
    network: nn.Module,
    examples: tuple[np.ndarray, np.ndarray, np.ndarray],
    *,
    loss: str,
    norm: str,
    epsilon: float,
    num_steps: int,
    rank: int = 0,
) -> Path:
    """APGD from given images.

    Args:
      network: in evaluation mode.
      examples: images, labels, images to start from.
      loss, norm: as in `rap_jax`.
      epsilon, num_steps: of the attack.
      rank: 2 to aim at the runner-up of the clean image, and so on, with the targeted loss; 0 for no target.
    """
    recorder, x, y = Recorder(network), to_torch(examples[0]), to_labels(examples[1])
    settings = {"n_iter": num_steps, "norm": NORMS[norm], "eps": epsilon, "device": "cpu", "logger": SILENT}
    attack = APGDAttack_targeted(recorder, **settings) if rank else APGDAttack(recorder, loss=loss, **settings)
    attack.init_hyperparam(x)
    if rank:
        attack.y_target = _class_of_rank(network, x, rank)
    _, right, best_loss, _ = attack.attack_single_run(x, y, x_init=to_torch(examples[2]))
    of_logits = {"ce": lambda z, y: F.cross_entropy(z, y, reduction="none"), "dlr": attack.dlr_loss}
    loss_fn = attack.dlr_loss_targeted if rank else of_logits[loss]
    return Path(
        steps=np.arange(num_steps + 1),
        images=np.stack(recorder.images),
        losses=torch.stack([loss_fn(logits, y) for logits in recorder.logits]).numpy(),
        wrong=torch.stack([logits.argmax(1) != y for logits in recorder.logits]).numpy(),
        broken=~right.bool().numpy(),
        best_loss=best_loss.numpy(),
    )


@torch.no_grad()
def fab_nearest(
    network: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    norm: str,
    epsilon: float,
    num_steps: int,
    ranks: Sequence[int],
) -> Nearest:
    """FAB from the clean images, all classified right, to the class of each rank; rank 0 is FAB without a target."""
    x, y = to_torch(images), to_labels(labels)
    attack = FABAttack_PT(network, norm=NORMS[norm], n_iter=num_steps, eps=epsilon, device="cpu")
    found, broken = [], []
    for rank in ranks:
        attack.target_class = rank
        adversarial = attack.attack_single_run(x, y, is_targeted=rank > 0)
        delta = (x - adversarial).flatten(1)
        size = delta.abs().amax(1) if norm == "linf" else delta.square().sum(-1).sqrt()
        broken.append(((network(adversarial).argmax(1) != y) & (size <= epsilon)).numpy())
        found.append(to_numpy(adversarial))
    return Nearest(np.stack(found), np.stack(broken))


@torch.no_grad()
def _class_of_rank(network: nn.Module, x: torch.Tensor, rank: int) -> torch.Tensor:
    return network(x).sort(dim=1)[1][:, -rank]
