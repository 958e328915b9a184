"""What differs between CPU, GPU and TPU, and when it is decided.

A program is traced once and may then be lowered for any platform: the one that
it runs on, or one that is not here and that it is compiled for ahead of time.
So no function asks, while it is traced, which devices there are. It calls

    by_backend(function, *arrays, **static)

which puts one equation into the program. When the program is lowered, the
equation becomes `function(backend, *arrays, **static)`, with the `Backend` of
the platform that it is lowered for. The table below is all that is known of
the platforms; functions read it.

Why not `lax.platform_dependent`, which does the same with a conditional:

- It traces the branches of every platform into every program. cuDNN's
  attention cannot be traced where there is no cuDNN, and to trace the TPU's
  kernels takes longer than to trace the rest of a layer. Here only the CPU's
  branch is traced beforehand, for the shapes of the results; each of the others
  is traced when somebody lowers for it.
- The gradient through a conditional keeps, between the forward and the backward
  pass, what any of the branches wants to keep. This equation has no gradient of
  its own: callers that need one write it with `jax.custom_vjp`, or use
  `recomputed`, and so decide what is kept, the same on all platforms.

Layers that repeat an equation, with the same shapes, share its trace and its
lowering. An equation may be vmapped and stand in loops, in `jax.checkpoint` and
in `jax.shard_map`; forward-mode derivatives do not pass through it.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
from jax._src import dispatch
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import batching, mlir
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Backend:
  """What one kind of device is fastest at. The defaults suit an accelerator.

  Attributes:
    float32_operands: bfloat16 operands of products are cast to float32.
    weights_first: the product of up to this many rows with a weight [F, D] is
      computed as [F, D] [D, rows].
    values_first: attention multiplies values [H, S] by the weights of up to
      this many queries of a key head, in that order.
    causal_block: causal attention runs in blocks of this many queries and skips
      the keys after each block; None: all queries at once.
    keep_weights: the weights of attention are kept for the backward pass, where
      there are few queries; else they are recomputed.
    merges_products: the compiler merges products of one array with several
      others, and copies the others into one array for it.
    keep_rope_tables: cosines and sines are computed once, not again in each
      loop that rotates.
    fused_attention: a name of `llm.models.fused.ATTENTION`, or None.
  """

  float32_operands: bool = False
  weights_first: int = 0
  values_first: int = 0
  causal_block: int | None = None
  keep_weights: bool = False
  merges_products: bool = False
  keep_rope_tables: bool = False
  fused_attention: str | None = None

  def operand(self, x: jax.Array, dtype: Any) -> jax.Array:
    """x as an operand of products, in `dtype` or in float32."""
    return x.astype(jnp.float32 if self.float32_operands else dtype)

  def product(self, subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """The einsum of two arrays of one dtype, with sums in float32."""
    a, b = self.operand(a, a.dtype), self.operand(b, b.dtype)
    return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)


CPU = Backend(
  # XLA:CPU lacks some products of bfloat16, and is 30 times slower at others.
  float32_operands=True,
  # XLA:CPU multiplies [F, D] weights by a few columns faster than a few rows by
  # their transpose, as long as the result stays [F, rows]: the latter turns all
  # weights around first. Measured, a prefill of 128 tokens takes 0.75 of the
  # time; at 256 both are level, and beyond the results are what costs.
  weights_first=128,
  # The other way around it first copies the values of a single row transposed,
  # and is slow at several. Measured, a seventh of the time for one query and
  # one row, a quarter to a half for four queries and eight rows.
  values_first=16,
  # An accelerator is faster at one large product. Measured: a quarter of the
  # time.
  causal_block=128,
  keep_weights=True,
  # Computed again for every head, they take four times as long as rotating.
  keep_rope_tables=True,
)
GPU = Backend(
  fused_attention='cudnn',
  # XLA's dot merger, of products whose operands are small. Seen in the compiled
  # decode step of a 1B model: all keys of the cache were copied at each step.
  merges_products=True,
)
TPU = Backend(fused_attention='pallas')
OTHER = Backend()
# By JAX's names of platforms.
BACKENDS = {'cpu': CPU, 'cuda': GPU, 'rocm': OTHER, 'tpu': TPU}


@dataclasses.dataclass(frozen=True)
class _Choice:
  """A function that is called once the platform is known.

  Attributes:
    function: (backend, *args, **static) -> tree of arrays.
    tree: the structure of its arguments.
    static: its other arguments, as sorted pairs.
    mesh: that of the context where it was called.
    axes: of each `jax.vmap` around it, the innermost first: the axis of each
      leaf or None.
  """

  function: Callable[..., Any]
  tree: Any
  static: tuple[tuple[str, Any], ...]
  mesh: jax.sharding.AbstractMesh
  axes: tuple[tuple[int | None, ...], ...] = ()


def by_backend(function: Callable[..., Any], *args: Any, **static: Any) -> Any:
  """`function(backend, *args, **static)` of the platform it is lowered for.

  Args:
    function: of a module, so that equal calls share its trace. What it returns
      has the same structure, shapes and dtypes for each backend.
    *args: trees of arrays.
    **static: hashable.

  Returns:
    The tree that the function returns.
  """
  leaves, tree = jax.tree.flatten(args)
  choice = _Choice(
    function,
    tree,
    tuple(sorted(static.items())),
    jax.sharding.get_abstract_mesh(),
  )
  program = _program(choice, CPU).trace(*leaves)
  out = _bind(choice, leaves, program.jaxpr)
  return jax.tree.unflatten(jax.tree.structure(program.out_info), out)


def recomputed(function: Callable[..., Any], *args: Any, **static: Any) -> Any:
  """`by_backend` with a gradient, for which the function is computed again.

  The arguments alone are kept between the passes. Leaves that are not floating
  point have no gradient.
  """
  return _recomputed(function, tuple(sorted(static.items())), args)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _recomputed(function, static, args):
  return by_backend(function, *args, **dict(static))


def _recomputed_fwd(function, static, args):
  return _recomputed(function, static, args), args


def _recomputed_bwd(function, static, args, out_grad):
  leaves, tree = jax.tree.flatten(args)
  floats = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
  grads = by_backend(
    _gradient, leaves, out_grad, of=(function, static, tree, tuple(floats))
  )
  grads = iter(grads)
  full = [next(grads) if is_float else None for is_float in floats]
  return (jax.tree.unflatten(tree, full),)


_recomputed.defvjp(_recomputed_fwd, _recomputed_bwd)


def _gradient(backend, leaves, out_grad, *, of):
  """Gradients of the floating-point leaves of a function's arguments."""
  function, static, tree, floats = of

  def call(*moving):
    moving = iter(moving)
    full = [
      next(moving) if is_float else leaf
      for leaf, is_float in zip(leaves, floats, strict=True)
    ]
    return function(backend, *jax.tree.unflatten(tree, full), **dict(static))

  moving = [x for x, is_float in zip(leaves, floats, strict=True) if is_float]
  return jax.vjp(call, *moving)[1](out_grad)


