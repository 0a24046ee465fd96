import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { modelPath } from '@llamavid/tiny';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { LlamaVid } from '../src/index.js';
import { fixtures } from './oracle-model.js';

// 3300 frames, as many as 55 minutes have at one a second.
const long = join(fixtures, 'world/media/long-000.mp4');
const everyFrame = { fps: 12 };
const question = 'where is the red circle?';
const folder = mkdtempSync(join(tmpdir(), 'llamavid-context-'));

beforeAll(() => {
  // The embedded model with what stage 3 sets for 65,536 positions.
  cpSync(modelPath, folder, { recursive: true });
  const path = join(folder, 'config.json');
  const config = JSON.parse(readFileSync(path, 'utf8'));
  writeFileSync(path, JSON.stringify({ ...config, rope_scaling: { type: 'linear', factor: 16 } }));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const slowly = { timeout: 300_000 };

it('an hour fits a context of 64K, read in chunks, with keys and values in 8 bits', slowly, async () => {
  const options = { ...everyFrame, question, maxNewTokens: 8 };
  const [full, eight] = await Promise.all([
    LlamaVid.plan(folder, [long], options),
    LlamaVid.plan(folder, [long], { ...options, kvCache: '8bit' }),
  ]);
  expect(full).toMatchObject({ contextLength: 65_536, visualTokens: 6600, contextFit: null });
  expect(full.steps.prefillChunk).toBeLessThan(full.promptTokens);
  const bytes = [full, eight].map(({ options, chosen }) => options[chosen]?.kvCache ?? 0);
  // 8.5 of 32 bits a number.
  expect((bytes[1] ?? 0) / (bytes[0] ?? 1)).toBeCloseTo(8.5 / 32, 2);

  await using model = await LlamaVid.load(folder, { device: 'cpu', dtype: 'f32' });
  await using clip = await model.open(long, everyFrame);
  const ids: number[][] = [];
  for (const kvCache of ['16bit', '8bit'] as const) {
    const { usage, tokenIds, sampling } = await model
      .ask(clip, question, { kvCache, maxNewTokens: 8 })
      .result();
    expect(usage).toMatchObject({ promptTokens: full.promptTokens, visualTokens: 6600 });
    expect(sampling).toMatchObject({ frames: 3300, dropped: 0, omitted: 0 });
    ids.push(tokenIds);
  }
  expect(ids[1]?.[0]).toBe(ids[0]?.[0]);
});

it(
  'an hour does not fit the context of the embedded model, which still tells where to look',
  slowly,
  async () => {
    await using model = await LlamaVid.load('tiny', { device: 'cpu', dtype: 'f32' });
    await using clip = await model.open(long, everyFrame);
    await expect(model.ask(clip, question).result()).rejects.toMatchObject({
      code: 'CONTEXT_OVERFLOW',
      message: expect.stringContaining('6600 of 3300 frames'),
    });
    const { frames } = await model.timeline(clip, question);
    expect(frames).toHaveLength(3300);
  },
);
