"""What a network costs, counted and measured: dense, pruned, and without what counts for nothing.

multiply_adds   count_multiply_adds: of a function of images, from what JAX would compute
forms           forms_of: the three forms of one network; file_size: bytes of its weights
measure         measure_cost: all of it, ready for results.json; multiply_adds_of: one form
table           cost_table: the same as a table
"""

from rap_jax.cost.forms import Form as Form
from rap_jax.cost.forms import file_size as file_size
from rap_jax.cost.forms import forms_of as forms_of
from rap_jax.cost.measure import measure_cost as measure_cost
from rap_jax.cost.measure import multiply_adds_of as multiply_adds_of
from rap_jax.cost.multiply_adds import MultiplyAdds as MultiplyAdds
from rap_jax.cost.multiply_adds import count_multiply_adds as count_multiply_adds
from rap_jax.cost.table import cost_table as cost_table
