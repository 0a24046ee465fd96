import { spawnSync } from 'node:child_process';
import { createReadStream, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { buffer } from 'node:stream/consumers';
import { Pixels, type Preprocessing } from '@llamavid/native';
import { pack } from 'tar-stream';
import { expect, test } from 'vitest';
import { type Frame, type Media, openMedia } from '../dist/index.js';
import { naturalOrder } from '../dist/picture-list.js';
import { clip, temporaryFolder } from './folders.js';
import { hash, makeClip } from './make-clip.js';

const folder = temporaryFolder();
const path = clip('rot90.mp4');
const PREPROCESSING: Preprocessing = {
  size: 224,
  mean: [0.48145466, 0.4578275, 0.40821073],
  std: [0.26862954, 0.26130258, 0.27577711],
  fit: 'crop',
};

async function framesOf(media: Media): Promise<Frame[]> {
  const frames: Frame[] = [];
  for await (const frame of media.frames()) frames.push(frame);
  return frames;
}

// A folder of our own, so that nobody else's files are counted.
process.env['TMPDIR'] = folder;
process.env['TEMP'] = folder;

/** Number of folders that sources were written to. */
const spooled = () => readdirSync(folder).filter((name) => name.startsWith('llamavid-')).length;

test('FFmpeg is not loaded before it is needed', () => {
  const script = (after: string) => `
    const video = await import(${JSON.stringify(new URL('../dist/index.js', import.meta.url).href)});
    ${after}
    const { sharedObjects } = process.report.getReport();
    process.stdout.write(String(sharedObjects.some((file) => file.endsWith('node-av.node'))));`;
  const loaded = (after: string) =>
    spawnSync(process.execPath, ['--input-type=module', '-e', script(after)], { encoding: 'utf8' }).stdout;
  expect(loaded('')).toBe('false');
  expect(loaded('await video.videoDecoders();')).toBe('true');
});

test('bytes, streams and iterables give what the file gives, and leave nothing behind', async () => {
  const before = spooled();
  await using fromFile = await openMedia(path);
  const expected = (await framesOf(fromFile)).map(({ data }) => hash(data));
  expect(fromFile.info.path).toBe(path);
  const sources = {
    bytes: await readFile(path),
    stream: createReadStream(path),
    web: Readable.toWeb(createReadStream(path)) as unknown as ReadableStream<Uint8Array>,
    blob: new Blob([await readFile(path)]).stream(),
  };
  for (const [name, source] of Object.entries(sources)) {
    await using media = await openMedia(source, { name });
    expect((await framesOf(media)).map(({ data }) => hash(data))).toEqual(expected);
    expect(media.info.path).toBeUndefined();
    await media.close();
    await media.close();
  }
  expect(spooled()).toBe(before);
});

test('a stream that is too long, fails, or gives no bytes', async () => {
  const before = spooled();
  await expect(openMedia(createReadStream(path), { maxStreamBytes: 1000 })).rejects.toMatchObject({
    code: 'MEDIA_TOO_LARGE',
  });
  const failing = (async function* () {
    yield new Uint8Array(10);
    throw new Error('the line is dead');
  })();
  await expect(openMedia(failing, { name: 'upload' })).rejects.toMatchObject({
    code: 'MEDIA_UNREADABLE',
    message: expect.stringContaining('the line is dead'),
  });
  await expect(openMedia(Readable.from(['text']) as never)).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
  });
  await expect(openMedia(5 as never)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  await expect(openMedia(new Uint8Array(0))).rejects.toMatchObject({ code: 'MEDIA_UNREADABLE' });
  await expect(openMedia(Buffer.from('hello'))).rejects.toMatchObject({ code: 'MEDIA_UNREADABLE' });
  expect(spooled()).toBe(before);
});