@functools.lru_cache(maxsize=None)
def _program(choice: _Choice, backend: Backend) -> Any:
  """The function for one backend, jitted: flat leaves -> tree of arrays."""

  def run(*leaves):
    with jax.sharding.use_abstract_mesh(choice.mesh):
      args = jax.tree.unflatten(choice.tree, leaves)
      return choice.function(backend, *args, **dict(choice.static))

  for axes in choice.axes:
    run = jax.vmap(run, in_axes=axes)
  return jax.jit(run)


_by_backend_p = Primitive('by_backend')
_by_backend_p.multiple_results = True
# cuDNN's attention must know the devices while it is lowered. JAX tells them to
# programs that have such an equation, and this one may become it.
dispatch.prim_requires_devices_during_lowering.add(_by_backend_p)


def _bind(choice, leaves, jaxpr):
  """`jaxpr` is the CPU's program: it gives the shapes, and can be read."""
  return _by_backend_p.bind(*leaves, choice=choice, cpu=jaxpr)


@_by_backend_p.def_effectful_abstract_eval
def _shapes(*leaves, choice, cpu):
  del leaves, choice
  return list(cpu.out_avals), cpu.effects


@functools.lru_cache(maxsize=None)
def _compiled(choice, cpu):
  return jax.jit(lambda *leaves: _bind(choice, leaves, cpu))


@_by_backend_p.def_impl
def _run(*leaves, choice, cpu):
  with jax.disable_jit(False):
    return _compiled(choice, cpu)(*leaves)


def _batched(leaves, axes, *, choice, cpu):
  del cpu
  choice = dataclasses.replace(choice, axes=(*choice.axes, tuple(axes)))
  jaxpr = _program(choice, CPU).trace(*leaves).jaxpr
  out = _bind(choice, leaves, jaxpr)
  return out, [0] * len(out)


batching.primitive_batchers[_by_backend_p] = _batched


def _lowering(backend: Backend) -> Callable[..., Any]:
  def lower(ctx, *leaves, choice, cpu):
    jaxpr = cpu
    if backend is not CPU:
      jaxpr = _program(choice, backend).trace(*ctx.avals_in).jaxpr
    return mlir.lower_fun(jaxpr_as_fun(jaxpr))(ctx, *leaves)

  return lower


mlir.register_lowering(_by_backend_p, _lowering(OTHER))
for _platform, _backend in BACKENDS.items():
  mlir.register_lowering(_by_backend_p, _lowering(_backend), platform=_platform)
