import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { LlamaVid, type MediaPlan } from '../src/index.js';
import { fixtures } from './oracle-model.js';
import { roomyModel } from './roomy-model.js';

const video = join(fixtures, 'world/media/multi-010.mp4');
const long = join(fixtures, 'world/media/long-000.mp4');
const question = 'what appears first?';

/** The model with random weights, whose configuration claims other sizes. Nothing but its weights' shapes would tell. */
function claiming(sizes: object): Disposable & { folder: string } {
  const model = roomyModel();
  const path = join(model.folder, 'config.json');
  writeFileSync(path, JSON.stringify({ ...JSON.parse(readFileSync(path, 'utf8')), ...sizes }));
  return model;
}

/** Sizes whose f32 weights take `share` of the memory that is free now. */
function taking(share: number, { memory }: MediaPlan): object {
  const hidden_size = 2048;
  const num_hidden_layers = 64;
  const weights = (share * (memory?.available ?? 0)) / 4 / num_hidden_layers;
  return {
    hidden_size,
    num_attention_heads: 16,
    num_key_value_heads: 16,
    num_hidden_layers,
    // Beside the four square matrices of the attention.
    intermediate_size: Math.round((weights - 4 * hidden_size ** 2) / (3 * hidden_size) / 256) * 256,
  };
}

describe('LlamaVid.plan', () => {
  it('counts the tokens and frames that the answer then has', async () => {
    for (const options of [{}, { frames: 5 }, { start: 2, end: 6 }]) {
      const plan = await LlamaVid.plan('tiny', [video], { ...options, question, maxNewTokens: 7 });
      await using model = await LlamaVid.load('tiny', { device: 'cpu' });
      await using clip = await model.open(video, options);
      const { usage, sampling } = await model.ask(clip, question, { maxNewTokens: 7 }).result();
      expect(plan).toMatchObject({
        frames: sampling.frames,
        promptTokens: usage.promptTokens,
        visualTokens: usage.visualTokens,
        maxNewTokens: 7,
        contextLength: 4096,
        model: { name: 'tiny' },
        device: 'cpu',
      });
    }
  });

  it('lists formats from the most exact to the smallest, and takes f32 where it fits', async () => {
    const { options, chosen, memory, nearest } = await LlamaVid.plan('tiny', [long], { subtitles: 'none' });
    expect(options.map(({ dtype, load }) => [dtype, load])).toEqual([
      ['f32', '16bit'],
      ['f16', '16bit'],
      ['f32', '8bit'],
      ['f32', '4bit'],
    ]);
    expect([chosen, nearest]).toEqual([0, null]);
    expect(options[0]?.fits).toBe(memory === null ? null : true);
    const weights = options.map((each) => each.weights.languageModel);
    expect(weights[1]).toBe((weights[0] ?? 0) / 2);
    // Large blocks do not fill its rows, so that 4 bits are 8 here.
    expect(weights[3]).toBe(weights[2]);
    expect(weights[2]).toBeLessThan(weights[1] ?? 0);
  });

  it('plans what is asked for, and questions about nothing', async () => {
    const half = await LlamaVid.plan('tiny', [], { dtype: 'bf16' });
    expect(half.options[half.chosen]).toMatchObject({ dtype: 'bf16', load: '16bit', features: 0 });
    const blocks = await LlamaVid.plan('tiny', [video, video], { load: '4bit' });
    expect(blocks.options[blocks.chosen]).toMatchObject({ load: '4bit' });
    const { frames } = await LlamaVid.plan('tiny', [video]);
    expect(blocks.frames).toBe(2 * frames);
  });

  it('refuses layers that cannot be shared before a weight is read', async () => {
    for (const [device, problem] of [
      ['cpu', 'nothing to share'],
      ['cpu,cpu,cpu', '4 heads'],
    ] as const) {
      const options = { device, split: 'tensor' } as const;
      const refused = { code: 'INVALID_ARGUMENT', message: expect.stringContaining(problem) };
      await expect(LlamaVid.plan('tiny', [], options)).rejects.toMatchObject(refused);
      await expect(LlamaVid.load('tiny', options)).rejects.toMatchObject(refused);
    }
    const shared = await LlamaVid.plan('tiny', [video], { device: 'cpu,cpu', split: 'tensor' });
    const alone = await LlamaVid.plan('tiny', [video], { device: 'cpu' });
    const prefill = [shared, alone].map(({ options }) => options[0]?.activations.prefill ?? 0);
    expect(prefill[0]).toBeGreaterThan(prefill[1] ?? 0);
  });

  it('notes a prompt that the context has no room for', async () => {
    const plan = await LlamaVid.plan(join(fixtures, 'random-model'), [long], { frames: 300 });
    expect(plan.promptTokens).toBeGreaterThan(plan.contextLength);
    expect(plan.notes.join()).toMatch(/600 of 300 frames .* context holds 512.*--max-visual-tokens/);
    expect(plan.contextFit).toMatchObject({ frames: expect.any(Number), maxNewTokens: expect.any(Number) });
    expect((await LlamaVid.plan('tiny', [long])).contextFit).toBeNull();
  });

  it('fails with the codes of a question', async () => {
    await expect(LlamaVid.plan('tiny', ['nowhere.mp4'])).rejects.toMatchObject({ code: 'MEDIA_NOT_FOUND' });
    await expect(LlamaVid.plan('nowhere', [])).rejects.toMatchObject({ code: 'MODEL_NOT_FOUND' });
    await expect(LlamaVid.plan('tiny', [], { device: 'cuda:9' })).rejects.toMatchObject({
      code: 'DEVICE_UNAVAILABLE',
    });
  });
});

