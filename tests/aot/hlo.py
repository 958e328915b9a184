"""What a compiled program does, read from its text.

Only what takes memory counts: instructions inside fusions have no buffer, and
neither have those that only rename one.
"""

import collections
import dataclasses
import functools
import math
import re

_BITS = {'pred': 8, 's4': 4, 'u4': 4, 'token': 0, 'opaque': 0}
# Rename a buffer or hand it on.
_RENAME = ('bitcast', 'get-tuple-element', 'tuple', 'opt-barrier')
_FREE = (*_RENAME, 'parameter', 'constant', 'after-all', 'iota', 'partition-id')
# Give the same numbers, all or some of them, in another place, order or dtype.
_MOVES = (
  'copy',
  'copy-start',
  'convert',
  'transpose',
  'reshape',
  'slice',
  'slice-start',
  'dynamic-slice',
  'concatenate',
  'pad',
)


@dataclasses.dataclass(frozen=True)
class Buffer:
  """An array of a type; `fast` ones lie in the memory on a TPU's core."""

  dtype: str
  shape: tuple[int, ...]
  fast: bool

  @property
  def bytes(self):
    bits = _BITS.get(self.dtype) or int(re.search(r'\d+', self.dtype)[0])
    return math.prod(self.shape) * bits // 8

  def __str__(self):
    return f'{self.dtype}[{",".join(map(str, self.shape))}]'


@dataclasses.dataclass(frozen=True)
class Instruction:
  name: str
  opcode: str
  buffers: tuple[Buffer, ...]
  operands: tuple[str, ...]
  text: str  # what follows the operands
  is_root: bool
  index: int  # of a parameter or a tuple's element

  def called(self, key):
    """Names of the computations under an attribute such as `calls`."""
    found = re.search(rf'\b{key}=(\{{[^}}]*\}}|%[\w.\-]+)', self.text)
    return re.findall(r'%([\w.\-]+)', found[1]) if found else []

  @property
  def bytes(self):
    return sum(b.bytes for b in self.buffers)

  @property
  def results(self):
    """Its buffers; of a copy that starts here, the one it goes to."""
    if self.opcode == 'slice-start':  # (from, to, …), but copy-start (to, from)
      return self.buffers[1:2]
    return self.buffers

  @property
  def label(self):
    found = re.search(r'op_name="([^"]*)"', self.text)
    return found[1].replace("\\'", "'") if found else ''


