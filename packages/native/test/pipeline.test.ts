import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  Cancellation,
  callNative,
  callNativeAsync,
  Device,
  type GenerateRequest,
  LanguageModel,
  Pixels,
  Session,
  TokenGenerator,
  VisualEncoder,
  VisualFeatures,
  type VisualTokens,
} from '../src/index.js';

const folder = join(import.meta.dirname, '../../../fixtures/random-model');
const code = (name: string) => expect.objectContaining({ name: 'LlamaVidError', code: name });

let device: Device;
let encoder: VisualEncoder;
let generator: TokenGenerator;
let model: LanguageModel;
let many: Pixels;
let features: VisualFeatures;
let tokens: VisualTokens;

beforeAll(async () => {
  device = Device.open('cpu');
  [encoder, generator, model] = await Promise.all([
    VisualEncoder.load(folder, { device, dtype: 'f32' }),
    TokenGenerator.load(folder, { device, dtype: 'f32' }),
    LanguageModel.load(folder, { device, dtype: 'f32' }),
  ]);
  const frame = (seed: number) => ({
    data: new Uint8Array(100 * 90 * 3).map((_, index) => (index * 7 + seed * 31) % 256),
    width: 100,
    height: 90,
  });
  const frames = [0, 1, 2, 3, 4].map(frame);
  using pixels = Pixels.fromRgb(frames, encoder.preprocessing);
  features = await encoder.encode(pixels);
  many = Pixels.fromRgb(
    Array.from({ length: 64 }, (_, seed) => frame(seed)),
    encoder.preprocessing,
  );
  [tokens] = (await generator.generate(features, ['What is it?'])) as [VisualTokens];
});
afterAll(() => {
  for (const handle of [device, encoder, generator, model, many, features, tokens]) handle.close();
});

const request = (changes: Partial<GenerateRequest> = {}): GenerateRequest => ({
  prompt: 'USER: <image>\nWhat is it? ASSISTANT:',
  visualTokens: [tokens],
  maxNewTokens: 24,
  temperature: 0,
  stop: [],
  ...changes,
});

// Some tests give the device other work first (`encoder.encode(many)`), so that what follows still waits when it is given up.

/** The next piece of an answer. */
const next = (session: Session, cancellation = new Cancellation()) =>
  callNativeAsync(
    async () => (await Promise.all(Session.nextOfEach([{ session, cancellation }])))[0] ?? null,
  );

/** The whole answer. */
async function answer(
  session: Session,
): Promise<{ text: string; tokenIds: number[]; finishReason: string | undefined }> {
  let text = '';
  const tokenIds: number[] = [];
  for (;;) {
    const piece = await next(session);
    if (piece === null) return { text, tokenIds, finishReason: 'none' };
    text += piece.text;
    tokenIds.push(...piece.tokenIds);
    if (piece.finishReason !== undefined) return { text, tokenIds, finishReason: piece.finishReason };
  }
}

describe('the stages', () => {
  it('tell their sizes', () => {
    expect(encoder.preprocessing).toMatchObject({ size: 84, fit: 'crop' });
    expect([encoder.patchCount, encoder.width, encoder.dtype]).toEqual([36, 32, 'f32']);
    expect(features.shape).toEqual([5, 37, 32]);
    expect(generator.width).toBe(48);
    expect([tokens.frameCount, tokens.tokensPerFrame, tokens.shape]).toEqual([5, 2, [10, 48]]);
    expect([model.contextLength, model.dtype, model.imagePlaceholder]).toEqual([512, 'f32', '<image>']);
    expect(model.countTokens('')).toBe(0);
    expect(model.countTokens('What is it?')).toBeGreaterThan(3);
  });

  it('gives each question its own tokens, equal to those of the question alone', async () => {
    const [first, second] = await generator.generate(features, ['Who?', 'What is it?']);
    expect(await first?.toFloat32Array()).not.toEqual(await second?.toFloat32Array());
    const [together, alone] = [await second?.toFloat32Array(), await tokens.toFloat32Array()];
    expect(together?.length).toBe(alone.length);
    for (const [index, value] of alone.entries()) expect(together?.[index]).toBeCloseTo(value, 4);
  });

  it('refuse what does not fit', async () => {
    using small = Pixels.fromRgb([{ data: new Uint8Array(12), width: 2, height: 2 }], {
      ...encoder.preprocessing,
      size: 28,
    });
    await expect(callNativeAsync(encoder.encode(small))).rejects.toEqual(code('INVALID_ARGUMENT'));
    await expect(callNativeAsync(generator.generate(features, []))).rejects.toEqual(code('INVALID_ARGUMENT'));
    using narrow = await VisualFeatures.fromFloat32Array(
      new Float32Array(37 * 16),
      [1, 37, 16],
      device,
      'pixels',
    );
    await expect(callNativeAsync(generator.generate(narrow, ['What?']))).rejects.toEqual(
      code('INVALID_ARGUMENT'),
    );
  });
});

describe('loading', () => {
  it('says what is missing', async () => {
    const load = (path: string) => callNativeAsync(LanguageModel.load(path, { device }));
    await expect(load(join(folder, 'nowhere'))).rejects.toEqual(code('MODEL_NOT_FOUND'));
    await expect(load(import.meta.dirname)).rejects.toEqual(code('MODEL_FILE_MISSING'));
    const dtype = 'f8' as 'f16';
    await expect(callNativeAsync(LanguageModel.load(folder, { device, dtype }))).rejects.toEqual(
      code('INVALID_ARGUMENT'),
    );
  });

  it('is cancelled', async () => {
    const cancellation = new Cancellation();
    cancellation.cancel();
    await expect(callNativeAsync(VisualEncoder.load(folder, { device, cancellation }))).rejects.toEqual(
      code('ABORTED'),
    );
  });

  it('reads every dtype', async () => {
    for (const dtype of ['auto', 'bf16', 'f16'] as const) {
      using loaded = await LanguageModel.load(folder, { device, dtype });
      expect(loaded.dtype).toBe(dtype === 'auto' ? 'f32' : dtype);
      using session = loaded.createSession();
      await session.start(request());
      expect((await answer(session)).tokenIds.length).toBeGreaterThan(0);
    }
  });
});

