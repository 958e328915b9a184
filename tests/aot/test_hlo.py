"""The reader of compiled programs, on one that can be counted by hand."""

from .hlo import Program

# A loop that multiplies x [4, 8] by a weight, and around it: the weight cast,
# half of it taken to the memory on the core, and an update of 2 rows in place.
TEXT = """\
HloModule jit_f, is_scheduled=true

%fused_cast (p.0: f32[8,8]) -> bf16[8,8] {
  %p.0 = f32[8,8]{1,0} parameter(0)
  ROOT %convert.1 = bf16[8,8]{1,0} convert(%p.0)
}

%fused_update (p.1: f32[16,8], p.2: f32[2,8], p.3: s32[]) -> f32[16,8] {
  %p.1 = f32[16,8]{1,0} parameter(0)
  %p.2 = f32[2,8]{1,0} parameter(1)
  %p.3 = s32[] parameter(2)
  ROOT %dynamic-update-slice.1 = f32[16,8]{1,0} dynamic-update-slice(%p.1, \
%p.2, %p.3, %p.3)
}

%body (state: (f32[4,8], f32[8,8])) -> (f32[4,8], f32[8,8]) {
  %state = (f32[4,8]{1,0}, f32[8,8]{1,0}) parameter(0)
  %x = f32[4,8]{1,0} get-tuple-element(%state), index=0
  %w = f32[8,8]{1,0} get-tuple-element(%state), index=1
  %turned = f32[8,8]{0,1} copy(%w)
  %y = f32[4,8]{1,0} dot(%x, %turned), lhs_contracting_dims={1}
  ROOT %next = (f32[4,8]{1,0}, f32[8,8]{1,0}) tuple(%y, %w)
}

%condition (state.1: (f32[4,8], f32[8,8])) -> pred[] {
  %state.1 = (f32[4,8]{1,0}, f32[8,8]{1,0}) parameter(0)
  ROOT %more = pred[] constant(true)
}

ENTRY %main (a: f32[4,8], b: f32[8,8], c: f32[16,8]) -> f32[4,8] {
  %a = f32[4,8]{1,0} parameter(0), metadata={op_name="x"}
  %b = f32[8,8]{1,0} parameter(1), metadata={op_name="params[\\'w\\']"}
  %c = f32[16,8]{1,0} parameter(2), metadata={op_name="cache"}
  %zero = s32[] constant(0)
  %cast = bf16[8,8]{1,0} fusion(%b), kind=kLoop, calls=%fused_cast
  %slice-start = ((f32[8,8]{1,0}), f32[4,8]{1,0:T(8)S(1)}, s32[]) \
slice-start(%b), slice={[0:4], [0:8]}
  %slice-done = f32[4,8]{1,0:T(8)S(1)} slice-done(%slice-start)
  %rows = f32[2,8]{1,0} slice(%a), slice={[0:2], [0:8]}
  %updated = f32[16,8]{1,0} fusion(%c, %rows, %zero), kind=kLoop, \
calls=%fused_update
  %init = (f32[4,8]{1,0}, f32[8,8]{1,0}) tuple(%a, %b)
  %loop = (f32[4,8]{1,0}, f32[8,8]{1,0}) while(%init), condition=%condition, \
body=%body
  ROOT %out = f32[4,8]{1,0} get-tuple-element(%loop), index=0
}
"""


def test_bytes_are_counted_once_and_only_where_memory_is():
  program = Program(TEXT)
  body = 2 * 8 * 8 * 4 + (4 * 8 + 8 * 8 + 4 * 8) * 4  # the copy, the product
  assert program.accessed('body') == body
  cast, prefetch, rows = 8 * 8 * (4 + 2), 4 * 8 * 4, 2 * 2 * 8 * 4
  update = 2 * 2 * 8 * 4 + 4  # what is written, twice, and where
  assert program.accessed('main') == body + cast + prefetch + rows + update
  assert [name for _, name in program.loops()] == ['body']
  assert program.heaviest('body', 1) == [(512, 'dot y ')]


def test_what_holds_an_argument_once_more_is_found():
  # The slice lies in the memory on the core, and the update is in place.
  assert Program(TEXT).moved_arguments(least=128) == [
    ("params['w']", 'f32[8,8]', 'bf16[8,8]', 'fusion'),
    ("params['w']", 'f32[8,8]', 'f32[8,8]', 'copy'),
  ]