def _closing(text, start):
  """Index of the parenthesis that closes the one at `start`."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] == '(') - (text[i] == ')')
    if not depth:
      return i
  raise ValueError(text)


def _parse(line):
  found = re.match(r'\s+(ROOT )?%?([\w.\-]+) = ', line)
  if not found:
    return None
  rest = line[found.end() :]
  end = _closing(rest, 0) + 1 if rest[0] == '(' else rest.index(' ')
  kind, rest = rest[:end], rest[end:].strip()
  opcode, _, _ = rest.partition('(')
  close = _closing(rest, len(opcode))
  inside, text = rest[len(opcode) + 1 : close], rest[close + 1 :]
  buffers = tuple(
    Buffer(
      dtype, tuple(int(n) for n in shape.split(',') if n), 'S(1)' in layout
    )
    for dtype, shape, layout in re.findall(
      r'\b([a-z]\w*)\[([\d,]*)\](\{[^{}]*\})?', kind
    )
  )
  index = -1
  if opcode == 'parameter':
    index = int(inside)
  elif opcode == 'get-tuple-element':
    index = int(re.search(r'index=(\d+)', text)[1])
  return Instruction(
    found[2],
    opcode,
    buffers,
    tuple(re.findall(r'%([\w.\-]+)', inside)),
    text,
    bool(found[1]),
    index,
  )


class Program:
  """Computations by name, each a dict of its instructions by name."""

  def __init__(self, text):
    self.computations, self.entry = {}, None
    current = None
    for line in text.splitlines():
      header = re.match(r'(ENTRY )?%?([\w.\-]+) \(.*\{$', line)
      if header:
        current = self.computations[header[2]] = {}
        if header[1]:
          self.entry = header[2]
      elif current is not None:
        instruction = _parse(line)
        if instruction:
          current[instruction.name] = instruction

  def root(self, name):
    return next(i for i in self.computations[name].values() if i.is_root)

  def loops(self, name=None):
    """(while instruction, body's name) of a computation, calls included."""
    for one in self.computations[name or self.entry].values():
      if one.opcode == 'while':
        yield one, one.called('body')[0]
      elif one.opcode == 'call':
        yield from self.loops(one.called('to_apply')[0])

  @functools.cache
  def accessed(self, name):
    """Bytes of memory that a computation reads and writes.

    A loop's body counts once, of branches the dearest, of a slice what it
    takes and of an update what it writes, as in XLA's own cost analysis.
    """
    here = self.computations[name]
    return sum(self._accessed_by(one, here) for one in here.values())

  def heaviest(self, name, count=10):
    """The instructions of a computation that access most: (bytes, name)."""
    here = self.computations[name]
    each = [
      (self._accessed_by(one, here), f'{one.opcode} {one.name} {one.label}')
      for one in here.values()
    ]
    return sorted(each, reverse=True)[:count]

  def _accessed_by(self, one, here):
    code = one.opcode
    if code in _FREE or code.endswith('-done'):
      return 0
    if code == 'while':
      return sum(self.accessed(one.called(k)[0]) for k in ('body', 'condition'))
    if code == 'conditional':
      names = one.called('branch_computations') or [
        *one.called('true_computation'),
        *one.called('false_computation'),
      ]
      return max(self.accessed(name) for name in names)
    if code == 'call':
      return self.accessed(one.called('to_apply')[0])
    out = _slow(one.buffers)
    operands = [_slow(here[name].buffers) for name in one.operands]
    if code.endswith('-start'):  # (here and there, …): one read, one write
      moved = [b for b in one.buffers if b.shape]
      size = min(b.bytes for b in moved)
      return size * sum(not b.fast for b in moved[:2])
    if code in ('slice', 'dynamic-slice', 'gather'):
      return 2 * out
    if code in ('dynamic-update-slice', 'scatter'):
      return 2 * operands[-1] if code == 'scatter' else 2 * operands[1]
    if code == 'fusion':
      return self._accessed_by_fusion(one, here)
    return out + sum(operands)

  def _accessed_by_fusion(self, one, here):
    inner = self.computations[one.called('calls')[0]]
    users = {}
    for other in inner.values():
      for place, name in enumerate(other.operands):
        users.setdefault(name, []).append((other, place))
    total = 0
    for parameter in inner.values():
      if parameter.opcode != 'parameter':
        continue
      buffer = here[one.operands[parameter.index]].buffers
      if all(b.fast for b in buffer):
        continue
      parts = [_part(other, p) for other, p in users.get(parameter.name, [])]
      whole = sum(b.bytes for b in buffer)
      total += whole if None in parts else min(whole, sum(parts))
    written = _written(self.root(one.called('calls')[0]), inner)
    for buffer, size in zip(one.buffers, written, strict=False):
      total += 0 if buffer.fast else min(size, buffer.bytes)
    return total

  def moved_arguments(self, least=1):
    """Buffers that hold an argument's numbers once more.

    Args:
      least: bytes; smaller ones are left out.

    Returns:
      A list of (argument's label, its type, the buffer's type, opcode).
    """
    found = []
    self._follow(self.entry, {}, found)
    return [
      (label, str(before), str(after), code)
      for label, before, after, code in found
      if after.bytes >= least and not after.fast
    ]

  def _follow(self, name, arguments, found):
    """Follows arguments through a computation.

    Args:
      name: of the computation.
      arguments: parameter index -> {element: (label, type)}; {} for the entry,
        whose parameters are the program's own.
      found: gets what holds them once more.
    """
    here, origin = self.computations[name], collections.defaultdict(dict)
    for one in here.values():
      code, first = one.opcode, one.operands[:1]
      source = origin[first[0]] if first else {}
      if code == 'parameter':
        if name == self.entry:
          origin[one.name] = {0: (one.label, one.buffers[0])}
        else:
          origin[one.name] = arguments.get(one.index, {})
      elif code == 'get-tuple-element':
        if one.index in source:
          origin[one.name] = {0: source[one.index]}
      elif code in ('tuple', 'opt-barrier') and len(one.operands) > 1:
        elements = [origin[n].get(0) for n in one.operands]
        origin[one.name] = {i: e for i, e in enumerate(elements) if e}
      elif code in ('bitcast', 'opt-barrier') or code.endswith('-done'):
        origin[one.name] = source
      elif code == 'while':
        body = one.called('body')[0]
        self._follow(body, {0: source}, found)
        origin[one.name] = self._carried(body, source)
      elif code == 'conditional':
        names = one.called('branch_computations')
        for branch, operand in zip(names, one.operands[1:], strict=False):
          self._follow(branch, {0: origin[operand]}, found)
      elif code == 'call':
        given = {i: origin[n] for i, n in enumerate(one.operands)}
        self._follow(one.called('to_apply')[0], given, found)
      else:
        moved = self._moved(one, here, origin)
        origin[one.name] = moved
        for i, (label, before) in moved.items():
          found.append((label, before, one.results[i], code))

  def _moved(self, one, here, origin):
    """Elements of a result that hold an argument's numbers once more."""
    if one.opcode in _MOVES:
      largest = max(
        (here[name] for name in one.operands), key=lambda x: x.bytes
      )
      return {k: v for k, v in origin[largest.name].items() if k == 0}
    if one.opcode != 'fusion':
      return {}
    root = self.root(one.called('calls')[0])
    inner = self.computations[one.called('calls')[0]]
    roots = [root]
    if root.opcode == 'tuple':
      roots = [inner[name] for name in root.operands]
    moved = {}
    for i, at in enumerate(roots):
      while at.opcode in (*_MOVES, 'bitcast'):
        at = max((inner[name] for name in at.operands), key=lambda x: x.bytes)
      if at.opcode == 'parameter':
        source = origin[one.operands[at.index]]
        if 0 in source:
          moved[i] = source[0]
    return moved

  def _carried(self, body, source):
    """Elements of a loop's state that its body hands on as they are."""
    root = self.root(body)
    here = self.computations[body]
    kept = {}
    for i, name in enumerate(root.operands):
      element = here[name]
      if element.opcode == 'get-tuple-element' and element.index == i:
        if i in source:
          kept[i] = source[i]
    return kept


def _slow(buffers):
  return sum(b.bytes for b in buffers if not b.fast)


def _part(user, place):
  """Bytes that a fused instruction reads of its operand; None: all."""
  if user.opcode in ('slice', 'dynamic-slice', 'gather') and place == 0:
    return sum(b.bytes for b in user.buffers)
  if user.opcode in ('dynamic-update-slice', 'scatter') and place == 0:
    return 0
  return None


def _written(root, inner):
  """Bytes that a fusion writes of each of its results."""
  roots = [root]
  if root.opcode == 'tuple':
    roots = [inner[name] for name in root.operands]
  sizes = []
  for one in roots:
    while one.opcode == 'bitcast':
      one = inner[one.operands[0]]
    if one.opcode == 'dynamic-update-slice':
      sizes.append(inner[one.operands[1]].bytes)
    elif one.opcode == 'scatter':
      sizes.append(inner[one.operands[2]].bytes)
    else:
      sizes.append(one.bytes)
  return sizes
