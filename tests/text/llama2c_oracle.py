"""llama2.c's encoder and vocabulary file, written again from its run.c."""

import struct


def pack(entries: list[tuple[str, float]]) -> bytes:
  data = struct.pack('<i', max(len(t.encode()) for t, _ in entries))
  for token, score in entries:
    raw = token.encode()
    data += struct.pack('<fi', score, len(raw)) + raw
  return data


def unpack(data: bytes) -> list[tuple[str, float]]:
  entries, at = [], 4
  while at < len(data):
    score, length = struct.unpack_from('<fi', data, at)
    entries.append((data[at + 8 : at + 8 + length].decode(), score))
    at += 8 + length
  return entries


def encode(entries: list[tuple[str, float]], text: str) -> list[int]:
  """Greedy merges of the best score, leftmost first; no BOS."""
  index = {token: i for i, (token, _) in enumerate(entries)}
  ids = [index[' ']] if text else []
  for char in text:
    if char in index:
      ids.append(index[char])
    else:
      ids.extend(3 + byte for byte in char.encode())
  while True:
    best, where, new = -1e10, None, None
    for at, (a, b) in enumerate(zip(ids, ids[1:])):
      merged = index.get(entries[a][0] + entries[b][0])
      if merged is not None and entries[merged][1] > best:
        best, where, new = entries[merged][1], at, merged
    if where is None:
      return ids
    ids[where : where + 2] = [new]
