import dataclasses
import os
import pathlib
import re
import signal
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm.checkpoints import sealed
from llm.checkpoints.train_state import Checkpoints
from llm.errors import RunError, UserError

IDENTITY = {'task': 'pretrain', 'model': {'embed_dim': 64, 'layers': [1, 2]}}
ROOT = pathlib.Path(__file__).parents[2]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
  params: dict
  opt_state: tuple
  step: jax.Array
  rng: jax.Array
  ema: None = None


def make_state(seed=0):
  rng = np.random.default_rng(seed)
  params = {
    'embedder': {'embedding': jnp.asarray(rng.normal(size=(8, 4)), 'float32')},
    'half': jnp.asarray(rng.normal(size=(5,)), 'bfloat16'),
    'empty': jnp.zeros((0, 3)),
  }
  return State(
    params,
    optax.adamw(0.1).init(params),
    jnp.int32(seed),
    jax.random.key(seed),
  )


def abstract(state):
  return jax.eval_shape(lambda: state)


def values(tree):
  def value(x):
    key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if key else x)

  return [(x.dtype, value(x).tobytes()) for x in jax.tree.leaves(tree)]


def assert_same(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  assert values(got) == values(want)


@pytest.fixture
def folder(tmp_path):
  return tmp_path / 'checkpoints'


def checkpoints(folder, **kwargs):
  return Checkpoints(str(folder), **({'identity': IDENTITY} | kwargs))


def save_steps(folder, *steps, **kwargs):
  with checkpoints(folder, **kwargs) as store:
    for step in steps:
      store.save(step, make_state(step), {'row': step}, {'loss': step / 10})


def restore(folder, **kwargs):
  with warnings.catch_warnings(), checkpoints(folder, **kwargs) as store:
    warnings.simplefilter('error')
    return store.restore(abstract(make_state()))


def largest_file(folder):
  files = [path for path in folder.rglob('*') if path.is_file()]
  return max(files, key=lambda path: path.stat().st_size)


def test_what_was_saved_comes_back(folder):
  with checkpoints(folder) as store:
    assert store.restore(abstract(make_state())) is None
    data_state = {'epoch': 1, 'nested': {'rows': [3, 1]}}
    metrics = {'loss': jnp.float32(0.5), 'n': np.int64(3)}
    store.save(7, make_state(7), data_state, metrics)
    # A snapshot: what the caller changes afterwards is not saved.
    data_state['nested']['rows'].append(9)
  got = restore(folder)
  assert got.step == 7
  assert got.data_state == {'epoch': 1, 'nested': {'rows': [3, 1]}}
  assert got.metrics == {'loss': 0.5, 'n': 3}
  assert_same(got.state, make_state(7))
  draws = jax.random.normal(got.state.rng, (3,))
  assert draws.tolist() == jax.random.normal(jax.random.key(7), (3,)).tolist()


@pytest.mark.parametrize('impl', ['threefry2x32', 'rbg'])
def test_keys_of_every_shape_and_kind(folder, impl):
  state = {'keys': jax.random.split(jax.random.key(1, impl=impl), (2, 3))}
  with checkpoints(folder) as store:
    store.save(1, state, {}, {})
    got = store.restore(abstract(state)).state
  assert_same(got, state)
  assert jax.random.key_impl(got['keys']) == impl


def test_the_state_may_be_donated_at_once(folder):
  step = jax.jit(lambda x: jax.tree.map(lambda a: a + 1, x), donate_argnums=0)
  state = {'a': jnp.arange(300_000.0), 'b': jnp.arange(7)}
  with checkpoints(folder, keep=4) as store:
    for i in range(4):
      store.save(i, state, {}, {})
      state = step(step(state))
    for i in range(4):
      got = store.restore(abstract(state), step=i).state
      np.testing.assert_array_equal(got['a'], np.arange(300_000.0) + 2 * i)
      np.testing.assert_array_equal(got['b'], np.arange(7) + 2 * i)


def test_numpy_leaves_are_copied(folder):
  state = {'a': np.arange(50_000, dtype=np.float32)}
  with checkpoints(folder) as store:
    store.save(1, state, {}, {})
    state['a'][:] = -1
    got = store.restore(state).state
  np.testing.assert_array_equal(got['a'], np.arange(50_000))


def test_the_newest_are_kept_and_the_best_besides(folder):
  losses = {1: 0.5, 2: 0.1, 3: 0.4, 4: 0.3, 5: float('nan'), 6: 0.1, 7: None}
  with checkpoints(folder, keep=2, best=('eval_loss', 'min')) as store:
    for step, loss in losses.items():
      metrics = {} if loss is None else {'eval_loss': loss}
      store.save(step, make_state(step), {}, metrics)
    assert store.best_step() == 2
    assert store.steps() == [2, 6, 7]
    assert_same(
      store.restore(abstract(make_state()), store.best_step()).state,
      make_state(2),
    )
  with checkpoints(folder, keep=1, best=('eval_loss', 'max')) as store:
    store.save(8, make_state(8), {}, {'eval_loss': 0.2})
    assert store.best_step() == 8
    assert store.steps() == [8]


def test_steps_are_ordered_as_numbers(folder):
  save_steps(folder, 9, 10, 100, keep=2)
  assert sorted(os.listdir(folder)) == ['10', '100']
  assert restore(folder).step == 100


def truncate(path):
  os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def change_a_number(path):
  text = path.read_text()
  assert '"row": 3' in text
  path.write_text(text.replace('"row": 3', '"row": 4'))


# How, which file of a step's folder (by default the largest), and the reason.
DAMAGE = {
  'truncated': (truncate, '', r'\d+ bytes instead of \d+'),
  'one bit': (flip_a_bit, '', 'its checksum differs from the manifest'),
  'missing': (os.remove, '', 'No such file'),
  'manifest': (change_a_number, sealed.MANIFEST, 'it does not fit its own'),
  'half': (truncate, sealed.MANIFEST, 'not a whole manifest'),
  'unsealed': (os.remove, sealed.MANIFEST, 'No such file'),
}


@pytest.mark.parametrize('kind', DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_by_name(folder, kind):
  damage, name, reason = DAMAGE[kind]
  save_steps(folder, 1, 2, 3)
  broken = folder / '3' / name if name else largest_file(folder / '3' / 'state')
  damage(broken)
  with checkpoints(folder, keep=2) as store:
    with pytest.warns(RuntimeWarning, match='step 2 is used instead') as record:
      got = store.restore(abstract(make_state()))
    message = str(record[0].message)
    assert len(record) == 1
    where = re.escape(f'{folder}/3: {broken.relative_to(folder / "3")}: ')
    assert re.search(where + reason, message)
    assert got.step == 2 and got.data_state == {'row': 2}
    assert_same(got.state, make_state(2))
    # The run comes to step 3 again: saved, not skipped.
    store.save(3, make_state(33), {'row': 33}, {})
    assert_same(store.restore(abstract(make_state())).state, make_state(33))
    assert store.steps() == [2, 3]


def test_damaged_later_steps_go_with_the_next_save(folder):
  save_steps(folder, 1, 2, 3)
  flip_a_bit(largest_file(folder / '2'))
  flip_a_bit(largest_file(folder / '3'))
  with checkpoints(folder) as store:
    with pytest.warns(RuntimeWarning, match='step 1 is used') as record:
      assert store.restore(abstract(make_state())).step == 1
    assert len(record) == 2
    store.save(2, make_state(22), {}, {})
  assert sorted(os.listdir(folder)) == ['1', '2']
  assert_same(restore(folder).state, make_state(22))


def test_all_damaged_is_refused_not_begun_anew(folder):
  save_steps(folder, 1, 2)
  truncate(largest_file(folder / '1'))
  os.remove(folder / '2' / sealed.MANIFEST)
  with checkpoints(folder) as store:
    with pytest.raises(UserError, match='no intact checkpoint') as caught:
      store.restore(abstract(make_state()))
  message = str(caught.value)
  assert f'{folder}/1: ' in message
  assert f'{folder}/2: manifest.json: No such file' in message
  assert f'remove {folder}' in message


def test_a_certain_step_must_be_intact(folder):
  save_steps(folder, 1, 2)
  truncate(largest_file(folder / '2'))
  with checkpoints(folder) as store:
    with pytest.raises(UserError, match='no intact checkpoint'):
      store.restore(abstract(make_state()), step=2)
    with pytest.raises(UserError, match='manifest.json: No such file'):
      store.restore(abstract(make_state()), step=5)


def test_an_existing_step_is_replaced(folder):
  save_steps(folder, 1, 2)
  with checkpoints(folder) as store:
    store.save(2, make_state(22), {}, {})
    store.save(2, make_state(222), {}, {})
  assert sorted(os.listdir(folder)) == ['1', '2']
  assert_same(restore(folder).state, make_state(222))


def test_a_step_before_an_intact_one_is_refused(folder):
  save_steps(folder, 1, 5)
  with checkpoints(folder) as store:
    with pytest.raises(UserError, match='a checkpoint of step 5, later than'):
      store.save(3, make_state(3), {}, {})
  assert sorted(os.listdir(folder)) == ['1', '5']


def test_leftovers_are_ignored_and_removed(folder):
  save_steps(folder, 1, 2)
  # Killed at three points: while Orbax writes, before the seal, and between
  # the two renamings of a replacement.
  (folder / '3.saving.orbax-checkpoint-tmp').mkdir()
  (folder / '4.saving').mkdir()
  (folder / '1.trash').mkdir()
  os.rename(folder / '2', folder / '2.replaced')
  (folder / 'notes.txt').write_text('mine')
  assert restore(folder).step == 2
  save_steps(folder, 5)
  assert sorted(os.listdir(folder)) == ['1', '2', '5', 'notes.txt']


def test_another_identity_is_refused_by_name(folder):
  save_steps(folder, 1)
  other = {'task': 'sft', 'model': {'embed_dim': 32, 'layers': (1, 2)}}
  with checkpoints(folder, identity=other) as store:
    with pytest.raises(UserError, match='another run') as caught:
      store.restore(abstract(make_state()))
  message = str(caught.value)
  assert 'task is pretrain there and sft here' in message
  assert 'model.embed_dim is 64 there and 32 here' in message
  assert 'layers' not in message


def test_another_tree_is_refused_by_name(folder):
  save_steps(folder, 1)
  state = dataclasses.replace(
    make_state(),
    params=make_state().params | {'half': jnp.zeros((5,)), 'new': jnp.ones(2)},
    step=jnp.zeros((2,), jnp.int32),
  )
  with checkpoints(folder) as store:
    with pytest.raises(UserError, match='another state') as caught:
      store.restore(abstract(state))
  message = str(caught.value)
  for line in (
    "params/half is ['bfloat16', [5]] there and ['float32', [5]] here",
    "params/new is absent there and ['float32', [2]] here",
    "step is ['int32', []] there and ['int32', [2]] here",
  ):
    assert line in message


@pytest.mark.parametrize(
  'kwargs, match',
  [
    ({'keep': 0}, 'keep=0'),
    ({'best': ('loss', 'least')}, "best=.*must be one of .'min', 'max'."),
  ],
)
def test_wrong_arguments_are_refused(folder, kwargs, match):
  with pytest.raises(UserError, match=match):
    checkpoints(folder, **kwargs)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='file/checkpoints: Not a directory'):
    checkpoints(tmp_path / 'file' / 'checkpoints')


def test_leaves_of_one_name_are_refused(folder):
  state = {'a/b': jnp.ones(1), 'a': {'b': jnp.ones(1)}}
  with checkpoints(folder) as store:
    with pytest.raises(UserError, match="named 'a/b'"):
      store.save(1, state, {}, {})


@pytest.mark.parametrize('call', ['save', 'check', 'wait', 'close', 'restore'])
def test_a_failed_save_raises_at_the_next_call(folder, monkeypatch, call):
  save_steps(folder, 1)
  store = checkpoints(folder)

  def full(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(sealed, 'seal', full)
  store.save(2, make_state(2), {}, {})
  store._pending[1].exception()  # Waits, and does not raise it.
  monkeypatch.undo()
  args = {
    'save': (3, make_state(3), {}, {}),
    'restore': (abstract(make_state()),),
  }
  message = 'checkpoint of step 2 was not saved to .*No space left.*whole: 1;'
  with pytest.raises(RunError, match=message):
    getattr(store, call)(*args.get(call, ()))
  if call != 'close':
    # Once only; and a later save goes well.
    store.check()
    assert store.restore(abstract(make_state())).step == 1
    store.save(2, make_state(2), {}, {})
    store.close()
    assert sorted(os.listdir(folder)) == ['1', '2']
  assert_same(restore(folder).state, make_state(1 if call == 'close' else 2))


def test_a_failed_save_does_not_hide_why_the_run_stopped(folder, monkeypatch):
  def full(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(sealed, 'seal', full)
  with pytest.warns(RuntimeWarning, match='No space left on device'):
    with pytest.raises(KeyError, match='the cause'):
      with checkpoints(folder) as store:
        store.save(2, make_state(2), {}, {})
        raise KeyError('the cause')


LIMITED = """
import resource, sys
import jax
from llm.checkpoints.train_state import Checkpoints
from llm.errors import RunError
store = Checkpoints(sys.argv[1], identity={})
state = {'a': jax.random.normal(jax.random.key(0), (40_000,))}
store.save(1, state, {}, {})
store.wait()
# Files stop growing there, as on a full disk.
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
store.save(2, state, {}, {})
try:
  store.wait()
except RunError as error:
  print(error)
print(store.restore(state).step, store.steps())
store.close()
"""


def run(program, *args):
  return subprocess.Popen(
    [sys.executable, '-c', program, *map(str, args)],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def test_a_full_disk_leaves_the_older_checkpoint(folder):
  done = run(LIMITED, folder)
  out, err = done.communicate()
  assert done.returncode == 0, err
  lines = out.splitlines()
  assert 'checkpoint of step 2 was not saved' in out
  assert 'File too large' in out
  assert lines[-1] == '1 [1]'
  assert err == ''
  assert os.listdir(folder) == ['1']


KILLED = """
import sys
import jax.numpy as jnp
from llm.checkpoints.train_state import Checkpoints
store = Checkpoints(sys.argv[1], identity={}, keep=2)
state = {'a': jnp.arange(500_000.0)}
for step in range(1, 1000):
  store.save(step, {'a': state['a'] + step}, {'row': step}, {})
  print(step, flush=True)
"""


@pytest.mark.parametrize('delay', [0.0, 0.013])
def test_killed_in_the_middle_of_a_save(folder, delay):
  process = run(KILLED, folder)
  for line in process.stdout:
    if int(line) == 4:
      break
  try:
    process.wait(timeout=delay)
  except subprocess.TimeoutExpired:
    pass
  process.send_signal(signal.SIGKILL)
  process.communicate()
  with checkpoints(folder, identity={}) as store, warnings.catch_warnings():
    warnings.simplefilter('error')
    state = {'a': jnp.arange(500_000.0)}
    got = store.restore(abstract(state))
    # The save of step 4 may have been unfinished, that of step 3 was not.
    assert got.step >= 3 and got.data_state == {'row': got.step}
    np.testing.assert_array_equal(got.state['a'], state['a'] + got.step)
    store.save(got.step + 1, state, {}, {})
  assert all(name.isdecimal() for name in os.listdir(folder))


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from llm.checkpoints.train_state import Checkpoints
want = {'w': np.arange(64.0).reshape(8, 8), 'b': np.arange(4.0)}
keys = jax.random.split(jax.random.key(0), 4)

def place(shape, specs):
  mesh = jax.make_mesh(shape, ('data', 'fsdp'))
  put = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
  state = {n: jax.device_put(x, put[n]) for n, x in want.items()}
  return state | {'keys': jax.device_put(keys, put['keys'])}

old = place((2, 2), {'w': P('fsdp', 'data'), 'b': P(), 'keys': P('data')})
new = place((1, 4), {'w': P(None, 'fsdp'), 'b': P('fsdp'), 'keys': P()})
layout = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
plain = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
with Checkpoints(FOLDER, identity={}) as store:
  store.save(1, old, {}, {})
  for target, devices in ((layout, 4), (plain, 1)):
    got = store.restore(jax.tree.map(target, new)).state
    for name, value in want.items():
      assert np.array_equal(got[name], value), name
      assert len(got[name].sharding.device_set) == devices, name
      if devices == 4:
        assert got[name].sharding == new[name].sharding, name
    data = jax.random.key_data
    assert np.array_equal(data(got['keys']), data(keys))
    assert jax.random.key_impl(got['keys']) == 'threefry2x32'
    assert len(got['keys'].sharding.device_set) == devices
print('same')
"""


def test_restored_to_another_layout_of_the_mesh(run_python, folder):
  program = SHARDED.replace('FOLDER', repr(str(folder)))
  assert run_python(program, devices=4) == 'same\n'
