"""The text of a compiled program says what it does: loops counted in full, collectives by kind, bytes of memory."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from rap_jax._runtime.hlo import Collective, Program, read_program
from rap_jax._runtime.mesh import make_mesh

X = jnp.ones((8, 16), jnp.float32)
ALL = (0, 1, 2, 3)


def program_of(on_share: Callable[[jax.Array], jax.Array], *, num_devices: int = 4) -> Program:
    """Of a function of the share of each device, [8 / num_devices, 16]."""
    mesh = make_mesh(jax.devices()[:num_devices])
    spread = jax.shard_map(on_share, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False)
    return read_program(jax.jit(spread).lower(X).compile().as_text())


def mean(x: jax.Array) -> jax.Array:
    return x - lax.pmean(x, "data")


def loop(rounds: int, body: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    return lambda x: lax.fori_loop(0, rounds, lambda _, y: body(y), x)


def test_a_program_of_one_device_waits_for_none() -> None:
    assert program_of(jnp.sin).collectives == ()


def test_a_sum_over_devices_has_a_kind_and_a_size() -> None:
    assert program_of(mean).collectives == (Collective("all-reduce", 1, 4 * 2 * 16, False, ALL),)
    (gathered,) = program_of(lambda x: x * lax.all_gather(x, "data").sum()).collectives
    assert (gathered.kind, gathered.num_bytes) == ("all-gather", 4 * 8 * 16)


@pytest.mark.parametrize("rounds", [2, 7])
def test_what_is_in_a_loop_counts_as_often_as_it_runs(rounds: int) -> None:
    assert program_of(loop(rounds, mean)).collectives == (Collective("all-reduce", rounds, 128, True, ALL),)
    (inner,) = program_of(loop(3, loop(rounds, mean))).collectives
    assert (inner.number, inner.in_loop) == (3 * rounds, True)


def test_bytes_grow_with_the_rounds() -> None:
    few, many = (program_of(loop(rounds, lambda x: jnp.sin(x @ x.T) @ x), num_devices=1) for rounds in (10, 1000))
    assert 80 < many.num_bytes / few.num_bytes < 101
    assert few.num_bytes >= 10 * X.nbytes


TPU = """\
HloModule jit_step, is_scheduled=true

%taken (p0: u8[1000,128], p1: s32[8]) -> u8[8,128] {
  %p0 = u8[1000,128]{1,0:T(8,128)(4,1)} parameter(0)
  %p1 = s32[8]{0:T(128)} parameter(1)
  ROOT %gather.1 = u8[8,128]{1,0:T(8,128)(4,1)S(1)} gather(%p0, %p1), offset_dims={1}
}

%body (state: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %state = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}) parameter(0)
  %number = s32[]{:T(128)} get-tuple-element(%state), index=0
  %x = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%state), index=1
  %y = f32[8,128]{1,0:T(8,128)S(1)} sine(%x), backend_config={"estimated_cycles":"100"}
  ROOT %next = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}) tuple(%number, %y)
}

%condition (state.1: (s32[], f32[8,128])) -> pred[] {
  %limit = s32[]{:T(128)} constant(ROUNDS)
  %state.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}) parameter(0)
  %number.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %more = pred[]{:T(512)} compare(%number.1, %limit), direction=LT
}

%cheap (c0: f32[8,128]) -> f32[8,128] {
  ROOT %c0 = f32[8,128]{1,0:T(8,128)} parameter(0)
}

%dear (d0: f32[8,128]) -> f32[8,128] {
  %d0 = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %cosine = f32[8,128]{1,0:T(8,128)} cosine(%d0), backend_config={"estimated_cycles":"7000"}
}

ENTRY %main (images: u8[1000,128], indices: s32[8], start: (s32[], f32[8,128]), dual: s32[]) -> f32[8,128] {
  %images = u8[1000,128]{1,0:T(8,128)(4,1)} parameter(0)
  %indices = s32[8]{0:T(128)} parameter(1)
  %start = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}) parameter(2)
  %dual = s32[]{:T(128)} parameter(3)
  %batch = u8[8,128]{1,0:T(8,128)(4,1)S(1)} fusion(%images, %indices), kind=kCustom, calls=%taken, \
backend_config={"estimated_cycles":"5"}
  %loop = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}) while(%start), condition=%condition, body=%body
  %z = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%loop), index=1
  %sum-start = (f32[8,128]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)}) all-reduce-start(%z), to_apply=%add
  %sum = f32[8,128]{1,0:T(8,128)} all-reduce-done(%sum-start)
  ROOT %w = f32[8,128]{1,0:T(8,128)} conditional(%dual, %sum, %sum), branch_computations={%cheap, %dear}
}
"""


def test_a_program_of_a_tpu_has_cycles() -> None:
    found = read_program(TPU.replace("ROUNDS", "10"))
    assert found.cycles == 5 + 10 * 100, "the loop ten times, and of the branch the path of fewer cycles"
    assert found.collectives == (Collective("all-reduce", 1, 4 * 8 * 128, in_loop=False),)
    # Eight rows of the images and their indices; both arrays that the sum names. All else is in the core.
    assert found.num_bytes == 8 * 128 + 4 * 8 + 2 * 4 * 8 * 128


@pytest.mark.parametrize(
    ("written", "first"),
    [
        ("{{0,2},{1,3}}", (0, 2)),
        ("[2,4]<=[8]", (0, 1, 2, 3)),
        ("[2,4]<=[4,2]T(1,0)", (0, 2, 4, 6)),
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_1'}", (0, 1)),
        ("mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}", (0, 1, 2, 3)),
        ("mesh['axis_0'=2,'axis_1'=1,'axis_2'=4] {'axis_0','axis_1'}", (0, 4)),
    ],
)
def test_a_collective_has_a_group_of_devices(written: str, first: tuple[int, ...]) -> None:
    text = TPU.replace("ROUNDS", "10").replace(
        "all-reduce-start(%z)", f"all-reduce-start(%z), replica_groups={written}"
    )
    (found,) = read_program(text).collectives
    assert found.group == first


def test_a_sum_and_a_slice_of_it_in_one_fusion_are_a_reduce_scatter() -> None:
    text = TPU.replace("ROUNDS", "10").replace(
        "  ROOT %gather.1 =",
        "  %sum.1 = u8[1000,128]{1,0} all-reduce(%p0), replica_groups={{0,1},{2,3}}, to_apply=%add\n  ROOT %gather.1 =",
    )
    scattered, _ = read_program(text).collectives
    assert scattered == Collective("reduce-scatter", 1, 8 * 128, False, (0, 1))


def test_groups_are_those_of_the_mesh() -> None:
    mesh = make_mesh(jax.devices()[:8], num_model_shards=2)
    for axis, first in (("data", (0, 2, 4, 6)), ("model", (0, 1))):
        summed = lambda x: x - lax.pmean(x, axis)  # noqa: B023
        spread = jax.shard_map(summed, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False)
        (found,) = read_program(jax.jit(spread).lower(X).compile().as_text()).collectives
        assert found.group == first


def test_what_cannot_be_read_is_refused() -> None:
    with pytest.raises(ValueError, match="expected that of a compiled program"):
        read_program("nothing of that kind")
    with pytest.raises(ValueError, match="loop of a compiled program runs until"):
        read_program(TPU.replace("constant(ROUNDS)", "parameter(1)"))
