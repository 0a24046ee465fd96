import { describe, expect, it } from 'vitest';
import { TextStream } from '../src/text-stream.js';

/** Yields a, b, c and counts how far it was pulled and whether it was closed. */
function counted(): { stream: TextStream<number>; pulled: () => number; closed: () => boolean } {
  let pulled = 0;
  let closed = false;
  async function* source(): AsyncGenerator<string, number, void> {
    try {
      for (const letter of ['a', 'b', 'c']) {
        pulled += 1;
        await Promise.resolve();
        yield letter;
      }
      return pulled;
    } finally {
      closed = true;
    }
  }
  return { stream: new TextStream(source()), pulled: () => pulled, closed: () => closed };
}

async function read(stream: AsyncIterable<string>): Promise<string> {
  let text = '';
  for await (const delta of stream) text += delta;
  return text;
}

describe('TextStream', () => {
  it('runs nothing before it is read, and nothing ahead', async () => {
    const { stream, pulled } = counted();
    expect(pulled()).toBe(0);
    const iterator = stream[Symbol.asyncIterator]();
    await iterator.next();
    await new Promise((resolve) => setTimeout(resolve, 5));
    expect(pulled()).toBe(1);
  });

  it('gives the result without a reader', async () => {
    expect(await counted().stream.result()).toBe(3);
  });

  it('shows every reader the whole text, at whatever time', async () => {
    const { stream, pulled } = counted();
    const [first, result, second] = await Promise.all([read(stream), stream.result(), read(stream)]);
    expect([first, result, second, await read(stream)]).toEqual(['abc', 3, 'abc', 'abc']);
    expect(pulled()).toBe(3);
  });

  it('stops when its reader leaves', async () => {
    const { stream, pulled, closed } = counted();
    for await (const _ of stream) break;
    expect(closed()).toBe(true);
    expect(pulled()).toBe(1);
    await expect(stream.result()).rejects.toMatchObject({ code: 'ABORTED' });
  });

  it('goes on when another reader is left', async () => {
    const { stream } = counted();
    const result = stream.result();
    for await (const _ of stream) break;
    expect(await result).toBe(3);
  });

  it('tells every reader of a failure', async () => {
    const broken = new TextStream(
      // biome-ignore lint/correctness/useYield: a source that fails at once is the case.
      (async function* (): AsyncGenerator<string, void, void> {
        throw new Error('broken');
      })(),
    );
    await expect(read(broken)).rejects.toThrow('broken');
    await expect(broken.result()).rejects.toThrow('broken');
  });
});
