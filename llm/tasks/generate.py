"""The run `generate`: one prompt, a file of prompts, or a chat."""

import sys

from rich import console as rich_console

from llm.engine import loading, requests
from llm.engine import phases as phases_lib
from llm.engine.checks import check_generate
from llm.engine.completions import (
  Decoding,
  TextModel,
  complete,
  output_row,
  plan_decoding,
)
from llm.engine.output import Key, Output, open_output, sample_keys
from llm.engine.requests import Request, Sample, make_samples
from llm.engine.sampling_defaults import with_defaults
from llm.host import terminal
from llm.host.compile_clock import compile_clock
from llm.runs import outputs
from llm.text.chat_options import check_template, read_options


def run(config, workdir: str | None) -> None:
  """Generates the completions of `configs/generate.py`.

  Every input is checked before the weights are read.

  Raises:
    UserError: a field, a file or a row is wrong; the message says which.
  """
  compile_clock()
  check_generate(config)
  opened = loading.open_model(config)
  sampling = requests.run_sampling(config.sampling)
  defaults = config.sampling.defaults or ('model' if config.chat else 'neutral')
  if defaults == 'model':
    sampling, note = with_defaults(sampling, opened.source.generation)
    terminal.log(note)
  if opened.source.tokenizer is not None:
    check_template(opened.source.tokenizer, read_options(config))
  if config.chat:
    from llm.tasks import chat

    chat.run(config, opened, sampling)
    return
  samples = make_samples(_read_requests(config, opened, sampling))
  keys = sample_keys(samples, loading.files_of(config), config.dtype)
  single = config.prompts_file is None
  output, left = None, list(zip(keys, samples, strict=True))
  if config.output is not None:
    output = open_output(config.output, keys, fresh=single)
    terminal.log(output.note(len(samples)))
    left = [(key, sample) for key, sample in left if key not in output.done]
  if not left:
    return
  decoding = plan_decoding(config, [sample for _, sample in left])
  text_model = loading.load_weights(config, opened)
  run_samples = _run_single if single else _run_file
  phases = run_samples(text_model, left, decoding, output)
  table = phases_lib.phase_table(phases)
  if output:
    table.insert(0, ('written', f'{len(left):,} completions to {output.path}'))
  terminal.print_table(table)
  if workdir:
    outputs.write_result(workdir, phases_lib.phase_record(phases))


def _read_requests(config, opened, sampling: dict) -> list[Request]:
  tokenizer = opened.source.tokenizer
  if config.prompts_file is not None:
    return requests.read_requests(
      config.prompts_file,
      tokenizer,
      sampling,
      opened.limits,
      read_options(config),
    )
  row = {'prompt': config.prompt}
  where = 'prompt'
  text, tokens = requests.prompt_tokens(row, tokenizer, where)
  return [
    requests.make_request(0, text, tokens, sampling, opened.limits, where)
  ]


def _run_single(
  text_model: TextModel,
  left: list[tuple[Key, Sample]],
  decoding: Decoding,
  output: Output | None,
) -> phases_lib.Phases:
  """One prompt: its text appears while it is generated."""
  phases = phases_lib.Phases()
  several = len(left) > 1
  samples = [sample for _, sample in left]
  prompt = samples[0].request.prompt
  if prompt and not several:
    _print_prompt(prompt)
  show = None if several else (lambda _, text: terminal.write_text(text))
  completions = complete(
    text_model, samples, decoding, phases=phases, show=show
  )
  for (key, sample), completion in zip(left, completions, strict=True):
    if several:
      terminal.write_text(f'[{sample.number}] ')
      if prompt:
        _print_prompt(prompt)
      terminal.write_text(completion.text or '')
    if completion.text is None:
      terminal.write_text(f'token_ids: {completion.token_ids}')
    terminal.write_text('\n\n')
    if output:
      output.write(output_row(key, sample, completion, text_model.tokenizer))
  return phases


def _run_file(
  text_model: TextModel,
  left: list[tuple[Key, Sample]],
  decoding: Decoding,
  output: Output,
) -> phases_lib.Phases:
  """A file of prompts: a bar, and each batch's rows written when it is done."""
  phases = phases_lib.Phases()
  samples = [sample for _, sample in left]
  with terminal.progress_bar('completions') as bar:
    task = bar.add_task('generating', total=len(left))
    completions = complete(text_model, samples, decoding, phases=phases)
    for (key, sample), completion in zip(left, completions, strict=True):
      output.write(output_row(key, sample, completion, text_model.tokenizer))
      bar.advance(task)
  return phases


def _print_prompt(prompt: str) -> None:
  console = rich_console.Console(highlight=False, markup=False, emoji=False)
  console.print(terminal.printable(prompt), style='dim', end='', soft_wrap=True)
  sys.stdout.flush()
