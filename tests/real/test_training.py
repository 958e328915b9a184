"""Fine-tuning on real instructions, from the config to a model that loads."""

import pathlib

import numpy as np

from llm import api, config_args
from llm.runs import report
from llm.tasks import supervised

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
SHAPE = {
  'embed_dim': 64,
  'hidden_dim': 128,
  'num_layers': 2,
  'num_heads': 4,
  'num_kv_heads': 2,
  'head_dim': 16,
  'max_length': 512,
}


def test_instructions_are_learned_and_the_export_loads(data_dir, tmp_path):
  config = config_args.load_config(str(CONFIGS / 'sft.py'))
  config.tokenizer.path = str(data_dir / 'weights/stories260K/tok512.bin')
  config.model.update(SHAPE)
  config.data.path = str(
    data_dir / 'sft/rasbt_instruction/instruction-data.json'
  )
  config.data.eval_fraction = 0.05
  config.train.steps = 20
  config.train.batch_size = 4
  config.train.eval_every = 10
  config.train.eval_first = True
  config.optim.lr = 1e-2
  config.optim.warmup_steps = 2
  config.export = str(tmp_path / 'export')
  result = supervised.run(config, str(tmp_path / 'run'))

  rows = report.read_rows(str(tmp_path / 'run'))
  held_out = {r['step']: r['eval_loss'] for r in rows if 'eval_loss' in r}
  assert sorted(held_out) == [0, 10, 20]
  assert abs(held_out[0] - np.log(512)) < 0.3  # knows nothing
  assert held_out[20] < held_out[10] < held_out[0] - 1.0
  assert result['eval_loss'] == held_out[20]

  model, params, tok = api.load(config.export)
  text = 'Name a color.\n\n### Response:\n'
  before, after = (
    api.score(model, params, tok, [text + word])[0][-3:].sum()
    for word in ('A color is', 'zqxjkvwp')
  )
  assert before > after
  (answer,) = api.generate(
    model, params, tok, text, max_new_tokens=8, temperature=0.0
  )
  assert answer.text and np.isfinite(answer.logprobs).all()
