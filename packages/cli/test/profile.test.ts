// `ask --profile` and `--threads`, in processes of their own.
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { llamavid } from './llamavid.js';

const video = join(import.meta.dirname, '../../../fixtures/world/media/multi-010.mp4');
const folder = mkdtempSync(join(tmpdir(), 'llamavid-profile-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const ask = ['ask', video, 'what appears first?', '--no-store', '--quiet', '--max-new-tokens', '8'];

describe('llamavid ask --profile', () => {
  it('writes one file that says where the time of the process went', async () => {
    const path = join(folder, 'trace.json');
    const begun = performance.now();
    const { exitCode, stdout } = await llamavid([...ask, '--json', '--profile', path]);
    const outside = performance.now() - begun;
    expect(exitCode).toBe(0);
    expect(JSON.parse(stdout).answer).not.toBe('');
    const { summary, traceEvents } = JSON.parse(readFileSync(path, 'utf8'));
    expect(Object.keys(summary.phases)).toEqual(
      expect.arrayContaining(['start', 'plan', 'load', 'encode', 'prefill', 'decode']),
    );
    expect(summary.wallMs).toBeLessThan(outside);
    const sum = Object.values<number>(summary.phases).reduce((all, each) => all + each);
    expect(sum + summary.otherMs).toBeCloseTo(summary.wallMs, 1);
    expect(traceEvents.length).toBeGreaterThan(10);
    expect(readdirSync(folder)).toEqual(['trace.json']);
  });

  it('refuses a file that cannot be written before it begins', async () => {
    for (const path of [folder, join(folder, 'nowhere/trace.json'), '']) {
      const { exitCode, stdout } = await llamavid([...ask, '--json', '--profile', path]);
      expect(exitCode).toBe(2);
      expect(JSON.parse(stdout).error).toMatchObject({
        code: 'INVALID_ARGUMENT',
        message: expect.stringContaining('--profile'),
      });
    }
  });
});

describe('the number of threads', () => {
  it('is what the flag says, then the variable, then the cores', async () => {
    const counted = async (env: Record<string, string>) => {
      const { stdout } = await llamavid(['doctor', '--json'], { env });
      const checks: { name: string; message: string }[] = JSON.parse(stdout).checks;
      return checks.find(({ name }) => name === 'threads')?.message;
    };
    expect(await counted({ LLAMAVID_THREADS: '3' })).toBe('3 compute');
    expect(await counted({ LLAMAVID_THREADS: '', RAYON_NUM_THREADS: '' })).toMatch(/^\d+ compute$/);
    const answered = await llamavid([...ask, '--threads', '1'], { env: { LLAMAVID_THREADS: 'many' } });
    expect(answered.exitCode).toBe(0);
  });

  it('is refused where it is none', async () => {
    const { exitCode, stderr } = await llamavid(ask, { env: { LLAMAVID_THREADS: 'many' } });
    expect(exitCode).toBe(2);
    expect(stderr).toContain('LLAMAVID_THREADS is "many"');
  });
});
