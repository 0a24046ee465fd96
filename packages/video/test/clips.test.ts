import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { type Frame, type OpenMediaOptions, openMedia } from '../dist/index.js';
import { clip, temporaryFolder } from './folders.js';
import { decodePlainly, hash, makeClip, type Recipe } from './make-clip.js';

const folder = temporaryFolder();

/** Samples at some rates and holds every frame against plain decoding. Returns the number of displayed frames. */
async function expectPlainFrames(path: string, rates: number[]): Promise<number> {
  const reads = [];
  for (const fps of rates) reads.push(await read(path, { fps }));
  const { count, hashes } = decodePlainly(
    path,
    new Set(reads.flatMap(({ frames }) => frames.map(({ index }) => index))),
  );
  for (const { frames, report } of reads) {
    const step = (frames[1]?.index ?? count) - (frames[0]?.index ?? 0);
    expect(frames.map(({ index }) => index)).toEqual(everyStep(step, Math.ceil(count / step)));
    expect(frames.map(({ data }) => hash(data))).toEqual(frames.map(({ index }) => hashes.get(index)));
    expect(
      frames.every(({ timestamp }, frame) => frame === 0 || timestamp > (frames[frame - 1]?.timestamp ?? 0)),
    ).toBe(true);
    expect(report.dropped).toBe(0);
    expect(report.source.frameCount).toBe(count);
  }
  return count;
}

async function read(path: string, options?: OpenMediaOptions) {
  await using media = await openMedia(path, options);
  const frames: Frame[] = [];
  for await (const frame of media.frames()) frames.push(frame);
  return { frames, report: media.report(), info: media.info };
}

const everyStep = (step: number, count: number) =>
  Array.from({ length: count }, (_, sample) => sample * step);

const CLIPS: [
  name: string,
  size: string,
  codec: string,
  count: number,
  index: number[],
  seconds: number[],
][] = [
  ['bbb_720p_h264_aac.mp4', '1280x720', 'h264', 132, everyStep(25, 6), [0, 1, 2, 3, 4, 5]],
  ['bbb_av1.mp4', '480x270', 'av1', 180, everyStep(30, 6), [0, 1, 2, 3, 4, 5]],
  ['bbb_hevc_10bit.mkv', '480x270', 'hevc', 120, everyStep(30, 4), [0, 1, 2, 3]],
  ['bbb_vp9.webm', '480x270', 'vp9', 180, everyStep(30, 6), [0, 1, 2, 3, 4, 5]],
  ['editlist.mp4', '320x240', 'h264', 67, [0, 25, 50], [0, 1, 2]],
  ['mpeg4_bframes.avi', '320x240', 'mpeg4', 150, everyStep(25, 6), [0, 1, 2, 3, 4, 5]],
  ['phone_vfr_1080p_bt709.mp4', '1920x1080', 'h264', 41, [0, 27], [0, 1.050933]],
  ['rot90.mp4', '240x320', 'h264', 150, everyStep(25, 6), [0, 1, 2, 3, 4, 5]],
  ['subs_audio.mkv', '320x240', 'h264', 150, everyStep(25, 6), [0.023, 1.023, 2.023, 3.023, 4.023, 5.023]],
  [
    'webcam_mpeg2_nonzero_start.mpeg',
    '640x480',
    'mpeg2video',
    249,
    everyStep(30, 9),
    [0.009367, 1.010367, 2.011367, 3.012367, 4.013367, 5.014367, 6.015367, 7.016367, 8.017367],
  ],
];

test.each(CLIPS)(
  '%s: size, frames and their seconds at 1 fps',
  async (name, size, codec, count, index, seconds) => {
    const { frames, report, info } = await read(clip(name));
    expect(`${info.width}x${info.height}`).toBe(size);
    expect(info.codec).toBe(codec);
    expect(frames.map((frame) => frame.index)).toEqual(index);
    expect(frames.map((frame) => frame.timestamp)).toEqual(seconds);
    expect(frames.every((frame) => `${frame.width}x${frame.height}` === size)).toBe(true);
    expect(frames.every((frame) => frame.data.length === frame.width * frame.height * 3)).toBe(true);
    expect(report).toMatchObject({
      fps: 1,
      frames: index.length,
      timestamps: seconds,
      dropped: 0,
      source: { frameCount: count },
    });
    expect(report.framesDecoded).toBeGreaterThanOrEqual(index.length);
    expect(report.framesDecoded).toBeLessThanOrEqual(count);
  },
);

