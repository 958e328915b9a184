"""The kinds of run, by the name that a config gives in `config.task`.

Each is a module with `run(config, workdir)`. It is imported when a run of its
kind begins, so that no run pays for the libraries of another.
"""

TASKS = {
  'distill': 'llm.tasks.distill',
  'generate': 'llm.tasks.generate',
  'online_preference': 'llm.tasks.online_preference',
  'preference': 'llm.tasks.preference',
  'pretrain': 'llm.tasks.supervised',
  'quickstart': 'llm.tasks.quickstart',
  'reward': 'llm.tasks.reward',
  'rl': 'llm.tasks.rl',
  'score': 'llm.tasks.score',
  'sft': 'llm.tasks.supervised',
}
