import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import { expect, it } from 'vitest';
import { callNative, PixelChannel, Pixels, type Preprocessing } from '../src/index.js';

const preprocessing: Preprocessing = { size: 4, mean: [0, 0, 0], std: [1, 1, 1], fit: 'crop' };

it('brings frames from a worker thread, in their order', async () => {
  using channel = new PixelChannel(preprocessing);
  const worker = new Worker(new URL('./push-frames.js', import.meta.url), {
    workerData: { id: channel.id, frames: 20 },
  });
  const [exitCode] = await once(worker, 'exit');
  expect(exitCode).toBe(0);

  expect(channel.length).toBe(20);
  const first = channel.take(3);
  const rest = channel.take(17);
  expect([first.frameCount, rest.frameCount, channel.length]).toEqual([3, 17, 0]);
  const values = [...first.toFloat32Array(), ...rest.toFloat32Array()];
  for (let frame = 0; frame < 20; frame++) expect(values[frame * 48]).toBeCloseTo((frame * 10) / 255, 5);
  expect(first).toBeInstanceOf(Pixels);
});

it('ends with its owner', () => {
  const channel = new PixelChannel(preprocessing);
  const { id } = channel;
  const other = PixelChannel.open(id);
  const closed = expect.objectContaining({ code: 'HANDLE_CLOSED' });
  other.close();
  expect(channel.length).toBe(0);
  const another = PixelChannel.open(id);
  channel.close();
  channel.close();
  expect(() => callNative(() => another.push(new Uint8Array(3), 1, 1, 3))).toThrow(closed);
  expect(() => callNative(() => PixelChannel.open(id))).toThrow(closed);
  expect(() => callNative(() => PixelChannel.open(-1))).toThrow(
    expect.objectContaining({ code: 'INVALID_ARGUMENT' }),
  );
});

it('gives no more frames than it has', () => {
  using channel = new PixelChannel(preprocessing);
  channel.push(new Uint8Array(3), 1, 1, 3);
  for (const count of [0, 2, -1, 0.5, Number.NaN]) {
    expect(() => callNative(() => channel.take(count)), `${count}`).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT' }),
    );
  }
  expect(channel.take(1).frameCount).toBe(1);
});
