"""The kinds of run, by the name that a config gives in `config.task`.

Each imports its module only when it is called, so that one task never pays
for the libraries of another.
"""

import ml_collections


def _distill(config: ml_collections.ConfigDict, workdir: str | None):
  from llm.tasks import distill

  distill.run(config, workdir)


def _generate(config: ml_collections.ConfigDict, workdir: str | None):
  from llm.tasks import generate

  generate.run(config, workdir)


def _online_preference(config: ml_collections.ConfigDict, workdir: str | None):
  from llm.tasks import online_preference

  online_preference.run(config, workdir)


def _rl(config: ml_collections.ConfigDict, workdir: str | None):
  from llm.tasks import rl

  rl.run(config, workdir)


def _score(config: ml_collections.ConfigDict, workdir: str | None):
  from llm.tasks import score

  score.run(config, workdir)


def _quickstart(config: ml_collections.ConfigDict, workdir: str | None):
  from llm.tasks import quickstart

  quickstart.run(config, workdir)


def _supervised(config: ml_collections.ConfigDict, workdir: str | None):
  from llm.tasks import supervised

  supervised.run(config, workdir)


def _preference(config: ml_collections.ConfigDict, workdir: str | None):
  from llm.tasks import preference

  preference.run(config, workdir)


def _reward(config: ml_collections.ConfigDict, workdir: str | None):
  from llm.tasks import reward

  reward.run(config, workdir)


TASKS = {
  'distill': _distill,
  'generate': _generate,
  'online_preference': _online_preference,
  'preference': _preference,
  'pretrain': _supervised,
  'quickstart': _quickstart,
  'reward': _reward,
  'rl': _rl,
  'score': _score,
  'sft': _supervised,
}