describe('Session', () => {
  it('answers the same twice, and as long as it was asked to', async () => {
    using session = model.createSession();
    const started = await session.start(request());
    expect(started.visualTokens).toBe(10);
    expect(started.promptTokens).toBeGreaterThan(20);
    const first = await answer(session);
    expect(first.tokenIds.length).toBe(24);
    expect(first.finishReason).toBe('length');
    expect(await next(session)).toBeNull();
    await session.start(request());
    expect(await answer(session)).toEqual(first);
  });

  it('takes turns with other sessions and gives what it gives alone', async () => {
    const sessions = [3, 4, 5].map((seed) => ({ seed, session: model.createSession() }));
    const run = async ({ seed, session }: { seed: number; session: Session }) => {
      await session.start(request({ temperature: 1, seed }));
      return await answer(session);
    };
    const alone = [];
    for (const each of sessions) alone.push(await run(each));
    expect(await Promise.all(sessions.map(run))).toEqual(alone);
    expect(new Set(alone.map(({ text }) => text)).size).toBeGreaterThan(1);
    for (const { session } of sessions) session.close();
  });

  it('ends before a stop text', async () => {
    using session = model.createSession();
    await session.start(request());
    const whole = await answer(session);
    const stop = whole.text.slice(6, 9);
    await session.start(request({ stop: [stop] }));
    const stopped = await answer(session);
    expect(stopped.finishReason).toBe('stop');
    expect(stopped.text).toBe(whole.text.slice(0, whole.text.indexOf(stop)).trim());
  });

  it('checks its arguments before it works', async () => {
    using session = model.createSession();
    const start = (changes: Partial<GenerateRequest>) => callNativeAsync(session.start(request(changes)));
    for (const changes of [
      { visualTokens: [] },
      { visualTokens: [tokens, tokens] },
      { maxNewTokens: 0 },
      { maxNewTokens: 1.5 },
      { temperature: -1 },
      { temperature: Number.NaN },
      { temperature: 1, topP: 0 },
      { topK: -1 },
      { seed: -1 },
      { stop: [''] },
      { layout: 'per-frame' as 'per-token' },
      { layout: 'per-token' as const },
    ]) {
      await expect(start(changes), JSON.stringify(changes)).rejects.toEqual(code('INVALID_ARGUMENT'));
    }
    await expect(start({ prompt: `<image>${'long '.repeat(600)}` })).rejects.toEqual(
      code('CONTEXT_OVERFLOW'),
    );
    await expect(next(session)).rejects.toEqual(code('INVALID_ARGUMENT'));
  });

  it('places single tokens', async () => {
    using session = model.createSession();
    const prompt = `USER: ${'<image><image> a frame. '.repeat(5)} ASSISTANT:`;
    expect((await session.start(request({ prompt, layout: 'per-token' }))).visualTokens).toBe(10);
  });

  it('stops between steps when it is cancelled, and can start again', async () => {
    using session = model.createSession();
    await session.start(request());
    const cancellation = new Cancellation();
    cancellation.cancel();
    await expect(next(session, cancellation)).rejects.toEqual(code('ABORTED'));
    await expect(next(session)).rejects.toEqual(code('INVALID_ARGUMENT'));
    await expect(callNativeAsync(session.start(request(), cancellation))).rejects.toEqual(code('ABORTED'));
    await session.start(request());
    expect((await answer(session)).tokenIds.length).toBe(24);
  });

  it('gives an answer up when the next one starts', async () => {
    using session = model.createSession();
    const earlier = encoder.encode(many);
    const first = callNativeAsync(session.start(request()));
    const second = callNativeAsync(session.start(request()));
    await expect(first).rejects.toEqual(code('ABORTED'));
    expect((await second).visualTokens).toBe(10);
    (await earlier).close();

    const earlierStill = encoder.encode(many);
    const pending = next(session);
    await expect(next(session)).rejects.toEqual(code('INVALID_ARGUMENT'));
    expect(await pending).not.toBeNull();
    (await earlierStill).close();
  });

  it('closes while it works, and twice', async () => {
    const session = model.createSession();
    await session.start(request());
    const earlier = encoder.encode(many);
    const pending = next(session);
    session.close();
    session.close();
    await expect(pending).rejects.toEqual(code('ABORTED'));
    (await earlier).close();
    await expect(next(session)).rejects.toEqual(code('HANDLE_CLOSED'));
    await expect(callNativeAsync(session.start(request()))).rejects.toEqual(code('HANDLE_CLOSED'));
  });

  it('outlives the handle of its model', async () => {
    const loaded = await LanguageModel.load(folder, { device });
    const session = loaded.createSession();
    loaded.close();
    loaded.close();
    expect(() => callNative(() => loaded.createSession())).toThrow(code('HANDLE_CLOSED'));
    await session.start(request());
    expect((await answer(session)).tokenIds.length).toBe(24);
    session.close();
  });

  it('refuses tokens that are closed', async () => {
    const [own] = (await generator.generate(features, ['Who?'])) as [VisualTokens];
    own.close();
    own.close();
    using session = model.createSession();
    await expect(callNativeAsync(session.start(request({ visualTokens: [own] })))).rejects.toEqual(
      code('HANDLE_CLOSED'),
    );
  });
});
