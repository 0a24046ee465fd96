import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { TokenGenerator } from '@llamavid/tokens';
import { Pixels, VisualEncoder } from '@llamavid/vision';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { conversation, LanguageModel, type LoadOptions } from '../src/index.js';

const fixtures = join(import.meta.dirname, '../../../fixtures');
const folder = join(fixtures, 'random-model');
const oracle = JSON.parse(readFileSync(join(fixtures, 'oracle/video-mean/cases.json'), 'utf8'));
const exact = { device: 'cpu', dtype: 'f32' } as const;

/** One uint8 tensor of a safetensors file. */
function readBytes(file: string, name: string): { shape: number[]; data: Uint8Array } {
  const bytes = readFileSync(file);
  const headerLength = Number(bytes.readBigUInt64LE(0));
  const { shape, data_offsets } = JSON.parse(bytes.toString('utf8', 8, 8 + headerLength))[name];
  const [start, end] = data_offsets.map((offset: number) => 8 + headerLength + offset);
  return { shape, data: bytes.subarray(start, end) };
}

describe('LanguageModel', () => {
  let model: LanguageModel;
  beforeAll(async () => {
    model = await LanguageModel.load(folder, exact);
  });
  afterAll(() => model.close());

  it('tells what it is', () => {
    expect(model.contextLength).toBe(512);
    expect(model.dtype).toBe('f32');
    expect(model.device).toBe('cpu');
    expect(model.imagePlaceholder).toBe('<image>');
    expect(model.countTokens('Hello')).toBeGreaterThan(0);
  });

  it('answers the same where several devices share each layer', async () => {
    // Three heads, one each.
    const several = { ...exact, device: 'cpu,cpu,cpu', split: 'tensor' } as const;
    using shared = await LanguageModel.load(folder, several);
    expect(shared.device).toBe('cpu,cpu,cpu');
    const prompt = conversation('llava_v1').render([{ question: 'What is a Q-Former?' }]);
    const ids = [];
    for (const each of [model, shared]) {
      using session = each.createSession();
      ids.push((await session.generate(prompt, { maxNewTokens: 12, stop: '</s>' }).result()).tokenIds);
    }
    expect(ids[1]).toEqual(ids[0]);
  });

  it.each([
    ['cpu', 'tensor', 'nothing to share'],
    ['cpu,cpu', 'tensor', '3 heads'],
    ['cpu,cpu', 'rows', 'layers and tensor'],
  ])('refuses to share %s by %s', async (device, split, problem) => {
    const options = { ...exact, device, split } as unknown as LoadOptions;
    const error = await LanguageModel.load(folder, options).catch((error: unknown) => error);
    expect(error).toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringContaining(problem) });
  });

  it('reads only what differs from what it kept, and answers as from an empty cache', async () => {
    const first = conversation('llava_v1').render([{ question: 'What is a Q-Former?' }]);
    const options = { maxNewTokens: 12, stop: '</s>' };
    using session = model.createSession();
    const generate = (prompt: string, keep: boolean) =>
      session.generate(prompt, { ...options, keep }).result();
    const begun = await generate(first, true);
    expect(begun.keptTokens).toBe(0);
    const second = conversation('llava_v1').render([
      { question: 'What is a Q-Former?', answer: begun.text },
      { question: 'And why?' },
    ]);
    const other = conversation('llava_v1').render([{ question: 'What is a llama?' }]);
    const kept = [];
    let length = 0;
    for (const prompt of [second, other, second, second]) {
      const continued = await generate(prompt, true);
      using fresh = model.createSession();
      const alone = await fresh.generate(prompt, options).result();
      expect(continued.tokenIds).toEqual(alone.tokenIds);
      expect(continued.usage).toEqual(alone.usage);
      kept.push(continued.keptTokens);
      length = continued.usage.promptTokens;
    }
    const [afterFirst = 0, common = 0, , same] = kept;
    // The end of the first prompt may be other tokens before an answer.
    expect(afterFirst).toBeGreaterThanOrEqual(begun.usage.promptTokens - 2);
    expect(common).toBeLessThan(afterFirst);
    expect(same).toBe(length - 1);
    expect((await generate(second, false)).keptTokens).toBe(0);
    expect((await generate(second, true)).keptTokens).toBe(0);
  }, 60_000);

  it('answers with visual tokens as the reference does, token for token', async () => {
    using encoder = await VisualEncoder.load(folder, exact);
    using generator = await TokenGenerator.load(folder, exact);
    for (const id of ['video0', 'video1']) {
      const {
        conversation: template,
        turns,
        prompt,
        frame_index,
        ...expected
      } = oracle.cases.find((each: { id: string }) => each.id === id);
      const all = readBytes(join(fixtures, 'oracle/video-mean/tensors.safetensors'), `${id}/all_frames`);
      const [, height = 0, width = 0] = all.shape;
      const size = height * width * 3;
      const frames = frame_index.map((index: number) => ({
        data: all.data.subarray(index * size, (index + 1) * size),
        width,
        height,
      }));
      const pixels = Pixels.fromRgb(frames, encoder.preprocessing);
      using features = await encoder.encode(pixels);
      pixels.close();
      const [[question]] = turns;
      using tokens = await generator.generate(features, question.replace('<image>\n', ''));
      expect(tokens.frameCount).toBe(frame_index.length);

      const rendered = conversation(template).render([{ question }]);
      expect(rendered).toBe(prompt);
      using session = model.createSession();
      const result = await session
        .generate(rendered, { visualTokens: [tokens], maxNewTokens: 24, stop: conversation(template).stop })
        .result();
      expect(result.tokenIds).toEqual(expected.greedy_ids);
      expect(result.text).toBe(expected.text);
      expect(result.finishReason).toBe('length');
      expect(result.usage).toEqual({
        promptTokens: expected.spliced_length,
        visualTokens: frame_index.length * 2,
        completionTokens: 24,
      });
    }
  });

  const prompt = conversation('vicuna_v1').render([{ question: 'Who is there?' }]);

  it('shows piece by piece what it gives in the end', async () => {
    using session = model.createSession();
    const generation = session.generate(prompt, { maxNewTokens: 40 });
    let text = '';
    for await (const delta of generation) text += delta;
    const result = await generation.result();
    expect(text).toBe(result.text);
    expect(result.timings.firstTokenMs).toBeGreaterThanOrEqual(result.timings.prefillMs);
  });

  it('samples the same with the same seed', async () => {
    using session = model.createSession();
    const sample = async (seed: number) =>
      (await session.generate(prompt, { maxNewTokens: 24, temperature: 1, topP: 1, seed }).result()).tokenIds;
    expect(await sample(1)).toEqual(await sample(1));
    expect(await sample(1)).not.toEqual(await sample(2));
  });

  it('keeps sessions apart that run at the same time', async () => {
    const questions = ['Who is there?', 'What colour is it?', 'Why?'];
    const prompts = questions.map((question) => conversation('vicuna_v1').render([{ question }]));
    const ask = async (text: string) => {
      using session = model.createSession();
      return (await session.generate(text, { maxNewTokens: 24 }).result()).tokenIds;
    };
    const alone: number[][] = [];
    for (const text of prompts) alone.push(await ask(text));
    expect(await Promise.all(prompts.map(ask))).toEqual(alone);
  });

  it('stops at an abort in the middle, and the session goes on', async () => {
    using session = model.createSession();
    const whole = await session.generate(prompt, { maxNewTokens: 300 }).result();
    const controller = new AbortController();
    const generation = session.generate(prompt, { maxNewTokens: 300, signal: controller.signal });
    const read = async () => {
      for await (const _ of generation) controller.abort();
    };
    await expect(read()).rejects.toMatchObject({ code: 'ABORTED' });
    await expect(generation.result()).rejects.toMatchObject({ code: 'ABORTED' });
    expect((await session.generate(prompt, { maxNewTokens: 300 }).result()).tokenIds).toEqual(whole.tokenIds);
  });

  it('refuses a prompt and an answer that do not fit, before reading the prompt', async () => {
    using session = model.createSession();
    const long = session.generate('word '.repeat(600), { maxNewTokens: 10 });
    await expect(long.result()).rejects.toMatchObject({ code: 'CONTEXT_OVERFLOW' });
  });

  it('refuses options that cannot work, at the call', () => {
    using session = model.createSession();
    for (const options of [
      { maxNewTokens: 0 },
      { temperature: -1 },
      { temperature: Number.NaN },
      { topP: 0 },
      { topP: 1.5 },
      { topK: -1 },
      { seed: 0.5 },
      { repetitionPenalty: 0 },
    ]) {
      expect(() => session.generate('Hi', options)).toThrow(
        expect.objectContaining({ code: 'INVALID_ARGUMENT' }),
      );
    }
  });

  it('refuses an image place without visual tokens', async () => {
    using session = model.createSession();
    await expect(session.generate('<image>\nWhat?').result()).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
    });
  });

  it('does not run when it was aborted before', async () => {
    using session = model.createSession();
    const generation = session.generate(prompt, { signal: AbortSignal.abort() });
    await expect(generation.result()).rejects.toMatchObject({ code: 'ABORTED' });
  });

  it('closes twice, and says afterwards that it is closed', async () => {
    const closed = await LanguageModel.load(folder, exact);
    const session = closed.createSession();
    session.close();
    session.close();
    await expect(session.generate('Hi').result()).rejects.toMatchObject({ code: 'HANDLE_CLOSED' });
    closed.close();
    closed.close();
    expect(() => closed.createSession()).toThrow(expect.objectContaining({ code: 'HANDLE_CLOSED' }));
  });

  it('says what is missing', async () => {
    await expect(LanguageModel.load(join(fixtures, 'nowhere'))).rejects.toMatchObject({
      code: 'MODEL_NOT_FOUND',
    });
  });
});
