"""What the docs name exists: files, headings, functions, fields, commands."""

import ast
import re
import shlex

import pytest

import llm
from llm import config_args
from tests.fixtures import ROOT
from tests.test_layout import ALLOWED

PAGES = sorted(
  [
    ROOT / 'README.md',
    *ROOT.glob('docs/*.md'),
    *ROOT.glob('experiments/*/*.md'),
  ]
)
CONFIGS = sorted(
  [*ROOT.glob('configs/*.py'), *ROOT.glob('experiments/*/config.py')]
)
SWEEPS = sorted(ROOT.glob('experiments/*/sweep.py'))
CODE = sorted([*ROOT.glob('llm/**/*.py'), ROOT / 'setup.py'])
# A path from the top of the project; a glob is one, a placeholder X is not.
PATH = re.compile(
  r'(?<![\w/.-])((?:llm|tests|configs|experiments|docs|\.ci)/[\w./*-]*[\w*/])'
)
LINK = re.compile(r'\]\(([^)\s]+)\)')
DOTTED = re.compile(r'(?<![\w/.-])(llm(?:\.[A-Za-z_]\w*)+)')
FLAG = re.compile(r'--config\.([a-z_][\w.]*)')
FIELD = re.compile(r'`([a-z_]+(?:\.[a-z_0-9]+)+)(?:=[^`]*)?`')
FENCE = re.compile(r'^ *```(\w*)\n(.*?)^ *```$', re.M | re.S)


def text_of(path):
  """A page, or the docstring of a Python file."""
  text = path.read_text(encoding='utf-8')
  return text if path.suffix == '.md' else ast.get_docstring(ast.parse(text))


def each(paths):
  return pytest.mark.parametrize(
    'path', paths, ids=lambda path: str(path.relative_to(ROOT))
  )


@pytest.fixture(scope='module')
def configs():
  return [config_args.load_config(str(path)) for path in CONFIGS]


def has_field(config, name):
  """Whether a config has this field, or this group of fields."""
  for part in name.split('.'):
    if not hasattr(config, 'keys') or part not in config:
      return False
    config = config[part]
  return True


@each(PAGES + CONFIGS + SWEEPS)
def test_paths_exist(path):
  for name in PATH.findall(text_of(path)):
    if 'X' not in re.split(r'[/.]', name):
      assert list(ROOT.glob(name.rstrip('/'))), name


def test_pages_that_the_code_names_exist():
  for path in CODE:
    for name in re.findall(r'docs/\w+\.md', path.read_text(encoding='utf-8')):
      assert (ROOT / name).exists(), f'{path}: {name}'


def anchors(page):
  headings = re.findall(r'^#+ (.*)$', page.read_text(encoding='utf-8'), re.M)
  kept = [re.sub(r'[^\w\- ]', '', heading.lower()) for heading in headings]
  return {heading.replace(' ', '-') for heading in kept}


@each(PAGES)
def test_links_lead_somewhere(path):
  for link in LINK.findall(path.read_text(encoding='utf-8')):
    if '://' in link:
      continue
    name, _, anchor = link.partition('#')
    target = path.parent / name if name else path
    assert target.exists(), link
    assert not anchor or anchor in anchors(target), link


def defined(module):
  """The names that a module defines or imports at its top."""
  names = set()
  for node in ast.walk(ast.parse(module.read_text(encoding='utf-8'))):
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
      names.add(node.name)
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
      names.add(node.targets[0].id)
      if node.targets[0].id == '__all__':  # loaded on first use
        names |= set(ast.literal_eval(node.value))
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
      names |= {alias.asname or alias.name for alias in node.names}
  return names


def resolves(name):
  """Whether 'llm.room.module.function' is there, without importing it."""
  place = ROOT
  parts = name.split('.')
  while parts and (place / parts[0]).is_dir():
    place /= parts.pop(0)
  module = place / f'{parts[0]}.py' if parts else place
  if parts and module.exists():
    parts.pop(0)
  else:
    module = place / '__init__.py'
  return not parts or parts[0] in defined(module)


@each(PAGES + CONFIGS + SWEEPS)
def test_functions_exist(path):
  for name in DOTTED.findall(text_of(path)):
    assert resolves(name), name


def test_a_function_that_is_not_there_does_not_resolve():
  assert resolves('llm.losses.preference.dpo_loss')
  assert not resolves('llm.losses.preference.dpo_los')
  assert not resolves('llm.losses.no_such_module.dpo_loss')


def commands(text):
  """Yields the words of each command that starts a run."""
  for line in re.sub(r'\\\n\s*', ' ', text).splitlines():
    start = re.search(r'(?:launch\.py|llm-jax) +--', line)
    if start:
      words = shlex.split(line[start.start() :].split(' && ')[0])
      yield [word for word in words[1:] if word.startswith('--')]


@each(PAGES + CONFIGS + SWEEPS)
def test_commands_are_accepted(path, monkeypatch):
  monkeypatch.chdir(ROOT)
  for words in commands(text_of(path)):
    flags = dict(word.split('=', 1) for word in words if '=' in word)
    spec = flags.get('--config', 'FILE')
    if spec.startswith('FILE') or spec.startswith('my_configs/'):
      continue
    config = config_args.load_config(spec)
    own = [word for word in words if word.startswith('--config.')]
    config_args.override_config(config, own)


