import ml_collections
from ml_collections import config_dict
import pytest

from llm import config_args
from llm.errors import UserError


def make_config():
  return ml_collections.ConfigDict(
    {
      'task': 'generate',
      'batch_size': 8,
      'output': config_dict.placeholder(str),
      'stop': (),
      'stream': True,
      'sampling': {'temperature': 1.0, 'top_p': 0.9, 'logit_bias': {}},
      'run': print,
    }
  ).lock()


def test_parse_arg_reads_flags_and_values():
  got = config_args.parse_arg(
    'smoke,seed=3, lr=1e-3', smoke=False, seed=0, lr=0.5
  )
  assert vars(got) == {'smoke': True, 'seed': 3, 'lr': 0.001}
  assert vars(config_args.parse_arg(None, smoke=False)) == {'smoke': False}
  assert not config_args.parse_arg('a=false', a=True).a


@pytest.mark.parametrize(
  ('arg', 'message'),
  [
    ('smok', '\'smok\' in ":smok"; did you mean smoke?'),
    ('seed=x', 'seed takes a whole number (by default 0)'),
    ('smoke=maybe', 'smoke takes true or false'),
    ('name', 'needs a value: name=...'),
  ],
)
def test_parse_arg_refuses(arg, message):
  with pytest.raises(UserError) as error:
    config_args.parse_arg(arg, smoke=False, seed=0, name='')
  assert message in str(error.value)


def test_parse_arg_of_a_config_without_arguments():
  with pytest.raises(UserError, match='takes none'):
    config_args.parse_arg('smoke')


def test_overrides_set_fields_of_every_type():
  config = make_config()
  config_args.override_config(
    config,
    [
      '--config.batch_size=3',
      '--config.output',
      'x.jsonl',
      '--config.stop=("a", "b")',
      '--noconfig.stream',
      '--config.sampling.temperature=0',
      '--config.sampling.logit_bias={"5": 1.5}',
    ],
  )
  assert config.batch_size == 3
  assert config.output == 'x.jsonl'
  assert config.stop == ('a', 'b')
  assert config.stream is False
  assert config.sampling.temperature == 0.0
  assert config.sampling.top_p == 0.9
  assert config.sampling.logit_bias.to_dict() == {'5': 1.5}


@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    (
      '--config.sampling.temprature=0.5',
      'unknown field --config.sampling.temprature; did you mean '
      '--config.sampling.temperature?',
    ),
    ('--config.top_p=0.5', 'did you mean --config.sampling.top_p?'),
    ('--noconfig.streem', 'did you mean --config.stream?'),
    ('--config.foo.bar=1', 'unknown field --config.foo.bar'),
    ('--config.batch_size=abc', 'the field takes a whole number (its value'),
    ('--config.batch_size=1.5', '--config.batch_size=1.5: the field takes'),
    ('--config.stream=maybe', 'the field takes true or false'),
    ('--config.sampling={}', 'is a group of fields'),
    ('--config.run=1', 'no flag can set'),
  ],
)
def test_overrides_that_are_refused(flag, message):
  config = make_config()
  with pytest.raises(UserError) as error:
    config_args.override_config(config, [flag])
  assert message in str(error.value)
  assert config.to_dict() == make_config().to_dict()


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('batch_size', 3),
    ('stream', False),
    ('sampling.temperature', 1e-7),
    ('output', 'two words, {"a": 1}'),
    ('stop', ('a', 'b')),
    ('sampling.logit_bias', {'7': -1.0}),
  ],
)
def test_format_override_comes_back_equal(name, value):
  config = make_config()
  config_args.override_config(
    config, [config_args.format_override(name, value)]
  )
  for part in name.split('.'):
    config = config[part]
  if isinstance(value, dict):
    config = config.to_dict()
  assert config == value and type(config) is type(value)