const UPRIGHT_CLIPS = CLIPS.map(([name]) => name).filter((name) => !name.startsWith('rot'));

test.each(UPRIGHT_CLIPS)('%s: the same bytes as decoding everything', async (name) => {
  await expectPlainFrames(clip(name), [0.7, 4]);
});

const fast = { preset: 'veryfast' };
const MADE: Record<string, Recipe> = {
  'open-gop.ts': {
    codecOptions: { ...fast, 'x264-params': 'open-gop=1:b-pyramid=normal:scenecut=0' },
    bframes: 3,
  },
  'open-gop.mp4': {
    codecOptions: { ...fast, 'x264-params': 'open-gop=1:b-pyramid=normal:scenecut=0' },
    bframes: 3,
  },
  'intra-refresh.mp4': { codecOptions: { ...fast, 'x264-params': 'intra-refresh=1' }, bframes: 0 },
  'alt-ref.webm': {
    codec: 'libvpx',
    codecOptions: { 'auto-alt-ref': '1', 'lag-in-frames': '10', 'cpu-used': '5' },
  },
  'mpeg2.ts': { codec: 'mpeg2video' },
  'mpeg2.mpg': { codec: 'mpeg2video', format: 'mpeg' },
  'hevc-open-gop.mp4': {
    codec: 'libx265',
    codecOptions: { preset: 'ultrafast', 'x265-params': 'log-level=none:open-gop=1:bframes=3:b-pyramid=1' },
  },
  'hevc-layers.mkv': {
    codec: 'libx265',
    codecOptions: {
      preset: 'ultrafast',
      'x265-params': 'log-level=none:temporal-layers=2:bframes=3:b-pyramid=1',
    },
  },
  'ten-bit.mkv': { pixel: 'yuv420p10le', codecOptions: fast },
  // What the tags say about light and about the places of colours plays no part.
  'high-dynamic-range.mp4': {
    pixel: 'yuv420p10le',
    codecOptions: {
      ...fast,
      colorspace: 'bt2020nc',
      color_primaries: 'bt2020',
      color_trc: 'smpte2084',
      chroma_sample_location: 'topleft',
    },
  },
  'full-range.mp4': { filters: ['scale=out_range=pc', 'setparams=range=pc'], codecOptions: fast },
  'interlaced-ten-bit.ts': {
    pixel: 'yuv420p10le',
    filters: ['interlace'],
    codecOptions: { ...fast, 'x264-params': 'tff=1' },
    interlaced: true,
  },
  'transparent.mov': { source: 's=160x120:r=25:d=2', codec: 'prores_ks', pixel: 'yuva444p10le' },
  'grey.mkv': { source: 's=160x120:r=25:d=2', codec: 'ffv1', pixel: 'gray' },
  'odd-size.mkv': { source: 's=321x241:r=25:d=2', pixel: 'yuv444p', codecOptions: fast },
  'interlaced.ts': {
    filters: ['interlace'],
    codecOptions: { ...fast, 'x264-params': 'tff=1' },
    interlaced: true,
  },
  'prores.mov': { source: 's=160x120:r=25:d=4', codec: 'prores_ks', pixel: 'yuv422p10le' },
  'fragments.mp4': { codecOptions: fast, muxerOptions: { movflags: 'frag_keyframe+empty_moov' } },
  'h264.avi': { codecOptions: fast },
  'h264.flv': { codecOptions: fast },
  'animation.gif': { source: 's=160x120:r=10:d=3', codec: 'gif', pixel: 'rgb8' },
  'raw.h264': { codecOptions: fast },
  'wmv.asf': { codec: 'wmv2', bframes: 0 },
  'theora.ogv': { codec: 'libtheora' },
  'slow.mp4': { source: 's=320x240:r=1/3:d=60', codecOptions: fast },
  'one.mp4': { source: 's=320x240:r=25:d=0.04', codecOptions: fast },
};

