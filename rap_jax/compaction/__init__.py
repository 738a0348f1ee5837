"""The same network without the channels that count for nothing: smaller layers, the same function.

wiring      who reads whom: Wiring
constants   what a layer sends when nothing reaches it
plan        which channels stay: compaction_plan
cut_out     the trees of the smaller network, and the whole ones again: shrink, expand
network     compact: a physically smaller network with the same logits
orphans     hold_orphans: what is left of a BatchNorm behind a sum to which nothing is written
fold        fold_batch_norm: BatchNorm made part of the convolution before it
"""

from rap_jax.compaction.compact import CompactNetwork as CompactNetwork
from rap_jax.compaction.compact import compact as compact
from rap_jax.compaction.cut import hold_orphans as hold_orphans
from rap_jax.compaction.fold import fold_batch_norm as fold_batch_norm
from rap_jax.compaction.plan import Plan as Plan
from rap_jax.compaction.plan import compaction_plan as compaction_plan
from rap_jax.compaction.resize import expand as expand
from rap_jax.compaction.resize import shrink as shrink
from rap_jax.models.wiring import Wiring as Wiring
