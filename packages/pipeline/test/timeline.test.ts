import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { WorldVideo } from '@llamavid/native';
import { writeVideo } from '@llamavid/video';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { LlamaVid, type Timeline, timelineToVtt } from '../src/index.js';
import { fixtures } from './oracle-model.js';

const clipFile = join(fixtures, 'clips/bbb_vp9.webm');

describe('a timeline', () => {
  let model: LlamaVid;
  beforeAll(async () => {
    model = await LlamaVid.load('tiny', { device: 'cpu', dtype: 'f32' });
  });
  afterAll(() => model.close());

  it('has every frame with its second, with the answer or without', async () => {
    await using clip = await model.open(clipFile, { frames: 5 });
    const question = 'where is the red star?';
    const alone = await model.timeline(clip, question);
    const { timelines, sampling } = await model
      .ask(clip, question, { timeline: true, maxNewTokens: 2 })
      .result();
    expect(timelines).toEqual([alone]);
    expect(alone.frames.map(({ time }) => time)).toEqual(sampling.timestamps);
    expect(alone.frames.every(({ relevance }) => Number.isFinite(relevance))).toBe(true);
    const silent = await model.ask(clip, question, { maxNewTokens: 2 }).result();
    expect(silent.timelines).toEqual([]);
    const stopped = model.timeline(clip, question, { signal: AbortSignal.abort() });
    await expect(stopped).rejects.toMatchObject({ code: 'ABORTED' });
  });

  it('does not depend on how many frames are computed at once', async () => {
    await using few = await model.open(join(fixtures, 'world/media/long-000.mp4'), { end: 40 });
    await using many = await model.open(join(fixtures, 'world/media/long-000.mp4'), { end: 130 });
    const question = 'where is the blue circle?';
    const [short, whole] = [await model.timeline(few, question), await model.timeline(many, question)];
    for (const [frame, { relevance }] of short.frames.entries()) {
      expect(whole.frames[frame]?.relevance).toBeCloseTo(relevance, 3);
    }
  });
});

describe('the timeline of the embedded model', () => {
  const folder = mkdtempSync(join(tmpdir(), 'llamavid-timeline-'));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  it('finds the one scene of ten minutes that shows what is asked about', { timeout: 300_000 }, async () => {
    await using model = await LlamaVid.load('tiny', { device: 'cpu', dtype: 'f32' });
    let [asked, found, first] = [0, 0, 0];
    for (const index of [0, 1]) {
      const drawn = { seed: 7, index, kind: 'needle', neverTrained: 'forbid', phrasing: 'trained' } as const;
      const world = new WorldVideo(drawn);
      const path = join(folder, `${index}.mp4`);
      const { width, height, crf } = world;
      await writeVideo(path, everySecond(world), { width, height, fps: 1, crf, preset: 'ultrafast' });
      await using clip = await model.open(path);
      for (const { question, evidence: [from = 0, to = 0] = [] } of world.questions) {
        const { frames, moments } = await model.timeline(clip, question);
        expect(frames.length).toBeGreaterThanOrEqual(600);
        const best = frames
          .toSorted((left, right) => right.relevance - left.relevance)
          .slice(0, frames.length / 100);
        asked += 1;
        found += best.some(({ time }) => time >= from && time < to) ? 1 : 0;
        first += (moments[0]?.start ?? to) < to && (moments[0]?.end ?? from) > from ? 1 : 0;
      }
    }
    // By chance 1 in 25; `pnpm eval:timeline` measures it.
    expect(asked).toBeGreaterThan(3);
    expect(
      [found / asked, first / asked].every((share) => share > 0.5),
      `${found}, ${first} of ${asked}`,
    ).toBe(true);
  });

  async function* everySecond(world: WorldVideo): AsyncGenerator<Uint8Array> {
    for (let frame = 0; frame < world.frameCount; frame += world.fps) yield await world.renderFrame(frame);
  }
});

describe('timelineToVtt', () => {
  it('writes chapters in order of time, ranked', () => {
    const timeline: Timeline = {
      question: 'where is\n<it> --> & why?',
      frames: [],
      moments: [
        { start: 3661.5, end: 3662, peak: 3661.5, relevance: 4 },
        { start: 2, end: 5, peak: 3, relevance: 3 },
      ],
    };
    const text = 'where is &lt;it&gt; --&gt; &amp; why?';
    expect(timelineToVtt(timeline)).toBe(
      `WEBVTT\n\n00:00:02.000 --> 00:00:05.000\n2. ${text}\n\n01:01:01.500 --> 01:01:02.000\n1. ${text}\n`,
    );
    expect(timelineToVtt({ ...timeline, moments: [] })).toBe('WEBVTT\n\n');
  });
});
