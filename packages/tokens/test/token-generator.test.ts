import { join } from 'node:path';
import { VisualFeatures } from '@llamavid/vision';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { TokenGenerator } from '../src/index.js';

const folder = join(import.meta.dirname, '../../../fixtures/random-model');
const [frames, rows, width] = [3, 37, 32];

describe('TokenGenerator', () => {
  let generator: TokenGenerator;
  let features: VisualFeatures;
  beforeAll(async () => {
    generator = await TokenGenerator.load(folder, { device: 'cpu', dtype: 'f32' });
    const data = Float32Array.from({ length: frames * rows * width }, (_, index) => Math.sin(index * index));
    features = await VisualFeatures.fromFloat32Array(data, [frames, rows, width], { device: 'cpu' });
  });
  afterAll(() => {
    generator.close();
    features.close();
  });

  it('makes a context token and a content token of each frame', async () => {
    using tokens = await generator.generate(features, 'What happens?');
    expect([tokens.frameCount, tokens.tokensPerFrame]).toEqual([frames, 2]);
    expect(tokens.shape).toEqual([frames * 2, generator.width]);
    expect((await tokens.toFloat32Array()).every(Number.isFinite)).toBe(true);
  });

  it('changes the context token with the question, and not the content token', async () => {
    const [first, second] = await Promise.all(
      ['What happens?', 'Is there a red car?'].map(async (question) => {
        using tokens = await generator.generate(features, question);
        return tokens.toFloat32Array();
      }),
    );
    const row = (tokens: Float32Array | undefined, index: number) =>
      tokens?.slice(index * generator.width, (index + 1) * generator.width);
    expect(row(second, 0)).not.toEqual(row(first, 0));
    expect(row(second, 1)).toEqual(row(first, 1));
  });

  it('answers several questions in their order', async () => {
    const questions = ['What happens?', 'Who is talking to the chef?'];
    const each = await generator.generateEach(features, questions);
    expect(each).toHaveLength(2);
    for (const [index, question] of questions.entries()) {
      using alone = await generator.generate(features, question);
      const expected = await alone.toFloat32Array();
      const actual = (await each[index]?.toFloat32Array()) ?? new Float32Array();
      expect(actual.length).toBe(expected.length);
      for (const [place, value] of actual.entries())
        expect(value).toBeCloseTo(expected[place] ?? Number.NaN, 4);
    }
    for (const tokens of each) tokens.close();
  });

  it('stops at an abort', async () => {
    const generating = generator.generate(features, 'What happens?', { signal: AbortSignal.abort() });
    await expect(generating).rejects.toMatchObject({ code: 'ABORTED' });
  });

  it('closes twice, and says afterwards that it is closed', async () => {
    const tokens = await generator.generate(features, 'What happens?');
    tokens.close();
    tokens.close();
    await expect(tokens.toFloat32Array()).rejects.toMatchObject({ code: 'HANDLE_CLOSED' });
    const closed = await TokenGenerator.load(folder, { device: 'cpu' });
    closed.close();
    closed.close();
    await expect(closed.generate(features, 'What?')).rejects.toMatchObject({ code: 'HANDLE_CLOSED' });
  });
});
