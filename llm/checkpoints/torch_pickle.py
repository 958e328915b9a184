"""Pickles of PyTorch's tensors, read opcode by opcode without `pickle`.

A pickle is a program: `pickle.load` would import, call and change whatever it
names. Here a few opcodes are carried out on plain containers, the names of
tensors are looked up in a table, and anything else is refused (the rules of
`torch.load(weights_only=True)`). What comes out are places in a file.
"""

from collections.abc import Callable
import io
import pickletools
from typing import Any, NamedTuple

from llm.errors import UserError

REMEDY = 'download it again, or convert it to safetensors'
_DISTRUST = 'it is not trusted; convert it to safetensors where you trust it'
_MAX_AXES = 64  # as PyTorch has
# Storage class -> (dtype as safetensors names it, bytes of an element).
_STORAGES = {
  'FloatStorage': ('F32', 4),
  'HalfStorage': ('F16', 2),
  'BFloat16Storage': ('BF16', 2),
  'DoubleStorage': ('F64', 8),
  'LongStorage': ('I64', 8),
  'IntStorage': ('I32', 4),
  'ShortStorage': ('I16', 2),
  'CharStorage': ('I8', 1),
  'ByteStorage': ('U8', 1),
  'BoolStorage': ('BOOL', 1),
}


class Storage(NamedTuple):
  """Numbers in the file: their kind, and the entry that has them."""

  dtype: str
  size: int  # bytes of an element
  key: str


class Tensor(NamedTuple):
  """A view of a storage; offset and strides count elements."""

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


class _Global(NamedTuple):
  """A name that the pickle may use: something to call, or a storage class."""

  call: Callable[..., Any] | None = None
  storage: tuple[str, int] | None = None


class _Machine:
  """What the opcodes work on."""

  def __init__(self):
    self.stack: list[Any] = []
    self.marks: list[int] = []
    self.memo: dict[int, Any] = {}

  def pop(self) -> Any:
    if len(self.stack) <= (self.marks[-1] if self.marks else 0):
      raise _damaged()
    return self.stack.pop()

  def pop_to_mark(self) -> list[Any]:
    if not self.marks:
      raise _damaged()
    at = self.marks.pop()
    items = self.stack[at:]
    del self.stack[at:]
    return items


def read_pickle(file: io.BytesIO) -> Any:
  """What one pickle holds; the file stands behind it afterwards.

  Returns:
    dicts, lists, tuples, texts and numbers, with a `Tensor` for each tensor.

  Raises:
    UserError: the pickle is damaged, or has something else than those.
  """
  machine = _Machine()
  try:
    for opcode, argument, _ in pickletools.genops(file):
      if opcode.name == 'STOP':
        return machine.pop()
      if opcode.name in _PUSHED:
        machine.stack.append(argument)
      elif opcode.name in _STEPS:
        _STEPS[opcode.name](machine, argument)
      else:
        raise UserError(
          f'its pickle has {opcode.name}, which no pickle of tensors needs: '
          f'{_DISTRUST}'
        )
  except UserError:
    raise
  except ValueError:  # from genops: an unknown opcode, or a cut argument
    raise _damaged() from None
  raise _damaged()


def _damaged() -> UserError:
  return UserError(f'its pickle is damaged: {REMEDY}')


def _tuple(machine: _Machine, length: int) -> None:
  items = [machine.pop() for _ in range(length)]
  machine.stack.append(tuple(reversed(items)))


def _append(machine: _Machine, items: list[Any]) -> None:
  target = machine.stack[-1] if machine.stack else None
  if not isinstance(target, list):
    raise _damaged()
  target.extend(items)


def _set(machine: _Machine, items: list[Any]) -> None:
  target = machine.stack[-1] if machine.stack else None
  if not isinstance(target, dict) or len(items) % 2:
    raise _damaged()
  target.update(_pairs(zip(items[::2], items[1::2], strict=True)))


def _pairs(pairs: Any) -> dict:
  """A dict; a key is a text or a number, for which hashing takes no time."""
  made = {}
  for pair in pairs:
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
      raise _damaged()
    key, value = pair
    if not isinstance(key, (str, int, float)):
      raise UserError(f'its pickle has a {type(key).__name__} as key: {REMEDY}')
    made[key] = value
  return made


def _name(machine: _Machine, name: str) -> None:
  module, _, last = name.rpartition('.')
  if module in ('torch', 'torch.storage') and last in _STORAGES:
    machine.stack.append(_Global(storage=_STORAGES[last]))
  elif name in _CALLS:
    machine.stack.append(_Global(call=_CALLS[name]))
  else:
    raise UserError(
      f'its pickle names {name}, which is no part of a tensor: {_DISTRUST}'
    )


def _name_on_stack(machine: _Machine, _) -> None:
  name, module = machine.pop(), machine.pop()
  if not isinstance(name, str) or not isinstance(module, str):
    raise _damaged()
  _name(machine, f'{module}.{name}')


def _reduce(machine: _Machine, _) -> None:
  arguments, function = machine.pop(), machine.pop()
  if not isinstance(function, _Global) or function.call is None:
    raise _damaged()
  if type(arguments) is not tuple:
    raise _damaged()
  machine.stack.append(function.call(arguments))


