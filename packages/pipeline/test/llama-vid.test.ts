import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { conversation, LanguageModel } from '@llamavid/llm';
import { TokenGenerator } from '@llamavid/tokens';
import { openMedia } from '@llamavid/video';
import { VisualEncoder } from '@llamavid/vision';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { LlamaVid } from '../src/index.js';
import { fixtures, OracleModel } from './oracle-model.js';

const folder = join(fixtures, 'random-model');
const clipFile = join(fixtures, 'clips/bbb_vp9.webm');
const exact = { device: 'cpu', dtype: 'f32' } as const;

describe('pictures of the oracle', () => {
  for (const variant of ['image-224', 'image-336', 'image-grid4', 'start-end']) {
    it(`${variant}: the same text as the reference`, async () => {
      using oracle = new OracleModel(variant);
      const expected = oracle.find('single');
      await using model = await LlamaVid.load(oracle.folder, exact);
      await using picture = await model.open(oracle.picture(expected));
      const question = expected.turns[0]?.[0].replace(/^.*<image>.*\n/, '') ?? '';
      const result = await model
        .ask(picture, question, { conversation: expected.conversation, maxNewTokens: 24 })
        .result();
      expect(result.tokenIds).toEqual(expected.greedy_ids);
      expect(result.text).toBe(expected.text);
      expect(result.usage.promptTokens).toBe(expected.spliced_length);
    });
  }
});

/** The answer to `turns` about three frames of the clip, whose tokens are made for `question`, stage by stage. */
async function answerByHand(
  question: string,
  turns: readonly { question: string; answer?: string }[],
): Promise<number[]> {
  using encoder = await VisualEncoder.load(folder, exact);
  using generator = await TokenGenerator.load(folder, exact);
  using languageModel = await LanguageModel.load(folder, exact);
  await using media = await openMedia(clipFile, { frames: 3 });
  using session = languageModel.createSession();
  for await (const { pixels } of media.pixels(encoder.preprocessing, { batchSize: 3 })) {
    using features = await encoder.encode(pixels);
    pixels.close();
    using tokens = await generator.generate(features, question);
    const prompt = conversation('llava_v1').render(turns);
    const options = { visualTokens: [tokens], maxNewTokens: 8, stop: '</s>' };
    return (await session.generate(prompt, options).result()).tokenIds;
  }
  throw new Error('the clip gave no frame');
}

