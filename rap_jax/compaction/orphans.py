"""BatchNorms that stand alone, at channels to which nothing is written any more.

    masks = hold_orphans(model.wiring, params, masks)

A removed filter takes its own bias, scale and shift along. Behind a sum a BatchNorm belongs to no single filter: where
all filters of a channel are gone it would go on sending the constant relu(shift), which the zeros around an image keep
out of any bias. Held at zero with the filters, it sends nothing, the retrain makes up for it, and the channel can go.
"""

import chex
import jax
import jax.numpy as jnp

from rap_jax.compaction.wiring import Wiring
from rap_jax.layers import leaves_by_name, path_name


def hold_orphans(wiring: Wiring, params: chex.ArrayTree, masks: chex.ArrayTree) -> chex.ArrayTree:
    """The masks, False also at scale and shift of a lone BatchNorm where no filter is left to write its channel.

    Args:
      wiring: see `Model.wiring`.
      params: weights, before or after the cut.
      masks: False where a weight is held at zero, bool tree like `params`.
    """
    weights, keep = leaves_by_name(params), leaves_by_name(masks)
    written: dict[str, jax.Array] = {}
    for layer, group in wiring.groups.items():
        if layer not in wiring.norms:
            kernel = keep[f"{layer}/kernel"] & (weights[f"{layer}/kernel"] != 0)
            alive = kernel.reshape(-1, kernel.shape[-1]).any(0)
            written[group] = written.get(group, jnp.zeros_like(alive)) | alive
    held = {f"{norm}/{leaf}": written[wiring.groups[norm]] for norm in wiring.norms for leaf in ("scale", "shift")}

    def hold(path: tuple[object, ...], mask: jax.Array) -> jax.Array:
        name = path_name(path)
        return mask & held[name] if name in held else mask

    return jax.tree_util.tree_map_with_path(hold, masks)