test.each(Object.entries(MADE))(
  '%s: the same bytes as decoding everything, rising times',
  async (name, recipe) => {
    await expectPlainFrames(makeClip(join(folder, name), recipe), [0.3, 3, 100]);
  },
);

test('most frames between samples are not decoded', async () => {
  const path = makeClip(join(folder, 'plan.mp4'), { codecOptions: fast, gop: 250 });
  const { report } = await read(path);
  expect(report.frames).toBe(6);
  expect(report.framesDecoded).toBeLessThan(90); // of 150
});

test('a video without an index and a duration is read whole', async () => {
  const live = makeClip(join(folder, 'live.webm'), {
    codec: 'libvpx',
    codecOptions: { 'cpu-used': '8' },
    muxerOptions: { live: '1' },
  });
  const { report, frames } = await read(live);
  expect(frames.map(({ index }) => index)).toEqual(everyStep(25, 6));
  expect(report.notes).toEqual([]);
  expect(report.source.durationSeconds).toBeCloseTo(6, 1);
});

test('pictures may change their size', async () => {
  const parts = ['s=320x240:r=25:d=2', 's=160x120:r=25:d=2'].map((source, part) =>
    makeClip(join(folder, `part${part}.h264`), { source, codecOptions: fast }),
  );
  const path = join(folder, 'sizes.h264');
  writeFileSync(path, Buffer.concat(parts.map((part) => readFileSync(part))));
  const { frames } = await read(path);
  expect(frames.map(({ index, width }) => [index, width])).toEqual([
    [0, 320],
    [25, 320],
    [50, 160],
    [75, 160],
  ]);
  const expected = parts.flatMap((part) => [...decodePlainly(part, new Set([0, 25])).hashes.values()]);
  expect(frames.map(({ data }) => hash(data))).toEqual(expected);
});

test('pixels that are not square are made so', async () => {
  const path = makeClip(join(folder, 'anamorphic.mp4'), {
    source: 's=720x576:r=25:d=2',
    filters: ['setsar=64/45'],
    codecOptions: fast,
  });
  const { info, frames } = await read(path);
  expect(info).toMatchObject({ width: 1024, height: 576 });
  expect(frames.map(({ width, height }) => `${width}x${height}`)).toEqual(['1024x576', '1024x576']);
  const { hashes } = decodePlainly(path, new Set(frames.map(({ index }) => index)), info.width);
  expect(frames.map(({ data }) => hash(data))).toEqual([...hashes.values()]);
});

test('all turns and flips of a display matrix', async () => {
  const original = readFileSync(clip('rot90.mp4'));
  const matrixOf = (a: number, b: number, c: number, d: number) => {
    const bytes = Buffer.alloc(20);
    [a, b, 0, c, d].forEach((value, cell) => {
      bytes.writeInt32BE(value * 65536, cell * 4);
    });
    return bytes;
  };
  const at = original.indexOf(matrixOf(0, -1, 1, 0));
  expect(at).toBeGreaterThan(0);
  const withMatrix = async (name: string, ...cells: [number, number, number, number]) => {
    const copy = Buffer.from(original);
    matrixOf(...cells).copy(copy, at);
    const path = join(folder, name);
    writeFileSync(path, copy);
    const { frames } = await read(path, { frames: 1 });
    const [frame] = frames;
    if (!frame) throw new Error('no frame');
    return frame;
  };
  const stored = await withMatrix('upright.mp4', 1, 0, 0, 1);
  const turns: [number, number, number, number][] = [
    [0, 1, -1, 0],
    [-1, 0, 0, -1],
    [0, -1, 1, 0],
    [-1, 0, 0, 1],
    [1, 0, 0, -1],
    [0, 1, 1, 0],
    [0, -1, -1, 0],
  ];
  for (const [turn, [a, b, c, d]] of turns.entries()) {
    const shown = await withMatrix(`turn${turn}.mp4`, a, b, c, d);
    expect([shown.width, shown.height]).toEqual(a === 0 ? [240, 320] : [320, 240]);
    const expected = new Uint8Array(shown.data.length);
    for (let q = 0; q < stored.height; q += 1) {
      for (let p = 0; p < stored.width; p += 1) {
        const x = a * p + c * q + (a + c < 0 ? shown.width - 1 : 0);
        const y = b * p + d * q + (b + d < 0 ? shown.height - 1 : 0);
        const from = (q * stored.width + p) * 3;
        expected.set(stored.data.subarray(from, from + 3), (y * shown.width + x) * 3);
      }
    }
    expect(hash(shown.data), `${a} ${b} ${c} ${d}`).toBe(hash(expected));
  }
});

