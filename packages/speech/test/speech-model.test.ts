import { copyFileSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { waveFile } from '../../video/test/wave-file.js';
import { SpeechModel, type SpeechProgress, toSrt, toWebVtt } from '../src/index.js';

const fixtures = join(import.meta.dirname, '../../../fixtures');
const whisper = join(fixtures, 'speech');
const root = mkdtempSync(join(tmpdir(), 'llamavid-speech-'));
let model: SpeechModel;
beforeAll(async () => {
  model = await SpeechModel.load(whisper);
});
afterAll(() => {
  model.close();
  rmSync(root, { recursive: true, force: true });
});

/** Tones that come and go. */
function sound(name: string, seconds: number, level = 0.3): string {
  const path = join(root, name);
  const tone = (time: number) =>
    level * Math.sin(2 * Math.PI * (220 + 40 * Math.floor(time)) * time) * (Math.floor(time / 0.7) % 2);
  writeFileSync(path, waveFile({ seconds, rate: 16_000, channels: [tone] }));
  return path;
}

describe('SpeechModel', () => {
  it('writes a sound down, a window after the other', async () => {
    const path = sound('long.wav', 33.3);
    const parts: SpeechProgress[] = [];
    const onProgress = (part: SpeechProgress) => parts.push(part);
    const transcript = await model.transcribe(path, { temperatures: [0], noSpeech: 1, onProgress });
    expect(transcript.segments.length).toBeGreaterThan(0);
    expect(transcript.durationSeconds).toBeCloseTo(33.3, 6);
    expect(model.languages).toEqual(['en', 'zh', 'de']);
    expect(model.languages).toContain(transcript.language);
    expect(transcript.notes).toEqual([]);
    expect(parts.length).toBeGreaterThan(1);
    expect(parts.at(-1)).toMatchObject({ done: 33.3, total: 33.3 });
    expect(parts.flatMap(({ segments }) => segments)).toEqual(transcript.segments);
    for (const [index, part] of parts.entries()) {
      expect(part.done).toBeGreaterThan(parts[index - 1]?.done ?? 0);
    }
    for (const { start, end } of transcript.segments) expect(end).toBeGreaterThan(start);
    expect(transcript.subtitles.length).toBe(
      transcript.segments.filter(({ avgLogprob }) => avgLogprob >= -2).length,
    );
  });

  it('draws equal texts from equal seeds only', async () => {
    const path = sound('short.wav', 20);
    const [one, same, other] = await Promise.all(
      [1, 1, 2].map((seed) => model.transcribe(path, { seed, temperatures: [1], noSpeech: 1 })),
    );
    expect(one?.segments).toEqual(same?.segments);
    expect(one?.segments).not.toEqual(other?.segments);
  });

  it('takes a film, silence, and next to nothing', async () => {
    const film = await model.transcribe(join(fixtures, 'clips/bbb_720p_h264_aac.mp4'), { language: 'en' });
    expect(film.durationSeconds).toBeGreaterThan(1);
    expect((await model.transcribe(sound('silent.wav', 31, 0))).durationSeconds).toBe(31);
    for (const seconds of [0, 0.001, 0.02]) {
      const { segments } = await model.transcribe(sound(`${seconds}.wav`, seconds));
      expect(segments.every(({ end }) => end <= 30)).toBe(true);
    }
  });

  it('refuses with a code', async () => {
    const path = sound('refused.wav', 2);
    const refused = (work: Promise<unknown>, code: string) => expect(work).rejects.toMatchObject({ code });
    await refused(model.transcribe(path, { language: 'tlh' }), 'INVALID_ARGUMENT');
    await refused(model.transcribe(path, { temperatures: [] }), 'INVALID_ARGUMENT');
    await refused(model.transcribe(path, { seed: -1 }), 'INVALID_ARGUMENT');
    await refused(model.transcribe(join(root, 'none.mp4')), 'MEDIA_NOT_FOUND');
    await refused(model.transcribe(join(fixtures, 'world/media/multi-018.mp4')), 'MEDIA_NO_AUDIO');
    await refused(SpeechModel.load(join(root, 'none')), 'MODEL_NOT_FOUND');
    await refused(SpeechModel.load(join(fixtures, 'random-model')), 'MODEL_UNSUPPORTED');
    await refused(SpeechModel.load(whisper, { dtype: 'q9' as 'f32' }), 'INVALID_ARGUMENT');
    const cut = join(root, 'cut.pt');
    copyFileSync(join(whisper, 'tiny.pt'), cut);
    truncateSync(cut, 1000);
    await refused(SpeechModel.load(cut), 'MODEL_INVALID');
    const closed = await SpeechModel.load(join(whisper, 'tiny.pt'));
    closed.close();
    closed.close();
    await refused(closed.transcribe(path), 'HANDLE_CLOSED');
  });

  it('stops when it is aborted', async () => {
    const path = sound('aborted.wav', 90);
    const controller = new AbortController();
    let windows = 0;
    const running = model.transcribe(path, {
      signal: controller.signal,
      onProgress: () => {
        windows += 1;
        controller.abort();
      },
    });
    await expect(running).rejects.toMatchObject({ code: 'ABORTED' });
    expect(windows).toBe(1);
    const { signal } = controller;
    await expect(model.transcribe(path, { signal })).rejects.toMatchObject({ code: 'ABORTED' });
    await expect(SpeechModel.load(whisper, { signal })).rejects.toMatchObject({ code: 'ABORTED' });
  });
});

describe('subtitle files', () => {
  const subtitles = [
    { start: 0, end: 1.5, text: 'Hello.' },
    { start: 3661.0004, end: 3662.9996, text: 'a <b> & c\n\n2 --> 3' },
  ];

  it('are written as players read them', () => {
    expect(toSrt(subtitles)).toBe(
      '1\n00:00:00,000 --> 00:00:01,500\nHello.\n\n2\n01:01:01,000 --> 01:01:03,000\na <b> & c 2 → 3\n',
    );
    expect(toWebVtt(subtitles)).toBe(
      'WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nHello.\n\n01:01:01.000 --> 01:01:03.000\na &lt;b&gt; &amp; c 2 → 3\n',
    );
    expect([toSrt([]), toWebVtt([])]).toEqual(['', 'WEBVTT\n']);
  });
});
