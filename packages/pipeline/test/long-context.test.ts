import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { modelPath } from '@llamavid/tiny';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { LlamaVid } from '../src/index.js';
import { fixtures } from './oracle-model.js';

const long = join(fixtures, 'world/media/long-000.mp4');
const question = 'where is the red circle?';
const folder = mkdtempSync(join(tmpdir(), 'llamavid-context-'));

beforeAll(() => {
  // The embedded model with 65,536 positions. The less of them are its own, the sooner they are scaled.
  cpSync(modelPath, folder, { recursive: true });
  const path = join(folder, 'config.json');
  const config = JSON.parse(readFileSync(path, 'utf8'));
  const positions = { max_position_embeddings: 1024, rope_scaling: { type: 'linear', factor: 64 } };
  writeFileSync(path, JSON.stringify({ ...config, ...positions }));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

it('a context of 64K is read in chunks, with keys and values in 8 bits', { timeout: 300_000 }, async () => {
  // Every frame of 50 seconds: 600.
  const part = { fps: 12, end: 50 };
  const toPlan = { ...part, question, maxNewTokens: 8 };
  const full = await LlamaVid.plan(folder, [long], toPlan);
  const eight = await LlamaVid.plan(folder, [long], { ...toPlan, kvCache: '8bit' });
  expect(full).toMatchObject({ contextLength: 65_536, visualTokens: 1200, contextFit: null });
  expect(full.steps.prefillChunk).toBeLessThan(full.promptTokens);
  const [bytes = 0, fewer = 0] = [full, eight].map(({ options, chosen }) => options[chosen]?.kvCache);
  // 8.5 of 32 bits a number.
  expect(fewer / bytes).toBeCloseTo(8.5 / 32, 2);

  await using model = await LlamaVid.load(folder, { device: 'cpu', dtype: 'f32' });
  await using clip = await model.open(long, part);
  const ids: number[][] = [];
  for (const kvCache of ['16bit', '8bit'] as const) {
    const answer = await model.ask(clip, question, { kvCache, maxNewTokens: 8 }).result();
    expect(answer.usage).toMatchObject({ promptTokens: full.promptTokens, visualTokens: 1200 });
    expect(answer.sampling).toMatchObject({ frames: 600, dropped: 0, omitted: 0 });
    ids.push(answer.tokenIds);
  }
  expect(ids[1]?.[0]).toBe(ids[0]?.[0]);
});

it('an hour does not fit the embedded model, and fits a context of 64K', async () => {
  // As many frames as 55 minutes have at one a second.
  const hour = { fps: 12, question };
  const [short, roomy] = [
    await LlamaVid.plan('tiny', [long], hour),
    await LlamaVid.plan(folder, [long], hour),
  ];
  expect(short).toMatchObject({ frames: 3300, visualTokens: 6600, contextLength: 4096 });
  expect(short.contextFit?.frames).toBeGreaterThan(1700);
  expect(short.notes.join()).toContain('6600 of 3300 frames');
  expect(roomy).toMatchObject({ frames: 3300, visualTokens: 6600, contextFit: null });
});