test('a stream that never comes can be aborted', async () => {
  const before = spooled();
  const silent = new ReadableStream<Uint8Array>({ pull: () => new Promise(() => undefined) });
  const opening = openMedia(silent, { signal: AbortSignal.timeout(100) });
  await expect(opening).rejects.toMatchObject({
    code: 'ABORTED',
    cause: expect.objectContaining({ name: 'TimeoutError' }),
  });
  expect(spooled()).toBe(before);
});

test('aborted before, while opening, and while reading', async () => {
  await expect(openMedia(path, { signal: AbortSignal.abort() })).rejects.toMatchObject({ code: 'ABORTED' });
  const opening = new AbortController();
  setImmediate(() => opening.abort());
  await expect(openMedia(path, { signal: opening.signal })).rejects.toMatchObject({ code: 'ABORTED' });

  await using media = await openMedia(path, { fps: 25 });
  const reading = new AbortController();
  let taken = 0;
  const all = (async () => {
    for await (const _ of media.frames({ signal: reading.signal })) {
      taken += 1;
      if (taken === 3) reading.abort(new Error('enough'));
    }
  })();
  await expect(all).rejects.toMatchObject({
    code: 'ABORTED',
    cause: expect.objectContaining({ message: 'enough' }),
  });
  expect(taken).toBe(3);
  // The media itself is as good as before.
  expect(await framesOf(media)).toHaveLength(150);
});

test('one reading at a time; leaving one early frees the way; a closed one is closed', async () => {
  const media = await openMedia(path, { fps: 25 });
  for await (const frame of media.frames()) {
    expect(frame.index).toBe(0);
    await expect(framesOf(media)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    break;
  }
  expect(await framesOf(media)).toHaveLength(150);
  const reading = media.frames()[Symbol.asyncIterator]();
  await reading.next();
  await media.close();
  await expect(
    (async () => {
      while (!(await reading.next()).done);
    })(),
  ).rejects.toMatchObject({ code: 'HANDLE_CLOSED' });
  await expect(framesOf(media)).rejects.toMatchObject({ code: 'HANDLE_CLOSED' });
  await media.close();
});

test('a slow reader bounds the memory', async () => {
  const long = makeClip(join(folder, 'long.mpg'), {
    source: 's=1280x720:r=25:d=8',
    codec: 'mpeg2video',
    format: 'mpeg',
  });
  await using media = await openMedia(long, { fps: 25 });
  let taken = 0;
  let peak = 0;
  let first = 0;
  for await (const _ of media.frames()) {
    taken += 1;
    if (taken === 5) {
      await new Promise((resolve) => setTimeout(resolve, 1000)); // enough to decode all of it
      first = process.memoryUsage.rss();
    }
    if (taken % 10 === 0) globalThis.gc?.();
    peak = Math.max(peak, process.memoryUsage.rss());
    if (taken === 12) break;
  }
  // 200 frames of 2.8 MB; some are in flight, all would be 550 MB.
  expect(peak - first).toBeLessThan(150e6);
});

test('pixels are those of the frames, in batches', async () => {
  await using media = await openMedia(path, { fps: 2 });
  const frames = await framesOf(media);
  using expected = Pixels.fromRgb([...frames], PREPROCESSING);
  const progress: string[] = [];
  const values: Float32Array[] = [];
  const sizes: number[] = [];
  const timestamps: number[] = [];
  const onProgress = (done: number, total: number) => progress.push(`${done}/${total}`);
  for await (const batch of media.pixels(PREPROCESSING, { batchSize: 5, onProgress })) {
    sizes.push(batch.pixels.frameCount);
    timestamps.push(...batch.timestamps);
    values.push(batch.pixels.toFloat32Array());
    batch.pixels.close();
  }
  expect(sizes).toEqual([5, 5, 3]);
  expect(timestamps).toEqual(frames.map(({ timestamp }) => timestamp));
  expect(progress.at(-1)).toBe('13/13');
  const bytesOf = (floats: Float32Array) => Buffer.from(floats.buffer, floats.byteOffset, floats.byteLength);
  expect(hash(Buffer.concat(values.map(bytesOf)))).toBe(hash(bytesOf(expected.toFloat32Array())));
  expect(media.report()).toMatchObject({ frames: 13, timestamps });
  await expect(
    media.pixels(PREPROCESSING, { batchSize: 0 })[Symbol.asyncIterator]().next(),
  ).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
  });
});