describe('LlamaVid', () => {
  let model: LlamaVid;
  beforeAll(async () => {
    model = await LlamaVid.load(folder, exact);
  });
  afterAll(() => model.close());

  it('answers as the stages by themselves do', async () => {
    const question = 'What happens in the video?';
    await using clip = await model.open(clipFile, { frames: 5 });
    const { tokenIds, sampling } = await model.ask(clip, question, { maxNewTokens: 16 }).result();

    await using media = await openMedia(clipFile, { frames: 5 });
    using encoder = await VisualEncoder.load(folder, exact);
    using generator = await TokenGenerator.load(folder, exact);
    using languageModel = await LanguageModel.load(folder, exact);
    using session = languageModel.createSession();
    for await (const { pixels } of media.pixels(encoder.preprocessing, { batchSize: 5 })) {
      using features = await encoder.encode(pixels);
      pixels.close();
      using tokens = await generator.generate(features, question);
      const prompt = conversation('llava_v1').render([{ question: `<image>\n${question}` }]);
      const staged = await session
        .generate(prompt, { visualTokens: [tokens], maxNewTokens: 16, stop: '</s>' })
        .result();
      expect(tokenIds).toEqual(staged.tokenIds);
    }
    expect(sampling.timestamps).toEqual(media.report().timestamps);
  });

  it('decodes and encodes once, and says who did the work', async () => {
    const progress: number[][] = [];
    await using clip = await model.open(clipFile, { onProgress: (...done) => progress.push(done) });
    expect(progress).toEqual([]);
    const [first, second] = await Promise.all([
      model.ask(clip, 'What happens?', { maxNewTokens: 4 }).result(),
      model.ask(clip, 'Who is there?', { maxNewTokens: 4 }).result(),
    ]);
    const third = await model.ask(clip, 'Why?', { maxNewTokens: 4 }).result();
    const { frames } = first.sampling;
    expect(frames).toBeGreaterThan(1);
    expect(first.sampling.timestamps).toHaveLength(frames);
    expect(first.work.framesEncoded + second.work.framesEncoded).toBe(frames);
    expect(third.work).toEqual({ framesDecoded: 0, framesEncoded: 0, storeHit: false });
    expect(third.timings.encodeMs).toBe(0);
    expect(progress.at(-1)).toEqual([frames, frames, 0]);
    expect(first.usage.visualTokens).toBe(frames * 2);
    expect(first.model).toEqual({ name: 'random-model', dtype: 'f32', device: 'cpu' });
    for (const value of Object.values(first.timings)) expect(value).toBeGreaterThanOrEqual(0);
    expect(first.timings.totalMs).toBeGreaterThanOrEqual(first.timings.firstTokenMs);
    expect(first.timings.peakRssBytes).toBeGreaterThan(10_000_000);
  });

  it('does not let questions that run together change each other', async () => {
    await using clip = await model.open(clipFile, { frames: 4 });
    const questions = ['What happens?', 'Who is there?', 'What colour is the car?', 'Why?'];
    const ask = async (question: string) =>
      (await model.ask(clip, question, { maxNewTokens: 24 }).result()).tokenIds;
    const alone: number[][] = [];
    for (const question of questions) alone.push(await ask(question));
    expect(await Promise.all(questions.map(ask))).toEqual(alone);

    // Step by step in turns, as two readers of streams would.
    const streams = questions.slice(0, 2).map((question) => model.ask(clip, question, { maxNewTokens: 24 }));
    const iterators = streams.map((stream) => stream[Symbol.asyncIterator]());
    let open = iterators.length;
    while (open > 0) {
      const steps = [];
      for (const iterator of iterators) steps.push(await iterator.next());
      open = steps.filter((step) => !step.done).length;
    }
    const interleaved = await Promise.all(streams.map(async (stream) => (await stream.result()).tokenIds));
    expect(interleaved).toEqual(alone.slice(0, 2));
  });

  it('answers about several media, and about none', async () => {
    const picture = join(fixtures, 'oracle/image-224/data/images/im0.png');
    await using first = await model.open(clipFile, { frames: 3 });
    await using second = await model.open(picture);
    expect([first.kind, second.kind]).toEqual(['video', 'image']);
    const both = await model.ask([first, second], 'What differs?', { maxNewTokens: 4 }).result();
    expect(both.usage.visualTokens).toBe(8);
    expect(both.samplings.map((sampling) => sampling.frames)).toEqual([3, 1]);
    const other = await model.ask([second, first], 'What differs?', { maxNewTokens: 4 }).result();
    expect(other.samplings.map((sampling) => sampling.frames)).toEqual([1, 3]);
    const none = await model.ask(undefined, 'Who are you?', { maxNewTokens: 4 }).result();
    expect(none.sampling).toBeUndefined();
    expect(none.usage.visualTokens).toBe(0);
  });

  it('reads bytes as it reads their file', async () => {
    const bytes = readFileSync(clipFile);
    await using fromFile = await model.open(clipFile, { frames: 3 });
    await using fromBytes = await model.open(bytes, { frames: 3, name: 'bytes' });
    const [expected, actual] = await Promise.all(
      [fromFile, fromBytes].map((clip) => model.ask(clip, 'What is it?', { maxNewTokens: 8 }).result()),
    );
    expect(actual?.tokenIds).toEqual(expected?.tokenIds);
  });

  it('keeps the event loop free while the model runs', async () => {
    await using clip = await model.open(clipFile);
    let turns = 0;
    let running = true;
    const turn = () => {
      turns += 1;
      if (running) setImmediate(turn);
    };
    turn();
    const { tokenIds } = await model.ask(clip, 'What happens?', { maxNewTokens: 200 }).result();
    running = false;
    // Were the work done on the loop, it would turn about once for each reply: a batch of frames or up to 16 tokens.
    // `pnpm bench:loop` measures the delay itself.
    expect(turns).toBeGreaterThan(10 * (tokenIds.length + 6));
  });

  it('stops in the middle of an answer', async () => {
    await using clip = await model.open(clipFile, { frames: 3 });
    const controller = new AbortController();
    const answer = model.ask(clip, 'What happens?', { maxNewTokens: 300, signal: controller.signal });
    const read = async () => {
      for await (const _ of answer) controller.abort();
    };
    await expect(read()).rejects.toMatchObject({ code: 'ABORTED' });
    await expect(answer.result()).rejects.toMatchObject({ code: 'ABORTED' });
    expect((await model.ask(clip, 'What happens?', { maxNewTokens: 4 }).result()).tokenIds).toHaveLength(4);
  });

  it('stops while frames are encoded, and encodes them for the next question', async () => {
    const controller = new AbortController();
    await using clip = await model.open(clipFile, { onProgress: () => controller.abort() });
    const aborted = model.ask(clip, 'What happens?', { signal: controller.signal });
    await expect(aborted.result()).rejects.toMatchObject({ code: 'ABORTED' });
    const { work, sampling } = await model.ask(clip, 'What happens?', { maxNewTokens: 4 }).result();
    expect(work.framesEncoded).toBe(sampling.frames);
  });

  it('says before any work what cannot work', async () => {
    const refused = expect.objectContaining({ code: 'INVALID_ARGUMENT' });
    expect(() => model.ask(undefined, 'Hi', { temperature: -1 })).toThrow(refused);
    expect(() => model.ask(undefined, 'What is <image>?')).toThrow(refused);
    expect(() => model.ask(undefined, 'Hi', { conversation: 'nobody' })).toThrow(refused);
    // @ts-expect-error Not in the types either.
    await expect(LlamaVid.load(folder, { load: '2bit' })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
    });
    // @ts-expect-error Not in the types either.
    await expect(model.ask(undefined, 'Hi', { kvCache: '2bit' }).result()).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
    });
    await expect(LlamaVid.load(join(fixtures, 'nowhere'))).rejects.toMatchObject({ code: 'MODEL_NOT_FOUND' });
    await expect(model.open('nowhere.mp4')).rejects.toMatchObject({ code: 'MEDIA_NOT_FOUND' });
  });

  it('closes twice, and what was opened with it too', async () => {
    const closed = await LlamaVid.load(folder, exact);
    const clip = await closed.open(clipFile, { frames: 2 });
    await clip.encode();
    await clip.close();
    await clip.close();
    await expect(closed.ask(clip, 'What?').result()).rejects.toMatchObject({ code: 'HANDLE_CLOSED' });
    const left = await closed.open(clipFile, { frames: 2 });
    await closed.close();
    await closed.close();
    await expect(left.encode()).rejects.toMatchObject({ code: 'HANDLE_CLOSED' });
  });
});