test('fps, frames, start and end', async () => {
  const path = clip('bbb_720p_h264_aac.mp4');
  const indices = async (options: OpenMediaOptions) =>
    (await read(path, options)).frames.map(({ index }) => index);
  expect(await indices({ fps: 0.5 })).toEqual([0, 50, 100]);
  expect(await indices({ fps: 2 })).toEqual(everyStep(12, 11)); // 12.5 rounds to the even 12
  expect(await indices({ frames: 4 })).toEqual([0, 43, 87, 131]);
  expect(await indices({ frames: 1 })).toEqual([0]);
  expect(await indices({ start: 2 })).toEqual([50, 75, 100, 125]);
  expect(await indices({ start: 2.02, end: 4 })).toEqual([51, 76]);
  expect(await indices({ start: 1, end: 3, frames: 3 })).toEqual([25, 49, 74]);
  expect(await indices({ end: 1000 })).toEqual(everyStep(25, 6));
  await expect(openMedia(path, { start: 20 })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
});

test('the same choices where frames must be counted', async () => {
  const path = clip('mpeg4_bframes.avi');
  const indices = async (options: OpenMediaOptions) =>
    (await read(path, options)).frames.map(({ index }) => index);
  expect(await indices({ frames: 4 })).toEqual([0, 49, 99, 149]);
  expect(await indices({ start: 2 })).toEqual([50, 75, 100, 125]);
  expect(await indices({ start: 2.02, end: 4 })).toEqual([51, 76]);
  expect(await indices({ start: 1, end: 3, frames: 3 })).toEqual([25, 49, 74]);
  await expect(openMedia(path, { start: 20 })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
});

test('more frames a second than there are give every frame, and a note', async () => {
  const { report } = await read(clip('editlist.mp4'), { fps: 60 });
  expect(report.frames).toBe(67);
  expect(report.notes).toEqual([
    expect.stringContaining('edit list: 83 of 150'),
    expect.stringContaining('every frame is taken'),
  ]);
});

test('a tagged colour matrix is obeyed', async () => {
  // Bars of the test picture: with the wrong matrix, or none, green and red differ by some 20 steps.
  const recipe = (space: string): Recipe => ({
    source: 's=640x360:r=25:d=0.04',
    filters: [
      `scale=out_color_matrix=${space}`,
      `setparams=colorspace=${space === 'bt709' ? 'bt709' : 'smpte170m'}`,
    ],
    codecOptions: { ...fast, crf: '1', colorspace: space === 'bt709' ? 'bt709' : 'smpte170m' },
  });
  const [first] = (await read(makeClip(join(folder, '709.mp4'), recipe('bt709')))).frames;
  const [second] = (await read(makeClip(join(folder, '601.mp4'), recipe('bt601')))).frames;
  if (!first || !second) throw new Error('no frame');
  let difference = 0;
  for (let at = 0; at < first.data.length; at += 1)
    difference += Math.abs((first.data[at] ?? 0) - (second.data[at] ?? 0));
  expect(difference / first.data.length).toBeLessThan(1.5);
});
