import { join } from 'node:path';
import { LlamaVidError } from '@llamavid/errors';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { LlamaVid, type OpenOptions } from '../src/index.js';
import { fixtures } from './oracle-model.js';

const long = join(fixtures, 'world/media/long-000.mp4');
const said = join(fixtures, 'world/media/long-000.srt');
const picture = join(fixtures, 'world/media/image-000.png');

// 275 frames of two tokens, in a context of 512.
describe('a video that does not fit the context', () => {
  let model: LlamaVid;
  beforeAll(async () => {
    model = await LlamaVid.load(join(fixtures, 'random-model'), { device: 'cpu', dtype: 'f32' });
  });
  afterAll(() => model.close());

  const ask = async (options: OpenOptions = {}, maxNewTokens = 64) => {
    let decoded = 0;
    await using clip = await model.open(long, {
      ...options,
      onProgress: (done) => {
        decoded = done;
      },
    });
    try {
      return await model.ask(clip, 'What happens?', { maxNewTokens }).result();
    } catch (error) {
      expect(decoded).toBe(0);
      if (error instanceof LlamaVidError) return error;
      throw error;
    }
  };
  const refused = async (options?: OpenOptions, maxNewTokens?: number) => {
    const error = await ask(options, maxNewTokens);
    if (!(error instanceof LlamaVidError)) throw new Error('it was answered');
    expect(error.code).toBe('CONTEXT_OVERFLOW');
    return error;
  };

  it('says so with numbers before it is decoded, and what it offers fits', async () => {
    const { message, hint = '' } = await refused();
    expect(message).toMatch(/the prompt has \d+ tokens, 550 of 275 frames and \d+ of text, .* holds 512/);
    const number = (flag: string) => Number(new RegExp(`${flag} ([\\d.]+)`).exec(hint)?.[1]);
    const seconds = Number(/([\d]+) seconds of the video/.exec(hint)?.[1]);
    const frames = number('--frames');
    const offers: OpenOptions[] = [
      { fps: number('--fps') },
      { frames },
      { maxVisualTokens: number('--max-visual-tokens') },
      { start: 3, end: 3 + seconds },
    ];
    for (const offer of offers) {
      const answer = await ask(offer);
      if (answer instanceof LlamaVidError) throw answer;
      const { usage, sampling } = answer;
      // As much as there is room for beside the answer, give or take a step.
      expect(usage.promptTokens + 64, JSON.stringify(offer)).toBeLessThanOrEqual(512);
      expect(usage.visualTokens).toBe(2 * sampling.frames);
      expect(sampling.frames).toBeGreaterThan(frames / 2);
    }
    await refused({ frames: 275 });
  });

  it('is thinned out evenly where a limit says so, and reported', async () => {
    const answer = await ask({ maxVisualTokens: 101 });
    if (answer instanceof LlamaVidError) throw answer;
    const { sampling, usage } = answer;
    expect([sampling.frames, sampling.omitted, usage.visualTokens]).toEqual([50, 225, 100]);
    expect([sampling.timestamps[0], sampling.timestamps.at(-1)]).toEqual([0, 274]);
    expect(sampling.notes.join()).toContain('225 more were asked for, 50 at most');
    expect(sampling.fps).toBeCloseTo(50 / 275, 2);
    const gaps = sampling.timestamps.slice(1).map((time, index) => time - (sampling.timestamps[index] ?? 0));
    expect(Math.max(...gaps) - Math.min(...gaps)).toBeLessThanOrEqual(1);
  });

  it('has no use for a limit below a frame', async () => {
    for (const maxVisualTokens of [0, 1, 2.5, Number.NaN]) {
      const opened = model.open(long, { maxVisualTokens });
      await expect(opened).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    }
    await using one = await model.open(long, { maxVisualTokens: 2 });
    expect((await one.encode()).frames).toBe(1);
  });

  it('offers a limit for each of several, and room for a shorter answer', async () => {
    await using first = await model.open(long);
    await using second = await model.open(picture);
    const both = model.ask([first, second], 'What?', { maxNewTokens: 64 }).result();
    await expect(both).rejects.toMatchObject({
      code: 'CONTEXT_OVERFLOW',
      hint: expect.stringMatching(/this fits: --max-visual-tokens \d+\.$/),
    });
    const { hint } = await refused({}, 512);
    expect(hint).toMatch(/room for an answer of [12] tokens/);
  });

  it('says when its text alone is too long', async () => {
    const { hint } = await refused({ subtitles: said });
    expect(hint).toContain('The text alone leaves no room');
  });
});
