import { cpSync, mkdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { type OpenMediaOptions, openMedia, type SamplingReport } from '../dist/index.js';
import { clip, temporaryFolder } from './folders.js';
import { copySound, makeClip } from './make-clip.js';

const folder = temporaryFolder();

async function report(path: string, options?: OpenMediaOptions): Promise<SamplingReport & { taken: number }> {
  await using media = await openMedia(path, options);
  let taken = 0;
  for await (const _ of media.frames()) taken += 1;
  return { ...media.report(), taken };
}

function file(name: string, content: string | Uint8Array): string {
  const path = join(folder, name);
  writeFileSync(path, content);
  return path;
}

/** Bytes that look random, the same every time. */
function noise(length: number): Uint8Array {
  let state = 1;
  return Uint8Array.from({ length }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state >>> 24;
  });
}

function cut(from: string, name: string, part: number): string {
  const bytes = readFileSync(from);
  return file(name, bytes.subarray(0, Math.floor(bytes.length * part)));
}

const fast = { codecOptions: { preset: 'veryfast' } };
const wholeMp4 = makeClip(join(folder, 'whole.mp4'), { ...fast, muxerOptions: { movflags: 'faststart' } });
const wholeMkv = makeClip(join(folder, 'whole.mkv'), fast);
const wholeAvi = makeClip(join(folder, 'whole.avi'), { codec: 'mpeg4' });

/** The error must come soon, name the file and say what to do. */
async function expectError(
  path: string,
  code: string,
  message: RegExp,
  options?: OpenMediaOptions,
): Promise<void> {
  const begun = performance.now();
  await expect(report(path, options)).rejects.toMatchObject({
    name: 'LlamaVidError',
    code,
    message: expect.stringMatching(message),
    hint: expect.stringMatching(/.{10}/),
  });
  await expect(report(path, options)).rejects.toThrow(path);
  expect(performance.now() - begun).toBeLessThan(20_000);
}

test('a file that is not there', () =>
  expectError(join(folder, 'none.mp4'), 'MEDIA_NOT_FOUND', /does not exist/));
test('a path through a file', () =>
  expectError(join(wholeMp4, 'x.mp4'), 'MEDIA_NOT_FOUND', /does not exist/));
test('an empty file', () => expectError(file('empty.mp4', ''), 'MEDIA_UNREADABLE', /empty/));
test('text', () => expectError(file('text.mp4', 'hello text\n'), 'MEDIA_UNREADABLE', /format/));
test('much text', () =>
  expectError(file('long.mp4', 'hello text\n'.repeat(50_000)), 'MEDIA_UNREADABLE', /format/));
test('noise', () => expectError(file('noise.mp4', noise(300_000)), 'MEDIA_UNREADABLE', /cannot be read/));
test('noise with the name of a stream', () =>
  expectError(file('noise.mpg', noise(3_000_000)), 'MEDIA_UNREADABLE', /cannot be read/));
test('a gzip', () =>
  expectError(file('tar.gz', Uint8Array.of(31, 139, 8, 0, 0, 0)), 'MEDIA_UNREADABLE', /gzip/));
test('an address', () => expectError('https://example.org/a.mp4', 'INVALID_ARGUMENT', /address/));
test('a device', () => expectError('/dev/zero', 'MEDIA_UNREADABLE', /neither/));

test('a folder without pictures', () => {
  const path = join(folder, 'folder.mp4');
  mkdirSync(path, { recursive: true });
  return expectError(path, 'MEDIA_UNREADABLE', /folder without pictures/);
});

test('a playlist reads no other file', () => {
  const list = `#EXTM3U\n#EXT-X-TARGETDURATION:6\n#EXTINF:6,\n${wholeMp4}\n#EXT-X-ENDLIST\n`;
  return expectError(file('list.m3u8', list), 'MEDIA_UNREADABLE', /format/);
});

test('a concat script reads no other file', () =>
  expectError(
    file('script.mp4', `ffconcat version 1.0\nfile '${wholeMp4}'\n`),
    'MEDIA_UNREADABLE',
    /format/,
  ));

test('sound only', async () => {
  await expectError(
    copySound(clip('subs_audio.mkv'), join(folder, 'sound.mka')),
    'MEDIA_NO_VIDEO',
    /no video/,
  );
  await expectError(
    copySound(clip('bbb_720p_h264_aac.mp4'), join(folder, 'sound.m4a')),
    'MEDIA_NO_VIDEO',
    /no video/,
  );
});

test('pictures that are too large are refused before decoding', async () => {
  await expectError(clip('phone_vfr_1080p_bt709.mp4'), 'MEDIA_TOO_LARGE', /1920x1080/, {
    maxPixels: 1_000_000,
  });
  const transport = makeClip(join(folder, 'large.ts'), { ...fast, source: 's=640x480:r=25:d=0.2' });
  await expectError(transport, 'MEDIA_TOO_LARGE', /640x480/, { maxPixels: 100_000 });
});

test('an mp4 cut off in front of its index', () =>
  expectError(
    cut(makeClip(join(folder, 'index-last.mp4'), fast), 'no-index.mp4', 0.6),
    'MEDIA_TRUNCATED',
    /moov/,
  ));

test.each([
  ['cut.mp4', wholeMp4, 0.6],
  ['cut.mkv', wholeMkv, 0.4],
  ['slightly-cut.mkv', wholeMkv, 0.97],
  ['cut.avi', wholeAvi, 0.5],
])('%s: what is there is read, and said', async (name, whole, part) => {
  const path = cut(whole, name, part);
  const found = await report(path);
  expect(found.taken).toBe(found.frames);
  expect(found.taken).toBeGreaterThanOrEqual(2);
  expect(found.taken).toBeLessThanOrEqual(6);
  expect(found.notes).toContainEqual(
    expect.stringMatching(/truncated: \d+ of about 150 frames are there \(\d\.\d of 6\.\d s/),
  );
  await expectError(path, 'MEDIA_TRUNCATED', /of about 150 frames/, { strict: true });
});

test('an mp4 cut off in front of its first frame', () => {
  const path = join(folder, 'no-frames.mp4');
  cpSync(wholeMp4, path);
  truncateSync(path, readFileSync(wholeMp4).indexOf('mdat') + 40);
  return expectError(path, 'MEDIA_TRUNCATED', /frame/);
});

test('whole files have no notes', async () => {
  for (const path of [
    wholeMp4,
    wholeMkv,
    clip('subs_audio.mkv'),
    clip('bbb_720p_h264_aac.mp4'),
    clip('bbb_vp9.webm'),
  ]) {
    expect((await report(path, { strict: true })).notes).toEqual([]);
  }
});

test('a damaged stream is concealed and said, or refused', async () => {
  const bytes = Buffer.from(readFileSync(wholeMp4));
  const start = bytes.indexOf('mdat') + 20_000;
  noise(400).forEach((value, at) => {
    bytes[start + Math.floor((at * (bytes.length - start)) / 400)] = value;
  });
  const path = file('damaged.mp4', bytes);
  const found = await report(path);
  expect(found.taken).toBeGreaterThanOrEqual(5);
  expect(found.taken + found.dropped).toBe(6);
  expect(found.notes).toContainEqual(expect.stringMatching(/^damaged: /));
  await expectError(path, 'MEDIA_TRUNCATED', /damaged/, { strict: true });
});
