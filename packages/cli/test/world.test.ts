import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';

const main = join(import.meta.dirname, '../dist/main.js');
const root = mkdtempSync(join(tmpdir(), 'llamavid-world-cli-'));
afterAll(() => rmSync(root, { recursive: true, force: true }));

interface Run {
  exitCode: number | null;
  stdout: string;
  stderr: string;
}

/** Runs `llamavid world render`; stops it behind its first file when told to. */
function render(args: string[], { interrupt = false } = {}): Promise<Run> {
  const child = spawn(process.execPath, [main, 'world', 'render', ...args], { stdio: 'pipe' });
  const run: Run = { exitCode: null, stdout: '', stderr: '' };
  for (const stream of ['stdout', 'stderr'] as const) {
    child[stream].setEncoding('utf8').on('data', (text: string) => {
      run[stream] += text;
    });
  }
  const folder = args[0] ?? '';
  const watch = setInterval(() => {
    if (!interrupt || !existsSync(join(folder, 'media/clip-000.mp4'))) return;
    clearInterval(watch);
    child.kill('SIGINT');
  }, 5);
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (exitCode) => {
      clearInterval(watch);
      resolve({ ...run, exitCode });
    });
  });
}

describe('llamavid world render', () => {
  it('writes files and says how many', async () => {
    const folder = join(root, 'text');
    const run = await render([folder, '--seed', '3', '--count', '2', '--kinds', 'image,clip']);
    expect(run.exitCode).toBe(0);
    expect(run.stdout).toMatch(/^4 files, \d+ s of video, \d+ questions: .*text\n$/);
    expect(run.stderr).toBe('files: 4 of 4\n');
    expect(readdirSync(join(folder, 'media')).sort()).toEqual([
      'clip-000.mp4',
      'clip-001.mp4',
      'image-000.png',
      'image-001.png',
    ]);
  });

  it('writes clips whose rows are no whole number of vectors', async () => {
    const folder = join(root, 'widths');
    // The first clip of seed 0 has rows of 594 pixels: FFmpeg's converter reads beyond the last of them.
    const run = await render([folder, '--seed', '0', '--count', '4', '--kinds', 'clip']);
    expect([run.exitCode, run.stderr]).toEqual([0, 'files: 4 of 4\n']);
  });

  it('writes one JSON object with --json, and passes its options on', async () => {
    const folder = join(root, 'json');
    const args = [folder, '--count', '1', '--kinds', 'image', '--json', '--quiet'];
    const run = await render([...args, '--never-trained', 'only', '--phrasing', 'unseen']);
    expect([run.exitCode, run.stderr]).toEqual([0, '']);
    const rows = readFileSync(join(folder, 'qa.jsonl'), 'utf8').trimEnd().split('\n');
    expect(JSON.parse(run.stdout)).toEqual({
      folder,
      seed: 0,
      files: ['media/image-000.png'],
      lists: ['qa.jsonl', 'train.json', 'pretrain.json'],
      questions: rows.length,
      seconds: 0,
    });
    expect(rows.every((row) => JSON.parse(row).unseen_phrasing)).toBe(true);
  });

  it.each([
    ['an unknown kind', [join(root, 'no'), '--kinds', 'clip,film']],
    ['no files', [join(root, 'no'), '--count', '0']],
    ['half a seed', [join(root, 'no'), '--seed', '0.5']],
    ['an unknown phrasing', [join(root, 'no'), '--phrasing', 'polite']],
    ['an unknown choice of pairs', [join(root, 'no'), '--never-trained', 'maybe']],
    ['no folder', []],
    ['an empty folder', [' ']],
    ['a folder in a file', [join(main, 'folder')]],
  ])('exits with 2 on %s', async (_, args) => {
    const plain = await render(args);
    expect([plain.exitCode, plain.stdout]).toEqual([2, '']);
    expect(plain.stderr).toMatch(/^error: .+\n(hint: .+\n)?$/);
    const json = await render([...args, '--json']);
    expect(json.exitCode).toBe(2);
    expect(JSON.parse(json.stdout)).toMatchObject({ error: { code: 'INVALID_ARGUMENT' } });
    expect(existsSync(join(root, 'no'))).toBe(false);
  });

  it('ends with 130 on Ctrl-C and leaves no unfinished file', async () => {
    const folder = join(root, 'cancelled');
    const run = await render([folder, '--count', '100', '--kinds', 'clip'], { interrupt: true });
    expect(run.exitCode).toBe(130);
    const left = readdirSync(folder, { recursive: true, encoding: 'utf8' });
    expect(left.filter((name) => name.endsWith('.part') || name.includes('json'))).toEqual([]);
  });
});
