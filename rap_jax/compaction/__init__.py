"""The same network without the channels that cannot affect the logits: smaller layers, the same function.

plan            which channels stay: compaction_plan
resize          the trees of the smaller network, and the original shapes again: shrink, expand
compact         compact: a physically smaller network with the same logits
cut             the weights projected on their sparsity sets, and how many of them are left
merge           merge_duplicates: filters that are multiples of each other made one
fold            fold_batch_norm: BatchNorm made part of the convolution before it
multiply_adds   multiply-adds, counted from the jaxpr
cost            multiply-adds, bytes, memory and time of the dense, the pruned and the compacted form
"""

from rap_jax.compaction.compact import CompactNetwork as CompactNetwork
from rap_jax.compaction.compact import compact as compact
from rap_jax.compaction.cut import mask_unwritten_batch_norms as mask_unwritten_batch_norms
from rap_jax.compaction.fold import fold_batch_norm as fold_batch_norm
from rap_jax.compaction.merge import merge_duplicates as merge_duplicates
from rap_jax.compaction.plan import CompactionPlan as CompactionPlan
from rap_jax.compaction.plan import compaction_plan as compaction_plan
from rap_jax.compaction.resize import expand as expand
from rap_jax.compaction.resize import shrink as shrink
from rap_jax.models.wiring import Wiring as Wiring
