import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { type ReadSoundOptions, readSound, SOUND_RATE } from '../dist/index.js';
import { makeClip } from './make-clip.js';
import { waveFile } from './wave-file.js';

const clips = join(import.meta.dirname, '../../../fixtures/clips');
const root = mkdtempSync(join(tmpdir(), 'llamavid-sound-'));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const tone = (time: number) => 0.5 * Math.sin(2 * Math.PI * 440 * time);

function write(name: string, bytes: Uint8Array): string {
  const path = join(root, name);
  writeFileSync(path, bytes);
  return path;
}

async function read(path: string, options?: ReadSoundOptions): Promise<Float32Array> {
  const pieces: Float32Array[] = [];
  for await (const piece of readSound(path, options)) {
    expect(piece.length).toBeLessThanOrEqual(4 * SOUND_RATE);
    pieces.push(piece);
  }
  return Float32Array.from(pieces.flatMap((piece) => [...piece]));
}

/** Root of the mean square, of some seconds. */
function loudness(samples: Float32Array, from: number, to: number): number {
  const part = samples.subarray(from * SOUND_RATE, to * SOUND_RATE);
  return Math.sqrt(part.reduce((sum, sample) => sum + sample * sample, 0) / part.length);
}

describe('readSound', () => {
  it('gives a sound of its own kind as it is', async () => {
    const path = write('own.wav', waveFile({ seconds: 9.7, rate: SOUND_RATE, channels: [tone] }));
    const samples = await read(path);
    expect(samples.length).toBe(9.7 * SOUND_RATE);
    for (const place of [0, 1, 100, 64_000, 155_199]) {
      expect(samples[place]).toBeCloseTo(tone(place / SOUND_RATE), 4);
    }
  });

  it('resamples and mixes, eight channels too', async () => {
    const silent = () => 0;
    for (const [rate, channels] of [
      [44_100, [tone, tone]],
      [48_000, [tone, tone, tone, silent, tone, tone, tone, tone]],
      [8000, [tone]],
      [96_000, [tone, tone, tone]],
    ] as const) {
      const path = write(`${rate}.wav`, waveFile({ seconds: 3, rate, channels }));
      const samples = await read(path);
      expect(Math.abs(samples.length - 3 * SOUND_RATE)).toBeLessThan(40);
      expect(loudness(samples, 1, 2)).toBeGreaterThan(0.2);
      expect(samples.every((sample) => Math.abs(sample) <= 1)).toBe(true);
    }
  });

  it('reads containers, and what lies before a cut', async () => {
    const film = join(clips, 'bbb_720p_h264_aac.mp4');
    const whole = await read(film);
    expect(whole.length / SOUND_RATE).toBeGreaterThan(1);
    expect(loudness(whole, 0, whole.length / SOUND_RATE)).toBeGreaterThan(0);
    expect((await read(join(clips, 'subs_audio.mkv'))).length).toBeGreaterThan(SOUND_RATE);
    const bytes = waveFile({ seconds: 8, rate: SOUND_RATE, channels: [tone] });
    const cut = await read(write('cut.wav', bytes.subarray(0, bytes.length / 2)));
    expect(Math.abs(cut.length - 4 * SOUND_RATE)).toBeLessThan(SOUND_RATE / 2);
  });

  it('refuses what has no sound, by its name and with a code', async () => {
    const mute = join(root, 'mute.mp4');
    makeClip(mute, { source: 's=64x48:r=5:d=1' });
    const empty = write('empty.wav', waveFile({ seconds: 0, rate: SOUND_RATE, channels: [tone] }));
    expect(await read(empty)).toHaveLength(0);
    for (const [path, code] of [
      [mute, 'MEDIA_NO_AUDIO'],
      [root, 'MEDIA_NO_AUDIO'],
      [join(root, 'nothing.mp4'), 'MEDIA_NOT_FOUND'],
      [write('nil.mp4', new Uint8Array()), 'MEDIA_UNREADABLE'],
      [write('noise.mp4', readFileSync(import.meta.filename)), 'MEDIA_UNREADABLE'],
    ] as const) {
      await expect(read(path)).rejects.toMatchObject({ code, message: expect.stringContaining(path) });
    }
  });

  it('stops when it is aborted', async () => {
    const path = write('long.wav', waveFile({ seconds: 30, rate: SOUND_RATE, channels: [tone] }));
    const controller = new AbortController();
    const sound = readSound(path, { signal: controller.signal });
    expect((await sound.next()).value).toHaveLength(4 * SOUND_RATE);
    controller.abort();
    await expect(sound.next()).rejects.toMatchObject({ code: 'ABORTED' });
    await expect(read(path, { signal: controller.signal })).rejects.toMatchObject({ code: 'ABORTED' });
  });
});
