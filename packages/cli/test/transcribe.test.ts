import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { waveFile } from '../../video/test/wave-file.js';
import { llamavid } from './llamavid.js';

const fixtures = join(import.meta.dirname, '../../../fixtures');
const whisper = join(fixtures, 'speech');
const root = mkdtempSync(join(tmpdir(), 'llamavid-transcribe-'));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const sound = join(root, 'sound.wav');
const tone = (time: number) => 0.3 * Math.sin(2 * Math.PI * 300 * time) * (Math.floor(time / 0.7) % 2);
writeFileSync(sound, waveFile({ seconds: 33, rate: 22_050, channels: [tone, tone] }));

describe('llamavid transcribe', () => {
  it('writes subtitles to stdout, to a file and as JSON', async () => {
    const run = (...args: string[]) => llamavid(['transcribe', sound, '--model', whisper, ...args]);
    const [plain, json] = [await run('--quiet'), await run('--json')];
    expect(plain).toMatchObject({ exitCode: 0, stderr: '' });
    expect(json.stderr).toContain('writing down seconds: 33 of 33');
    const { subtitles, segments, durationSeconds } = JSON.parse(json.stdout);
    expect(durationSeconds).toBeCloseTo(33, 1);
    expect(segments.length).toBeGreaterThanOrEqual(subtitles.length);
    expect(plain.stdout.match(/ --> /g) ?? []).toHaveLength(subtitles.length);
    for (const [name, head] of [['film.srt', plain.stdout] as const, ['film.vtt', 'WEBVTT\n'] as const]) {
      const output = join(root, name);
      const written = await run('-o', output);
      expect(written).toMatchObject({ exitCode: 0, stdout: `${subtitles.length} subtitles: ${output}\n` });
      expect(readFileSync(output, 'utf8').startsWith(head)).toBe(true);
    }
  });

  it('reports what is wrong and leaves nothing', async () => {
    const output = join(root, 'none.srt');
    const film = join(fixtures, 'world/media/multi-018.mp4');
    for (const [args, exitCode, code] of [
      [[sound], 2, 'INVALID_ARGUMENT'],
      [[sound, '--model', whisper, '-o', join(root, 'film.txt')], 2, 'INVALID_ARGUMENT'],
      [[sound, '--model', whisper, '--language', 'tlh', '-o', output], 2, 'INVALID_ARGUMENT'],
      [[film, '--model', whisper, '-o', output], 1, 'MEDIA_NO_AUDIO'],
      [[join(root, 'none.mp4'), '--model', whisper], 1, 'MEDIA_NOT_FOUND'],
      [[sound, '--model', join(root, 'none'), '-o', output], 1, 'MODEL_NOT_FOUND'],
      [[sound, '--model', whisper, '-o', join(root, 'none/film.srt')], 2, 'INVALID_ARGUMENT'],
    ] as const) {
      const run = await llamavid(['transcribe', ...args, '--json']);
      expect(run.exitCode, run.stdout).toBe(exitCode);
      expect(JSON.parse(run.stdout).error.code).toBe(code);
    }
    expect(existsSync(output)).toBe(false);
    expect(readdirSync(root).filter((name) => name.endsWith('.writing'))).toEqual([]);
  });
});
