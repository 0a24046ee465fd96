import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  AV_CODEC_ID_ASS,
  AV_CODEC_ID_MOV_TEXT,
  AV_CODEC_ID_SUBRIP,
  AV_CODEC_ID_WEBVTT,
} from 'node-av/constants';
import { expect, test } from 'vitest';
import { openMedia } from '../dist/index.js';
import { clip, temporaryFolder } from './folders.js';
import { addSubtitles, makeClip } from './make-clip.js';

const folder = temporaryFolder();
const silent = makeClip(join(folder, 'silent.mp4'), { source: 's=160x120:r=10:d=5' });

async function subtitlesOf(source: string | Uint8Array) {
  await using media = await openMedia(source);
  const stream = await media.subtitles();
  const text = (data: Uint8Array) => Buffer.from(data).toString('latin1');
  return stream && { ...stream, cues: stream.cues.map(({ start, end, data }) => [start, end, text(data)]) };
}

test('a text stream is found beside sound, on the clock of the frames', async () => {
  const path = clip('subs_audio.mkv');
  const expected = {
    format: 'subrip',
    cues: [
      [expect.closeTo(0.5, 1), expect.closeTo(2, 1), 'Hello <i>world</i>'],
      [expect.closeTo(3, 1), expect.closeTo(5, 1), expect.stringMatching(/^Second line\r?\nwith break$/)],
    ],
    notes: [],
  };
  expect(await subtitlesOf(path)).toMatchObject(expected);
  expect(await subtitlesOf(readFileSync(path))).toMatchObject(expected);
});

test('a file without one has none', async () => {
  expect(await subtitlesOf(silent)).toBeUndefined();
  expect(await subtitlesOf(clip('bbb_720p_h264_aac.mp4'))).toBeUndefined();
});

test('every text format is read', async () => {
  const header =
    '[Script Info]\n\n[Events]\nFormat: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n';
  const cases = [
    ['a.mkv', 'ass', { codec: AV_CODEC_ID_ASS, header, cues: [[1000, 500, '0,0,Default,,0,0,0,,One, two']] }],
    ['b.mkv', 'webvtt', { codec: AV_CODEC_ID_WEBVTT, cues: [[1000, 500, '<v Anna>One']] }],
    ['c.mp4', 'mov_text', { codec: AV_CODEC_ID_MOV_TEXT, cues: [[1000, 500, '\0\x03One']] }],
  ] as const;
  for (const [name, format, recipe] of cases) {
    const path = addSubtitles(silent, join(folder, name), [recipe as never]);
    const found = await subtitlesOf(path);
    expect(found, name).toMatchObject({ format });
    // MP4 has an empty one wherever nothing is shown.
    const spoken = found?.cues.filter(([, , text]) => text !== '\0\0');
    expect(spoken, name).toEqual([[1, 1.5, recipe.cues[0]?.[2]]]);
  }
});

test('of several the one that is taken is whole, English, default', async () => {
  const say = (text: string): [number, number, string][] => [[0, 1000, text]];
  const codec = AV_CODEC_ID_SUBRIP;
  const path = addSubtitles(silent, join(folder, 'many.mkv'), [
    { codec, language: 'eng', forced: true, default: true, cues: say('signs') },
    { codec, language: 'deu', default: true, cues: say('Hallo') },
    { codec, language: 'eng', cues: say('hello') },
    { codec, language: 'eng', cues: say('hello again') },
  ]);
  expect(await subtitlesOf(path)).toMatchObject({ index: 3, language: 'eng', cues: [[0, 1, 'hello']] });
});

test('frames may be read meanwhile', async () => {
  await using media = await openMedia(clip('subs_audio.mkv'));
  let frames = 0;
  for await (const _ of media.frames()) {
    frames += 1;
    expect((await media.subtitles())?.cues).toHaveLength(2);
  }
  expect(frames).toBe(6);
});

test('aborted, closed', async () => {
  const media = await openMedia(clip('subs_audio.mkv'));
  await expect(media.subtitles({ signal: AbortSignal.abort() })).rejects.toMatchObject({ code: 'ABORTED' });
  await media.close();
  await expect(media.subtitles()).rejects.toMatchObject({ code: 'HANDLE_CLOSED' });
});
