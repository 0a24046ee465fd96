import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { llamavid } from './llamavid.js';

const fixtures = join(import.meta.dirname, '../../../fixtures');
const long = join(fixtures, 'world/media/long-000.mp4');
const question = 'what appears first?';

describe('llamavid plan', () => {
  it('writes a table for people and an object for programs', async () => {
    const [text, json] = await Promise.all([
      llamavid(['plan', long, '--quiet']),
      llamavid(['plan', long, '--json', '--quiet', '--load', '8bit', '--kv-cache', '8bit']),
    ]);
    expect([text.exitCode, json.exitCode, text.stderr, json.stderr]).toEqual([0, 0, '', '']);
    expect(text.stdout).toMatch(/^model +tiny on cpu\n/);
    expect(text.stdout).toMatch(/\nweights as +f32 +f16 +8bit +4bit\n/);
    expect(text.stdout).toMatch(/\nGPU +\S/);
    const plan = JSON.parse(json.stdout);
    expect(plan.options[plan.chosen]).toMatchObject({ load: '8bit', fits: true });
    const { kvCache } = JSON.parse((await llamavid(['plan', long, '--json', '--quiet'])).stdout).options[0];
    expect(plan.options[0].kvCache).toBe((kvCache / 128) * 34);
  });

  it.each([
    ['some frames', ['--end', '30']],
    ['many frames', []],
    ['weights in blocks', ['--end', '30', '--load', '8bit']],
  ])('comes near the peak that is then measured: %s', async (_, part) => {
    const flags = [...part, '--max-new-tokens', '32', '--device', 'cpu', '--json', '--quiet'];
    const plan = JSON.parse((await llamavid(['plan', long, '--question', question, ...flags])).stdout);
    const answer = JSON.parse((await llamavid(['ask', long, question, ...flags])).stdout);
    expect(plan).toMatchObject({ frames: answer.sampling.frames, promptTokens: answer.usage.promptTokens });
    // Of a model this small the process itself is the larger part, and varies; `pnpm scale` measures large ones.
    const { peakBytes } = plan.options[plan.chosen];
    expect(peakBytes / answer.timings.peakRssBytes).toBeGreaterThan(0.8);
    expect(peakBytes / answer.timings.peakRssBytes).toBeLessThan(1.25);
  });

  it('refuses a question that cannot fit before the model is loaded', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'llamavid-plan-'));
    try {
      cpSync(join(fixtures, 'random-model'), folder, { recursive: true });
      const path = join(folder, 'config.json');
      const config = { ...JSON.parse(readFileSync(path, 'utf8')), max_position_embeddings: 1e12 };
      writeFileSync(path, JSON.stringify(config));
      const much = [long, '--frames', '1', '--model', folder, '--max-new-tokens', String(9e11)];
      for (const args of [
        ['ask', ...much.slice(0, 1), question, ...much.slice(1)],
        ['chat', ...much],
      ]) {
        const refused = await llamavid(args);
        expect(refused.exitCode).toBe(1);
        expect(refused.stderr).toMatch(/error: .+ are needed .+ are free\nhint: .+--try-anyway/);
        expect(refused.stderr).not.toContain('loading the model');
      }
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });

  it('answers the same on one device and on two that share the layers', async () => {
    const answers = ['cpu', 'cpu,cpu'].map(async (device) => {
      const args = [long, question, '--end', '10', '--device', device, '--json', '--quiet'];
      return JSON.parse((await llamavid(['ask', ...args])).stdout);
    });
    const [one, two] = await Promise.all(answers);
    expect(two.tokenIds).toEqual(one.tokenIds);
    expect([one.model.device, two.model.device]).toEqual(['cpu', 'cpu,cpu']);
    const missing = await llamavid(['ask', long, question, '--device', 'cpu,cuda:1', '--json', '--quiet']);
    expect(JSON.parse(missing.stdout).error.code).toBe('DEVICE_UNAVAILABLE');
  });
});