@each(PAGES + CONFIGS + SWEEPS)
def test_fields_exist(path, configs):
  text = text_of(path)
  sections = {
    name
    for config in configs
    for name in config
    if hasattr(config[name], 'keys')
  }
  names = {name.rstrip('.') for name in FLAG.findall(text)}
  names -= {'a.b', 'a', 'sampling.temprature'}  # as running.md shows them
  if path.name != 'architecture.md':  # there they are modules
    names |= {
      name
      for name in FIELD.findall(text)
      if name.split('.')[0] in sections
      and not name.endswith(('.png', '.py', '.txt'))
    }
  for name in names - {'model.apply'}:
    assert any(has_field(config, name) for config in configs), name


@pytest.fixture(scope='module')
def architecture():
  return (ROOT / 'docs' / 'architecture.md').read_text(encoding='utf-8')


def test_architecture_lists_every_module(architecture):
  rooms = architecture.partition('## The rooms\n')[2]
  listed = []
  for part in rooms.partition('## Conventions\n')[0].split('\n### ')[1:]:
    room = re.match(r'`(\w+)`: ', part)
    for module, names in re.findall(
      r'^\| `(\S+)\.py` \|.*\| (.*)\|$', part, re.M
    ):
      module = f'{room[1]}/{module}' if room else module
      listed.append(module)
      for name in re.findall(r'`(\w+)`', names):
        assert name in defined(ROOT / 'llm' / f'{module}.py'), (
          f'{module}: {name}'
        )
  there = [path.relative_to(ROOT / 'llm') for path in ROOT.glob('llm/**/*.py')]
  there = [str(path)[:-3] for path in there if path.name != '__init__.py']
  assert sorted(listed) == sorted(there)


def test_architecture_draws_each_room_above_what_it_imports(architecture):
  drawing = FENCE.search(architecture.partition('## The rooms\n')[2])[2]
  layers = [line.split() for line in drawing.splitlines()]
  height = {room: -i for i, layer in enumerate(layers) for room in layer}
  assert sum(map(len, layers)) == len(height)
  assert set(height) == set(ALLOWED) - {'__init__'}
  for room, below in ALLOWED.items():
    for other in below if room in height else ():
      assert height[other] < height[room], f'{room} imports {other}'


def test_architecture_names_functions_that_exist(architecture):
  named = re.findall(r'`([a-z_0-9]+(?:\.\w+)+)`', architecture)
  named = [
    name
    for name in named
    if name.split('.')[0] in ALLOWED and not name.endswith('.py')
  ]
  assert len(named) > 50
  for name in named:
    assert resolves(f'llm.{name}'), name
  table = architecture.partition('## The way')[0]
  rows = re.findall(r'\| `(llm/\S+)` \| (.*) \|$', table, re.M)
  assert len(rows) > 9
  for path, names in rows:
    for name in re.findall(r'`(\w+)`', names):
      assert name in defined(ROOT / path), f'{path}: {name}'


def test_the_readme_has_each_experiment_with_its_numbers():
  text = (ROOT / 'README.md').read_text(encoding='utf-8')
  part = text.partition('## Experiments\n')[2].partition('\n## ')[0]
  rows = [
    line.strip('| ').split(' | ') for line in part.splitlines()[3:] if line
  ]
  found = []
  for claim, number, reached, folder in rows:
    assert len(re.findall(r"[\w.'-]+", claim)) <= 12, claim
    assert re.match(r'(all|reached|missed|.* (reached|missed))\b', reached)
    path = ROOT / re.search(r'\((.*)/README.md\)', folder)[1]
    own = ''.join(
      page.read_text(encoding='utf-8') for page in path.glob('*.md')
    )
    digits = re.compile(r'\d+(?:\.\d+)?')
    assert set(digits.findall(number + reached)) <= set(digits.findall(own))
    found.append(path)
  assert sorted(found) == sorted(page.parent for page in SWEEPS)


@pytest.fixture(scope='module')
def snippets():
  """The Python blocks of the README."""
  text = (ROOT / 'README.md').read_text(encoding='utf-8')
  return [code for kind, code in FENCE.findall(text) if kind == 'python']


@pytest.mark.slow
def test_the_snippets_give_the_tokens_of_generate(
  snippets, model_folder, capsys
):
  first, second = snippets
  names = {}
  exec(first.replace('PATH', model_folder), names)
  printed = ast.literal_eval(capsys.readouterr().out)
  model, params, tokenizer = (
    names[n] for n in ('model', 'params', 'tokenizer')
  )
  prompts = ['Once upon a time', 'The cat']
  lengths = [len(tokenizer.encode(prompt)) for prompt in prompts]
  assert names['cache'].length.tolist() == [lengths[0] + 32, lengths[1] + 20]
  wanted = llm.generate(
    model,
    params,
    tokenizer,
    prompts,
    temperature=0.0,
    max_new_tokens=32,
    ignore_eos=True,
  )
  assert names['tokens'].T.tolist() == [row.token_ids for row in wanted]
  assert printed == [tokenizer.decode(row.token_ids) for row in wanted]
  exec(second, names)
  assert len(names['logprobs']) == lengths[0] - 1  # none for the first


WALK_THROUGHS = ('preferences', 'rewards', 'rl', 'distillation')


@each(PAGES)
def test_no_result_is_left_open(path):
  assert not re.search(r'\bRESULT\b|\bTBD\b', text_of(path))


def walk_through(name):
  text = (ROOT / 'docs' / f'{name}.md').read_text(encoding='utf-8')
  return text.partition('## Walk-through\n')[2].partition('\n## ')[0]


@pytest.mark.parametrize('name', WALK_THROUGHS)
def test_a_walk_through_starts_with_the_quickstart(name):
  first, *others = commands(walk_through(name))
  assert first == [
    '--config=configs/quickstart.py',
    '--workdir=runs/quickstart',
  ]
  assert others
