import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { openMedia, type WriteVideoOptions, writeVideo } from '../dist/index.js';
import { temporaryFolder } from './folders.js';

const folder = temporaryFolder();
const OPTIONS: WriteVideoOptions = { width: 96, height: 64, fps: 25, crf: 18, preset: 'veryfast' };

/** A frame of one colour, with a white square whose place tells the frame's number. */
function picture(number: number, { width, height } = OPTIONS): Uint8Array {
  const data = new Uint8Array(width * height * 3);
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      const inside = x >= number && x < number + 16 && y >= 16 && y < 32;
      data.set(inside ? [235, 235, 235] : [200, 60, 30], (y * width + x) * 3);
    }
  }
  return data;
}

async function* pictures(count: number) {
  for (let number = 0; number < count; number += 1) yield picture(number);
}

test('what is written is read again: size, rate, length, colours, every frame', async () => {
  const path = join(folder, 'moving.mp4');
  const progress: number[] = [];
  const onProgress = (frames: number) => progress.push(frames);
  const written = await writeVideo(path, pictures(60), { ...OPTIONS, onProgress });
  expect(written).toEqual({ frames: 60, seconds: 2.4 });
  expect(progress).toEqual(Array.from({ length: 60 }, (_, place) => place + 1));
  await using media = await openMedia(path, { fps: 25, strict: true });
  expect(media.info).toMatchObject({ width: 96, height: 64, fps: 25, codec: 'h264', durationSeconds: 2.4 });
  let number = 0;
  for await (const { data, timestamp } of media.frames()) {
    expect(timestamp).toBeCloseTo(number / 25, 5);
    let difference = 0;
    picture(number).forEach((value, place) => {
      difference += Math.abs(value - (data[place] ?? 0));
    });
    expect(difference / data.length).toBeLessThan(4);
    number += 1;
  }
  expect(number).toBe(60);
});

test('equal frames give equal bytes, and a larger factor a smaller file', async () => {
  const sizes = [];
  for (const crf of [18, 18, 45]) {
    const path = join(folder, `${crf}-${sizes.length}.mp4`);
    await writeVideo(path, pictures(30), { ...OPTIONS, crf });
    sizes.push(readFileSync(path));
  }
  const [first, second, rough] = sizes;
  expect(first?.equals(second ?? new Uint8Array())).toBe(true);
  expect(rough?.length).toBeLessThan(first?.length ?? 0);
});

test('the index is in front, and a rate need not be whole', async () => {
  const path = join(folder, 'ntsc.mp4');
  await writeVideo(path, [picture(0), picture(1), picture(2)], { ...OPTIONS, fps: 29.97 });
  const bytes = readFileSync(path);
  expect(bytes.indexOf('moov')).toBeLessThan(bytes.indexOf('mdat'));
  await using media = await openMedia(path);
  expect(media.info.fps).toBeCloseTo(29.97, 3);
  expect(media.info.frameCount).toBe(3);
});

test('an existing file is replaced when the new one is complete, and not before', async () => {
  const path = join(folder, 'replaced.mp4');
  writeFileSync(path, 'old');
  const failing = (async function* () {
    yield picture(0);
    throw new Error('the camera broke');
  })();
  await expect(writeVideo(path, failing, OPTIONS)).rejects.toThrow('the camera broke');
  expect(readFileSync(path, 'utf8')).toBe('old');
  await writeVideo(path, pictures(2), OPTIONS);
  expect(readFileSync(path).subarray(4, 8).toString()).toBe('ftyp');
});

test('an abort ends the writing and leaves no file', async () => {
  const path = join(folder, 'aborted.mp4');
  const controller = new AbortController();
  const { signal } = controller;
  const onProgress = (frames: number) => frames === 5 && controller.abort('enough');
  await expect(writeVideo(path, pictures(100), { ...OPTIONS, signal, onProgress })).rejects.toMatchObject({
    code: 'ABORTED',
    cause: 'enough',
  });
  await expect(writeVideo(path, pictures(1), { ...OPTIONS, signal })).rejects.toMatchObject({
    code: 'ABORTED',
  });
  expect(readdirSync(folder).filter((name) => name.startsWith('aborted'))).toEqual([]);
});

test.each<[string, Partial<WriteVideoOptions>, RegExp]>([
  ['an odd width', { width: 95 }, /width is 95/],
  ['no height', { height: 0 }, /height is 0/],
  ['a huge side', { width: 10_000 }, /from 2 to 8192/],
  ['no rate', { fps: 0 }, /fps is 0/],
  ['a rate that is no number', { fps: Number.NaN }, /fps is NaN/],
  ['a factor beyond the scale', { crf: 52 }, /crf is 52/],
  ['an unknown preset', { preset: 'quick' as 'fast' }, /preset is quick, but must be one of ultrafast/],
  ['no threads', { threads: 0 }, /threads is 0/],
])('%s is refused before anything is written', async (_, options, message) => {
  const path = join(folder, 'refused.mp4');
  const writing = writeVideo(path, pictures(1), { ...OPTIONS, ...options });
  await expect(writing).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
    message: expect.stringMatching(message),
  });
});

test('frames of another size, no frames, and paths that cannot be written', async () => {
  const path = join(folder, 'bad.mp4');
  await expect(writeVideo(path, [picture(0), new Uint8Array(5)], OPTIONS)).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
    message: expect.stringMatching(/Frame 1 of .*bad\.mp4 is 5 bytes, but must be 96 x 64 x 3 = 18432 bytes/),
  });
  await expect(writeVideo(path, [], OPTIONS)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  const nowhere = join(folder, 'nowhere/bad.mp4');
  await expect(writeVideo(nowhere, pictures(1), OPTIONS)).rejects.toMatchObject({ code: 'MEDIA_NOT_FOUND' });
  const taken = join(folder, 'taken.mp4');
  mkdirSync(taken);
  await expect(writeVideo(taken, pictures(1), OPTIONS)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  expect(readdirSync(folder).filter((name) => name.endsWith('.part') || name.startsWith('bad'))).toEqual([]);
});
