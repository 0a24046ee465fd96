import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Pixels, VisualEncoder, VisualFeatures } from '../src/index.js';

const folder = join(import.meta.dirname, '../../../fixtures/random-model');

/** A picture whose colours differ from place to place and from `seed` to `seed`. */
function picture(seed: number) {
  const [width, height] = [120, 90];
  const data = new Uint8Array(width * height * 3).map((_, index) => (index * 7 + seed * 31) % 256);
  return { data, width, height };
}

describe('VisualEncoder', () => {
  let encoder: VisualEncoder;
  beforeAll(async () => {
    encoder = await VisualEncoder.load(folder, { device: 'cpu', dtype: 'f32' });
  });
  afterAll(() => encoder.close());

  it('tells what it is', () => {
    expect(encoder.preprocessing).toMatchObject({ size: 84, fit: 'crop' });
    expect([encoder.patchCount, encoder.width, encoder.dtype, encoder.device]).toEqual([
      36,
      32,
      'f32',
      'cpu',
    ]);
  });

  it('encodes a batch as it encodes its frames', async () => {
    const frames = [picture(1), picture(2), picture(3)];
    const batch = Pixels.fromRgb(frames, encoder.preprocessing);
    using together = await encoder.encode(batch);
    batch.close();
    expect(together.frameCount).toBe(3);
    expect(together.shape).toEqual([3, 37, 32]);

    const parts: VisualFeatures[] = [];
    for (const frame of frames) {
      const pixels = Pixels.fromRgb([frame], encoder.preprocessing);
      parts.push(await encoder.encode(pixels));
      pixels.close();
    }
    using joined = await VisualFeatures.concatenate(parts);
    for (const part of parts) part.close();
    const [expected, actual] = [await together.toFloat32Array(), await joined.toFloat32Array()];
    expect(actual.length).toBe(3 * 37 * 32);
    for (const [index, value] of actual.entries())
      expect(value).toBeCloseTo(expected[index] ?? Number.NaN, 4);
  });

  it('takes features back that it gave', async () => {
    const data = Float32Array.from({ length: 2 * 37 * 32 }, (_, index) => Math.sin(index));
    using features = await VisualFeatures.fromFloat32Array(data, [2, 37, 32], { device: 'cpu' });
    expect(features.frameCount).toBe(2);
    expect(await features.toFloat32Array()).toEqual(data);
  });

  it('refuses numbers that do not fill the shape', async () => {
    const made = VisualFeatures.fromFloat32Array(new Float32Array(5), [2, 37, 32], { device: 'cpu' });
    await expect(made).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });

  it('stops at an abort', async () => {
    const pixels = Pixels.fromRgb([picture(1)], encoder.preprocessing);
    const encoding = encoder.encode(pixels, { signal: AbortSignal.abort() });
    await expect(encoding).rejects.toMatchObject({ code: 'ABORTED' });
    pixels.close();
  });

  it('closes twice, and says afterwards that it is closed', async () => {
    const closed = await VisualEncoder.load(folder, { device: 'cpu' });
    closed.close();
    closed.close();
    expect(() => closed.width).toThrow(expect.objectContaining({ code: 'HANDLE_CLOSED' }));
    const features = await VisualFeatures.fromFloat32Array(new Float32Array(32), [1, 1, 32], {
      device: 'cpu',
    });
    features.close();
    features.close();
    await expect(features.toFloat32Array()).rejects.toMatchObject({ code: 'HANDLE_CLOSED' });
  });

  it('says what is missing', async () => {
    await expect(VisualEncoder.load(join(folder, 'nowhere'))).rejects.toMatchObject({
      code: 'MODEL_NOT_FOUND',
    });
  });
});
