import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { TokenGenerator } from '@llamavid/tokens';
import { shardFrames, VideoStore, VisualEncoder } from '@llamavid/vision';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { encodeVideos, LlamaVid } from '../src/index.js';
import { fixtures } from './oracle-model.js';

const clipFile = join(fixtures, 'clips/bbb_vp9.webm');
const long = join(fixtures, 'world/media/long-000.mp4');
const folder = join(fixtures, 'random-model');
const exact = { device: 'cpu', dtype: 'f32' } as const;

describe('a model with a store', () => {
  let place: string;
  let model: LlamaVid;
  let next = 0;
  beforeAll(async () => {
    place = mkdtempSync(join(tmpdir(), 'llamavid-store-'));
    model = await LlamaVid.load('tiny', exact);
  });
  afterAll(async () => {
    await model.close();
    rmSync(place, { recursive: true, force: true });
  });
  const fresh = () => join(place, `store-${next++}`);

  it('answers from features that another model object stored, token for token', async () => {
    const store = fresh();
    const questions = ['what appears first?', 'how many scenes are there?', 'is there a red star?'];
    await using clip = await model.open(long, { store });
    const first = [];
    for (const question of questions) first.push(await model.ask(clip, question).result());
    expect(first.map(({ work }) => work.storeHit)).toEqual([false, true, true]);
    await using other = await LlamaVid.load('tiny', exact);
    await using found = await other.open(long, { store });
    expect([found.kind, found.expectedFrames]).toEqual(['video', clip.expectedFrames]);
    expect(found.info).toEqual(clip.info);
    for (const [index, question] of questions.entries()) {
      const again = await other.ask(found, question).result();
      expect(again.tokenIds).toEqual(first[index]?.tokenIds);
      expect(again.sampling).toEqual({ ...first[index]?.sampling, framesDecoded: 0 });
      expect(again.work).toEqual({ framesDecoded: 0, framesEncoded: 0, storeHit: true });
    }
  });

  it('does not take what another model stored', async () => {
    const store = fresh();
    await using clip = await model.open(clipFile, { store });
    await clip.encode();
    await using other = await LlamaVid.load(folder, exact);
    await using same = await other.open(clipFile, { store });
    const { work } = await other.ask(same, 'What?', { maxNewTokens: 2 }).result();
    expect([work.storeHit, work.framesEncoded > 0]).toEqual([false, true]);
    expect(await (await VideoStore.open(store)).list()).toHaveLength(2);
  });

  it('waits for another writer, and fails where it shall not wait', async () => {
    const store = await VideoStore.open(fresh());
    await using clip = await model.open(clipFile, { store });
    await using same = await model.open(clipFile, { store });
    await using hasty = await model.open(clipFile, { store, whenLocked: 'fail' });
    const [first, second, third] = await Promise.allSettled([clip.encode(), same.encode(), hasty.encode()]);
    expect([first.status, second.status]).toEqual(['fulfilled', 'fulfilled']);
    if (third.status === 'rejected') expect(third.reason).toMatchObject({ code: 'STORE_LOCKED' });
    const works = [];
    for (const each of [clip, same]) {
      works.push((await model.ask(each, 'what appears first?', { maxNewTokens: 2 }).result()).work);
    }
    expect(works).toEqual(works.map(() => ({ framesDecoded: 0, framesEncoded: 0, storeHit: true })));
    // An abort ends the waiting.
    await store.remove((await store.list())[0]?.key ?? '');
    using encoder = await VisualEncoder.load((await import('@llamavid/tiny')).modelPath, exact);
    const entry = await store.find(encoder, clipFile, { sampling: 'any' });
    using writer = await entry.writer();
    expect([writer.isComplete, writer.times]).toEqual([false, []]);
    await expect(entry.writer({ wait: true, signal: AbortSignal.timeout(300) })).rejects.toMatchObject({
      code: 'ABORTED',
    });
  });

  it('goes on behind what an aborted run stored', async () => {
    const store = fresh();
    const controller = new AbortController();
    const progress: [number, number, number][] = [];
    const encode = async (signal?: AbortSignal) => {
      const options = { store, fps: 8, signal, ...exact };
      const onProgress = (...frames: [number, number, number]) => {
        progress.push(frames);
        if (frames[0] >= 3 * shardFrames) controller.abort();
      };
      for await (const video of encodeVideos([long], { ...options, onProgress })) return video;
      throw new Error('no video');
    };
    await expect(encode(controller.signal)).rejects.toMatchObject({ code: 'ABORTED' });
    const whole = await encode();
    const { frames, timestamps } = whole.sampling;
    expect(whole.work.framesEncoded).toBeLessThanOrEqual(frames - 2 * shardFrames);
    expect(progress.at(-1)?.slice(0, 2)).toEqual([frames, frames]);
    expect(progress.at(-1)?.[2]).toBeGreaterThanOrEqual(2 * shardFrames);
    const reference = { store: fresh(), fps: 8, ...exact };
    for await (const { sampling } of encodeVideos([long], reference)) {
      expect(sampling.timestamps).toEqual(timestamps);
    }
  });

  it('answers several questions in one pass as each by itself', async () => {
    await using clip = await model.open(long, { store: fresh() });
    const questions = ['what appears first?', 'is there a blue circle?', 'how many scenes are there?'];
    const alone = [];
    for (const question of questions) alone.push((await model.ask(clip, question).result()).tokenIds);
    const together = await Promise.all(model.askEach(clip, questions).map((answer) => answer.result()));
    expect(together.map(({ tokenIds }) => tokenIds)).toEqual(alone);
  });

  it('answers more questions than are in the making at once, in any order of reading', async () => {
    await using clip = await model.open(join(fixtures, 'world/media/multi-010.mp4'), { store: fresh() });
    const questions = Array.from({ length: 19 }, (_, index) =>
      index % 2 === 0 ? `is there a red star in scene ${index} ?` : 'what appears first?',
    );
    const passes = vi.spyOn(TokenGenerator.prototype, 'generateEach');
    const results = await Promise.all(model.askEach(clip, questions).map((answer) => answer.result()));
    expect(passes.mock.calls.map(([, together]) => together.length)).toEqual([16, 3]);
    passes.mockRestore();
    const expected = await model.ask(clip, 'what appears first?').result();
    expect(results[1]?.tokenIds).toEqual(expected.tokenIds);
    expect(results[17]?.tokenIds).toEqual(expected.tokenIds);
    expect(results.filter(({ work }) => work.framesEncoded > 0)).toHaveLength(1);

    // One after the other, one that is left, and one that is never read.
    const [first, second, third] = model.askEach(clip, questions.slice(0, 3), { maxNewTokens: 4 });
    for await (const _ of first ?? []) break;
    expect((await third?.result())?.tokenIds).toEqual(results[2]?.tokenIds.slice(0, 4));
    await expect(first?.result()).rejects.toMatchObject({ code: 'ABORTED' });
    expect((await second?.result())?.finishReason).toBeDefined();
  });

  it('is asked before the file is opened, whatever encoder the features are of', async () => {
    const store = fresh();
    await using other = await LlamaVid.load(folder, exact);
    await using clip = await other.open(long, { store, maxVisualTokens: 40 });
    await clip.encode();
    const options = { store, maxVisualTokens: 40 };
    await using known = await LlamaVid.look('tiny', long, options);
    await using opened = await LlamaVid.look('tiny', long, { store, maxVisualTokens: 42 });
    // The container's own guess stands where the file was opened.
    expect([known.info.codec, known.frames, opened.frames]).toEqual([opened.info.codec, 20, 21]);
    expect((await LlamaVid.plan('tiny', [known], options)).frames).toBe(20);
    const reopened = vi.spyOn(known, 'take');
    await using mine = await model.open(known);
    expect(reopened).toHaveBeenCalledOnce();
    expect((await model.ask(mine, 'what appears first?').result()).work.framesEncoded).toBe(20);
    // Now it has this encoder's features, and is not opened at all.
    await using again = await LlamaVid.look('tiny', long, options);
    const untouched = vi.spyOn(again, 'take');
    await using found = await model.open(again);
    expect((await model.ask(found, 'what appears first?').result()).work.storeHit).toBe(true);
    expect(untouched).not.toHaveBeenCalled();
  });

  it('gives tokens of stored features that are those of rounded ones', async () => {
    const { modelPath } = await import('@llamavid/tiny');
    using generator = await TokenGenerator.load(modelPath, exact);
    const store = await VideoStore.open(fresh());
    const drift: Record<string, number> = {};
    for (const storePrecision of ['16bit', '8bit'] as const) {
      await using clip = await model.open(long, { store, storePrecision });
      await using plain = await model.open(long, { store: 'none' });
      await Promise.all([clip.encode(), plain.encode()]);
      const [stored, exactly] = await Promise.all(
        [clip, plain].map(async (each) => (await each.encoded()).value.features),
      );
      if (stored === undefined || exactly === undefined) throw new Error('no features');
      expect(stored.shape).toEqual(exactly.shape);
      using tokens = await generator.generate(stored, 'what appears first?');
      using expected = await generator.generate(exactly, 'what appears first?');
      const [a, b] = [await tokens.toFloat32Array(), await expected.toFloat32Array()];
      const square = (values: Float32Array) => values.reduce((sum, value) => sum + value * value, 0);
      drift[storePrecision] = Math.sqrt(square(a.map((value, at) => value - (b[at] ?? 0))) / square(b));
    }
    expect(drift['16bit']).toBeGreaterThan(0);
    expect(drift['16bit']).toBeLessThan(1e-3);
    expect(drift['8bit']).toBeLessThan(3e-2);
  });
});
