"""Bytes that a program moves, of programs small enough to count by hand."""

import pytest

from experiments.common import traffic

# A loop of 10 samples in each of whose turns a loop of unknown length updates a kernel in place.
GPU = """HloModule jit_program
%add (p0: f32[8,4], p1: f32[8]) -> f32[8,4] {
  %p0 = f32[8,4]{1,0} parameter(0)
  %p1 = f32[8]{0} parameter(1)
  %wide = f32[8,4]{1,0} broadcast(%p1), dimensions={0}
  ROOT %sum = f32[8,4]{1,0} add(%p0, %wide)
}

%take (q0: f32[100,8], q1: s32[]) -> f32[8] {
  %q0 = f32[100,8]{1,0} parameter(0)
  %q1 = s32[] parameter(1)
  %row = f32[1,8]{1,0} dynamic-slice(%q0, %q1, %q1), dynamic_slice_sizes={1,8}
  ROOT %flat = f32[8]{0} bitcast(%row)
}

%put (r0: f32[100,8], r1: f32[1,8], r2: s32[]) -> f32[100,8] {
  %r0 = f32[100,8]{1,0} parameter(0)
  %r1 = f32[1,8]{1,0} parameter(1)
  %r2 = s32[] parameter(2)
  ROOT %placed = f32[100,8]{1,0} dynamic-update-slice(%r0, %r1, %r2, %r2)
}

%inner (c: (f32[8,4], f32[8])) -> (f32[8,4], f32[8]) {
  %c = (f32[8,4]{1,0}, f32[8]{0}) parameter(0)
  %kernel = f32[8,4]{1,0} get-tuple-element(%c), index=0
  %x = f32[8]{0} get-tuple-element(%c), index=1
  %next = f32[8,4]{1,0} fusion(%kernel, %x), kind=kLoop, calls=%add
  ROOT %out = (f32[8,4]{1,0}, f32[8]{0}) tuple(%next, %x)
}

%outer (d: (f32[8,4], f32[100,8], s32[])) -> (f32[8,4], f32[100,8], s32[]) {
  %d = (f32[8,4]{1,0}, f32[100,8]{1,0}, s32[]) parameter(0)
  %w = f32[8,4]{1,0} get-tuple-element(%d), index=0
  %data = f32[100,8]{1,0} get-tuple-element(%d), index=1
  %i = s32[] get-tuple-element(%d), index=2
  %taken = f32[8]{0} fusion(%data, %i), kind=kLoop, calls=%take
  %start = (f32[8,4]{1,0}, f32[8]{0}) tuple(%w, %taken)
  %loop = (f32[8,4]{1,0}, f32[8]{0}) while(%start), condition=%until, body=%inner
  %w2 = f32[8,4]{1,0} get-tuple-element(%loop), index=0
  %line = f32[1,8]{1,0} bitcast(%taken)
  %data2 = f32[100,8]{1,0} fusion(%data, %line, %i), kind=kLoop, calls=%put
  ROOT %all = (f32[8,4]{1,0}, f32[100,8]{1,0}, s32[]) tuple(%w2, %data2, %i)
}

ENTRY %main (a: f32[8,4], b: f32[100,8], n: s32[]) -> (f32[8,4], f32[100,8], s32[]) {
  %a = f32[8,4]{1,0} parameter(0)
  %b = f32[100,8]{1,0} parameter(1)
  %n = s32[] parameter(2)
  %copied = f32[100,8]{1,0} copy(%b)
  %begin = (f32[8,4]{1,0}, f32[100,8]{1,0}, s32[]) tuple(%a, %copied, %n)
  ROOT %end = (f32[8,4]{1,0}, f32[100,8]{1,0}, s32[]) while(%begin), condition=%until2, body=%outer
}
"""


def test_bytes_of_a_turn_are_those_of_its_instructions_and_of_the_loops_in_it():
    taken, placed = (32 + 4 + 32), (32 + 32 + 4)  # A row of the data is read and written, and one of it replaced.
    update = 128 + 32 + 128
    assert traffic.bytes_a_turn(GPU, 3) == taken + placed + 3 * update
    known = GPU.replace("body=%inner", 'body=%inner, backend_config={"known_trip_count":{"n":"5"}}')
    assert traffic.bytes_a_turn(known, 3) == taken + placed + 5 * update


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[8,4]{1,0}", 128),
        ("(f32[2], s32[], pred[3], bf16[4,4])", 8 + 4 + 3 + 32),
        ("f32[1024,784,170]{1,2,0:T(8,128)}", 4 * 1024 * 896 * 176),  # Padded to tiles of 8 x 128.
        ("f32[128,70,10]{0,1,2:T(8,128)S(1)}", 0),  # In the core's own memory.
    ],
)
def test_the_size_of_an_array_is_that_of_its_place_in_memory(shape, size):
    assert traffic.num_bytes(shape) == size


def test_a_copy_between_memories_counts_at_the_end_that_is_in_hbm():
    copy = "(f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%kernel)"
    text = GPU.replace("f32[8,4]{1,0} fusion(%kernel, %x), kind=kLoop, calls=%add", copy)
    assert traffic.bytes_a_turn(text, 1) - traffic.bytes_a_turn(GPU, 1) == 4096 - (128 + 32 + 128)