/** A picture of one colour, in 24-bit PNG. */
function png(name: string, recipe = {}): Uint8Array {
  return readFileSync(
    makeClip(join(folder, name), {
      source: 's=64x48:r=1:d=1',
      codec: 'png',
      pixel: 'rgb24',
      bframes: 0,
      format: 'image2',
      muxerOptions: { update: '1' },
      ...recipe,
    }),
  );
}

test('pictures: one frame, whatever is asked of them', async () => {
  const picture = png('one.png');
  for (const source of [join(folder, 'one.png'), picture, Readable.from([picture])]) {
    await using media = await openMedia(source, { fps: 3, start: 10 });
    expect(media.kind).toBe('image');
    expect(media.info).toMatchObject({ width: 64, height: 48, codec: 'png', frameCount: 1 });
    const frames = await framesOf(media);
    expect(frames).toMatchObject([{ width: 64, height: 48, index: 0, timestamp: 0 }]);
    for await (const { pixels, timestamps } of media.pixels(PREPROCESSING)) {
      expect(pixels.frameCount).toBe(1);
      expect(timestamps).toEqual([0]);
      pixels.close();
    }
  }
  const gif = makeClip(join(folder, 'still.gif'), {
    source: 's=64x48:r=1:d=1',
    codec: 'gif',
    pixel: 'rgb8',
    bframes: 0,
  });
  await using still = await openMedia(gif);
  expect([still.kind, still.info.codec]).toEqual(['image', 'gif']);
  await expect(openMedia(picture.subarray(0, 100), { name: 'half.png' })).rejects.toMatchObject({
    code: expect.stringMatching(/MEDIA_(UNREADABLE|TRUNCATED)/),
    message: expect.stringContaining('half.png'),
  });
});

test('a folder of frames, in natural order', async () => {
  const frames = join(folder, 'frames');
  mkdirSync(frames);
  const names = ['frame_10.png', 'frame_2.png', 'frame_1.png', 'frame_03.png'];
  names.forEach((name, size) => {
    writeFileSync(join(frames, name), png(`f${size}.png`, { source: `s=${32 + 16 * size}x32:r=1:d=1` }));
  });
  writeFileSync(join(frames, 'notes.txt'), 'no picture');
  await using media = await openMedia(frames);
  expect(media.kind).toBe('video');
  expect(media.info).toMatchObject({ path: frames, frameCount: 4, fps: 1, durationSeconds: 4 });
  const read = await framesOf(media);
  expect(read.map(({ width, timestamp }) => [width, timestamp])).toEqual([
    [64, 0],
    [48, 1],
    [80, 2],
    [32, 3],
  ]);
  expect(media.report().notes).toEqual([expect.stringContaining('1 files that are no pictures')]);
  await using half = await openMedia(frames, { pictureFps: 2 });
  expect((await framesOf(half)).map(({ timestamp }) => timestamp)).toEqual([0, 1]);
  const pictureTimes = [0.5, 2, 2.25, 8];
  await using timed = await openMedia(frames, { frames: 4, pictureTimes });
  expect(timed.info).toMatchObject({ durationSeconds: 8, fps: 0.5 });
  expect((await framesOf(timed)).map(({ timestamp }) => timestamp)).toEqual(pictureTimes);
  await using part = await openMedia(frames, { frames: 4, pictureTimes, start: 1, end: 3 });
  expect((await framesOf(part)).map(({ timestamp }) => timestamp)).toEqual([2, 2.25]);
  for (const [times, code] of [
    [[0, 1, 2], 'DATA_INVALID'],
    [[0, 1, 1, 2], 'INVALID_ARGUMENT'],
    [[0, 1, 2, Number.NaN], 'INVALID_ARGUMENT'],
  ] as const) {
    await expect(openMedia(frames, { pictureTimes: times })).rejects.toMatchObject({ code });
  }
  await expect(openMedia(path, { pictureTimes })).rejects.toMatchObject({ code: 'MEDIA_UNREADABLE' });

  writeFileSync(join(frames, 'frame_2.png'), 'broken');
  await using broken = await openMedia(frames);
  expect(await framesOf(broken)).toHaveLength(3);
  expect(broken.report()).toMatchObject({ frames: 3, dropped: 1, timestamps: [0, 2, 3] });
  await using strict = await openMedia(frames, { strict: true });
  await expect(framesOf(strict)).rejects.toMatchObject({ message: expect.stringContaining('frame_2.png') });
});