describe('Chat', () => {
  let model: LlamaVid;
  beforeAll(async () => {
    model = await LlamaVid.load(folder, exact);
  });
  afterAll(() => model.close());

  it('puts the video in front of the newest question alone', async () => {
    await using clip = await model.open(clipFile, { frames: 3 });
    const chat = model.chat(clip, { maxNewTokens: 8 });
    const first = await chat.send('What happens?').result();
    const second = await chat.send('And then?').result();
    expect(chat.history.map((turn) => turn.question)).toEqual(['What happens?', 'And then?']);
    expect(second.usage.visualTokens).toBe(6);

    // The same turn put together by hand.
    const turns = [{ question: 'What happens?', answer: first.text }, { question: '<image>\nAnd then?' }];
    expect(second.tokenIds).toEqual(await answerByHand('And then?', turns));
  });

  it('keeps the visual prefix where it is told to', async () => {
    await using clip = await model.open(clipFile, { frames: 3 });
    const exactly = await model.chat(clip, { maxNewTokens: 8 }).send('What happens?').result();
    using chat = model.chat(clip, { maxNewTokens: 8, followUps: 'keep-visual-prefix' });
    const first = await chat.send('What happens?').result();
    expect([first.tokenIds, first.keptTokens]).toEqual([exactly.tokenIds, 0]);
    const second = await chat.send('And then?').result();
    expect(second.usage.visualTokens).toBe(6);
    expect(second.keptTokens).toBeGreaterThanOrEqual(first.usage.promptTokens - 2);

    // The same turn put together by hand: the first question's tokens in front of the first question.
    const turns = [{ question: '<image>\nWhat happens?', answer: first.text }, { question: 'And then?' }];
    expect(second.tokenIds).toEqual(await answerByHand('What happens?', turns));
    // Another video: nothing of before can stay.
    chat.add(clip);
    const third = await chat.send('And now?').result();
    expect([third.keptTokens, third.usage.visualTokens]).toEqual([0, 12]);
    chat.close();
    chat.close();
  });

  it('forgets what was stopped and what it is told to forget', async () => {
    const chat = model.chat(undefined, { maxNewTokens: 8 });
    const fresh = await chat.send('Who are you?').result();
    for await (const _ of chat.send('And?')) break;
    expect(chat.history).toHaveLength(1);
    chat.reset();
    expect(chat.history).toHaveLength(0);
    expect((await chat.send('Who are you?').result()).tokenIds).toEqual(fresh.tokenIds);
  });

  it('answers one question at a time', async () => {
    const chat = model.chat(undefined, { maxNewTokens: 8 });
    const first = chat.send('Who are you?').result();
    await expect(chat.send('And who am I?').result()).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await first;
    expect(chat.history).toHaveLength(1);
  });
});
