"""What the compilers of TPUs and NVIDIA GPUs say of the project's programs."""

import pytest

from .conftest import LARGE, SMALL

# Of cuDNN and of Pallas.
KERNELS = {'h100': '__cudnn$fmha', 'v5e': 'tpu_custom_call'}

of_every_program = pytest.mark.parametrize(
  'key', SMALL + LARGE, ids=lambda key: '-'.join(key)
)


@of_every_program
def test_donated_buffers_are_used_again(reports, key):
  report = reports[key]
  assert report['aliased'] >= report['donated']


@of_every_program
def test_no_buffer_holds_a_weight_or_a_cache_once_more(reports, key):
  # Training keeps float32 parameters and multiplies in bfloat16: each is cast,
  # on several devices before it is sent to the others.
  cast = key[0] in ('sft', 'dpo', 'grpo')
  for label, before, after, opcode in reports[key]['moved']:
    narrower = before.startswith('f32') and after.startswith('bf16')
    assert cast and narrower, (label, before, after, opcode)


@of_every_program
def test_prompts_are_attended_to_by_a_fused_kernel(reports, key):
  kernel = KERNELS[key[2].partition(':')[0]]
  found = any(name.startswith(kernel) for name in reports[key]['kernels'])
  # A decode step and the completions of GRPO look at two caches at a time, and
  # of a prompt GRPO's last layer, the only one of the small shape, needs the
  # keys alone.
  assert found == (key[0] != 'decode' and key[:2] != ('grpo', 'small'))


@pytest.mark.parametrize('target', ['h100', 'v5e'])
def test_a_decode_step_reads_little_more_than_it_must(reports, target):
  report = reports['decode', '1b', target]
  assert report['needed'] == pytest.approx(3.0e9, rel=0.01)
  assert report['needed'] <= report['body'] <= 1.15 * report['needed']


@pytest.mark.parametrize('target', ['h100', 'v5e'])
def test_a_prefill_never_holds_the_scores(reports, target):
  # Of 512 queries a row they are 0.54 GB, beside 0.4 to 0.5 for the MLP.
  assert reports['prefill', '1b', target]['temporaries'] < 0.6e9