test('a tar of frames: nothing is unpacked, names lead nowhere', async () => {
  const before = spooled();
  const tar = pack();
  const longName = `${'folder/'.repeat(30)}frame_1.png`;
  tar.entry({ name: '../../frame_10.png' }, Buffer.from(png('t10.png', { source: 's=48x32:r=1:d=1' })));
  tar.entry({ name: 'readme.txt' }, 'hello');
  tar.entry({ name: longName }, Buffer.from(png('t1.png', { source: 's=80x32:r=1:d=1' })));
  tar.entry({ name: '/etc/frame_9.png', type: 'symlink', linkname: '/etc/passwd' });
  tar.entry({ name: '._frame_3.png' }, 'macos');
  tar.finalize();
  const bytes = await buffer(tar);
  const tarFile = join(folder, 'frames.bin');
  writeFileSync(tarFile, bytes);
  for (const source of [tarFile, bytes, Readable.from([bytes])]) {
    await using media = await openMedia(source, { name: 'frames' });
    expect(media.info.frameCount).toBe(2);
    expect((await framesOf(media)).map(({ width }) => width)).toEqual([48, 80]);
    expect(media.report().notes).toEqual([expect.stringContaining('3 entries')]);
  }
  expect(spooled()).toBe(before);

  const half = bytes.subarray(0, bytes.lastIndexOf('IEND') - 8);
  await using cut = await openMedia(half);
  expect(cut.info.frameCount).toBe(1);
  expect(cut.report().notes[0]).toContain('truncated');
  await expect(openMedia(half, { strict: true })).rejects.toMatchObject({ code: 'MEDIA_TRUNCATED' });
  const empty = pack();
  empty.entry({ name: 'readme.txt' }, 'hello');
  empty.finalize();
  await expect(openMedia(await buffer(empty))).rejects.toMatchObject({ code: 'MEDIA_UNREADABLE' });
});

test('natural order', () => {
  const names = ['a10', 'a2', 'a', 'a02', 'b1', 'a2b', 'A1', `a${'9'.repeat(400)}`];
  expect(names.toSorted(naturalOrder)).toEqual([
    'A1',
    'a',
    'a02',
    'a2',
    'a2b',
    'a10',
    `a${'9'.repeat(400)}`,
    'b1',
  ]);
});

test('a process that leaves media open ends, and takes its files along', () => {
  const before = spooled();
  const script = `
    import { readFileSync } from 'node:fs';
    import { openMedia } from ${JSON.stringify(new URL('../dist/index.js', import.meta.url).href)};
    const media = await openMedia(readFileSync(process.argv[1]));
    for await (const frame of media.frames()) { console.log(frame.index); break; }
    await openMedia(process.argv[1]);
  `;
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    ['--input-type=module', '-e', script, path],
    { timeout: 30_000, encoding: 'utf8' },
  );
  expect({ status, stdout, stderr }).toEqual({ status: 0, stdout: '0\n', stderr: '' });
  expect(spooled()).toBe(before);
});