def _build(machine: _Machine, _) -> None:
  """Attributes, which only an ordered dict has (`_metadata`): not needed."""
  machine.pop()
  if not machine.stack or not isinstance(machine.stack[-1], dict):
    raise UserError(
      f'its pickle sets attributes of something else than a dict: {_DISTRUST}'
    )


def _storage(machine: _Machine, _) -> None:
  place = machine.pop()
  if type(place) is not tuple or len(place) not in (5, 6):
    raise _damaged()
  kind, storage, key = place[:3]
  known = isinstance(storage, _Global) and storage.storage is not None
  # A sixth entry was a part of another storage, before PyTorch 0.4.
  if kind != 'storage' or not known or not isinstance(key, str):
    raise _damaged()
  if place[5:] not in ((), (None,)):
    raise UserError(f'its storage {key!r:.40} is a part of another: {REMEDY}')
  machine.stack.append(Storage(*storage.storage, key))


def _put(machine: _Machine, argument: int | None) -> None:
  if not machine.stack:
    raise _damaged()
  number = len(machine.memo) if argument is None else argument
  machine.memo[number] = machine.stack[-1]


def _get(machine: _Machine, number: int) -> None:
  if number not in machine.memo:
    raise _damaged()
  machine.stack.append(machine.memo[number])


def _is_sizes(value: Any) -> bool:
  return (
    type(value) is tuple
    and len(value) <= _MAX_AXES
    and all(type(n) is int and n >= 0 for n in value)
  )


def _rebuild_tensor(arguments: tuple) -> Tensor:
  """(storage, offset, shape, strides, …): the rest is about gradients."""
  if len(arguments) < 4:
    raise _damaged()
  storage, offset, shape, strides = arguments[:4]
  right = isinstance(storage, Storage) and type(offset) is int and offset >= 0
  if not right or not _is_sizes(shape) or not _is_sizes(strides):
    raise _damaged()
  if len(shape) != len(strides):
    raise _damaged()
  return Tensor(storage, offset, shape, strides)


def _rebuild_parameter(arguments: tuple) -> Tensor:
  if not arguments or not isinstance(arguments[0], Tensor):
    raise _damaged()
  return arguments[0]


def _ordered_dict(arguments: tuple) -> dict:
  if len(arguments) > 1 or not all(isinstance(a, list) for a in arguments):
    raise _damaged()
  return _pairs(arguments[0] if arguments else ())


def _size(arguments: tuple) -> tuple[int, ...]:
  if len(arguments) != 1 or not isinstance(arguments[0], (list, tuple)):
    raise _damaged()
  return tuple(arguments[0])


_CALLS: dict[str, Callable[[tuple], Any]] = {
  'collections.OrderedDict': _ordered_dict,
  'torch._utils._rebuild_tensor': _rebuild_tensor,
  'torch._utils._rebuild_tensor_v2': _rebuild_tensor,
  'torch._utils._rebuild_parameter': _rebuild_parameter,
  'torch._utils._rebuild_parameter_with_state': _rebuild_parameter,
  'torch.Size': _size,
}
# Opcodes whose argument is the value.
_PUSHED = frozenset(
  """
  BINUNICODE SHORT_BINUNICODE BINUNICODE8 BININT BININT1 BININT2 LONG1 BINFLOAT
  SHORT_BINBYTES BINBYTES SHORT_BINSTRING BINSTRING
  """.split()
)
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
  'PROTO': lambda machine, _: None,
  'FRAME': lambda machine, _: None,
  'MARK': lambda machine, _: machine.marks.append(len(machine.stack)),
  'NONE': lambda machine, _: machine.stack.append(None),
  'NEWTRUE': lambda machine, _: machine.stack.append(True),
  'NEWFALSE': lambda machine, _: machine.stack.append(False),
  'EMPTY_DICT': lambda machine, _: machine.stack.append({}),
  'EMPTY_LIST': lambda machine, _: machine.stack.append([]),
  'EMPTY_TUPLE': lambda machine, _: machine.stack.append(()),
  'TUPLE': lambda machine, _: machine.stack.append(
    tuple(machine.pop_to_mark())
  ),
  'TUPLE1': lambda machine, _: _tuple(machine, 1),
  'TUPLE2': lambda machine, _: _tuple(machine, 2),
  'TUPLE3': lambda machine, _: _tuple(machine, 3),
  'APPEND': lambda machine, _: _append(machine, [machine.pop()]),
  'APPENDS': lambda machine, _: _append(machine, machine.pop_to_mark()),
  'SETITEM': lambda machine, _: _set(
    machine, [machine.pop(), machine.pop()][::-1]
  ),
  'SETITEMS': lambda machine, _: _set(machine, machine.pop_to_mark()),
  # The argument is `module name`, whatever the name has in it.
  'GLOBAL': lambda machine, name: _name(machine, name.replace(' ', '.', 1)),
  'STACK_GLOBAL': _name_on_stack,
  'REDUCE': _reduce,
  'BUILD': _build,
  'BINPERSID': _storage,
  'BINPUT': _put,
  'LONG_BINPUT': _put,
  'MEMOIZE': _put,
  'BINGET': _get,
  'LONG_BINGET': _get,
}