describe.runIf(process.platform === 'linux')('a run that cannot fit', () => {
  it('is refused before loading, with the nearest setting that fits', async () => {
    const now = await LlamaVid.plan('tiny', []);
    using model = claiming(taking(3, now));
    const refused = await LlamaVid.load(model.folder, { device: 'cpu' }).catch((error: unknown) => error);
    expect(refused).toMatchObject({ code: 'OUT_OF_MEMORY' });
    const { message, hint } = refused as { message: string; hint: string };
    expect(message).toMatch(/[\d.]+ GB are needed with f32 .* are free/);
    // 3 times what is free: half of that in half precision, 34 of 128 bytes in 8 bit.
    expect(hint).toContain('--load 8bit --dtype f32');
    await expect(LlamaVid.load(model.folder, { device: 'cpu', tryAnyway: true })).rejects.not.toMatchObject({
      code: 'OUT_OF_MEMORY',
    });
  });

  it('is planned in half precision where only that fits', async () => {
    using model = claiming(taking(1.4, await LlamaVid.plan('tiny', [])));
    const { options, chosen, nearest } = await LlamaVid.plan(model.folder, []);
    expect(options[chosen]).toMatchObject({ dtype: 'f16', load: '16bit', fits: true });
    expect(nearest).toBeNull();
    const single = await LlamaVid.plan(model.folder, [], { dtype: 'f32' });
    expect(single.options[single.chosen]?.fits).toBe(false);
    expect(single.nearest).toMatchObject({ dtype: 'f16', frames: null });
  });

  it('says so where nothing fits', async () => {
    using model = claiming(taking(100, await LlamaVid.plan('tiny', [])));
    await expect(LlamaVid.load(model.folder, { device: 'cpu' })).rejects.toMatchObject({
      code: 'OUT_OF_MEMORY',
      hint: expect.stringContaining('No format fits'),
    });
  });

  it('is refused before its frames are decoded, where only the question is too much', async () => {
    using folder = claiming({ max_position_embeddings: 1e9 });
    await using model = await LlamaVid.load(folder.folder, { device: 'cpu' });
    let encoded = 0;
    await using clip = await model.open(video, {
      onProgress: (done) => {
        encoded = done;
      },
    });
    const answer = model.ask(clip, question, { maxNewTokens: 9e8 });
    await expect(answer.result()).rejects.toMatchObject({ code: 'OUT_OF_MEMORY' });
    expect(encoded).toBe(0);
    const { usage } = await model.ask(clip, question, { maxNewTokens: 2 }).result();
    expect(usage.completionTokens).toBeGreaterThan(0);
  });
});
