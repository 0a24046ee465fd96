// What is to run on a graphics processor, run on the CPU at the smallest size: all of it but CUDA itself.
import { execFileSync, spawnSync } from 'node:child_process';
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { preface } from './preface.ts';

const root = join(import.meta.dirname, '../..');
const work = mkdtempSync(join(tmpdir(), 'llamavid-gpu-'));
afterAll(() => rmSync(work, { recursive: true, force: true }));

beforeAll(() => {
  const target = execFileSync('rustc', ['--print', 'host-tuple'], { encoding: 'utf8' }).trim();
  const programs = ['llamavid-parity', 'kernel_parity', 'llamavid-scale'].flatMap((name) => ['--bin', name]);
  const flags = ['--release', '--locked', '--quiet', '--workspace', '--target', target];
  execFileSync('cargo', ['build', ...flags, ...programs], {
    cwd: root,
    stdio: 'inherit',
  });
});

function run(script: string, ...args: string[]) {
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    [join(import.meta.dirname, script), ...args],
    {
      encoding: 'utf8',
      env: { ...process.env, CUDA_HOME: '', CUDA_PATH: '', CUDA_VISIBLE_DEVICES: '' },
    },
  );
  return { status, lines: stdout.trim().split('\n'), stderr };
}

it('tests a device against the records and the CPU', () => {
  const cases = join(work, 'cases');
  cpSync(join(root, 'fixtures/oracle/eps-probe'), join(cases, 'eps-probe'), { recursive: true });
  const args = ['--device', 'cpu', '--questions', '12', '--cases', cases];
  const passed = run('test.ts', ...args);
  expect(passed.lines.filter((line) => line.startsWith('passed: '))).toEqual([
    'passed: kernels',
    expect.stringMatching(/^passed: records in f32: \d\d+ compared, 0 too far/),
    expect.stringMatching(/^passed: records in f16: \d\d+ compared, 0 too far/),
    expect.stringMatching(/^passed: records in bf16: \d\d+ compared, 0 too far/),
    expect.stringMatching(/^passed: answers in f32 of cpu: 12 questions, 100.0 % as on the CPU/),
    expect.stringMatching(/^passed: answers in auto of cpu: 12 questions, 100.0 % as on the CPU/),
    expect.stringMatching(/^passed: answers in f32 of cpu,cpu: 12 questions, 100.0 % as on the CPU/),
    expect.stringMatching(/^passed: answers in auto of cpu,cpu: 12 questions, 100.0 % as on the CPU/),
  ]);
  expect(passed.status).toBe(0);

  const path = join(cases, 'eps-probe/cases.json');
  const changed = JSON.parse(readFileSync(path, 'utf8'));
  changed.cases[0].greedy_ids[3] += 1;
  writeFileSync(path, JSON.stringify(changed));
  const failed = run('test.ts', ...args);
  expect(failed.lines).toContainEqual(
    expect.stringMatching(/^FAILED: records in f32: \d\d+ compared, 1 too/),
  );
  expect(failed.lines).toContainEqual(expect.stringContaining('greedy_ids'));
  expect(failed.status).toBe(1);
});

it('measures a device, without PyTorch where there is none', () => {
  const output = join(work, 'gpu');
  const { status, lines } = run(
    'bench.ts',
    ...['--device', 'cpu', '--size', 'tiny', '--rounds', '2', '--python', join(work, 'no python')],
    ...['--material', work, '--output', output],
  );
  expect(status).toBe(0);
  expect(lines).toContainEqual(expect.stringMatching(/^skipped: PyTorch: /));
  const entries: { title: string; ours: number[] }[] = JSON.parse(readFileSync(`${output}.json`, 'utf8'));
  expect(entries.map(({ title }) => title)).toEqual([
    'ViT of 2 blocks of 32, f32, 4 frames',
    ...['f16', 'q4_0'].flatMap((format) =>
      [32, 64].flatMap((tokens) => [
        `tiny ${format} in f32, prefill of ${tokens}`,
        `tiny ${format} in f32, decode behind ${tokens}`,
      ]),
    ),
    ...['prefill', 'memory', 'memory that plan told'].map((what) =>
      expect.stringMatching(`^smallest in f32, 40\\d\\d tokens of which 12 frames are a part, ${what}$`),
    ),
    ...[32, 64].flatMap((tokens) => [
      `tiny f16 in f32 shared by cpu,cpu, prefill of ${tokens}`,
      `tiny f16 in f32 shared by cpu,cpu, decode behind ${tokens}`,
    ]),
  ]);
  for (const { title, ours } of entries) {
    expect(ours.length).toBe(2);
    // A process that has been as large as that before grows no more.
    const least = title.endsWith(', memory') ? -1 : 0;
    for (const value of ours) expect(value).toBeGreaterThan(least);
  }
  const text = readFileSync(`${output}.md`, 'utf8');
  expect(text).toContain('Nothing of this project has run on a graphics processor yet');
  expect(text).toContain('| `tiny` |');
});

it.each(['test.ts', 'bench.ts'])('%s ends with 3 and the reason where there is no device', (script) => {
  const { status, stderr } = run(script);
  expect(stderr).toContain('cannot be opened');
  expect(stderr).toMatch(/Nothing was (tested|measured)/);
  expect(status).toBe(3);
});

it('refuses what it does not know', () => {
  expect(run('test.ts', '--questions', 'many').status).toBe(2);
  expect(run('bench.ts', '--size', 'huge').status).toBe(2);
  expect(run('bundle.ts', '--arch', 'sm_10').status).toBe(2);
});

it('says in the repository what has run', () => {
  const entries: { machine: string }[] = JSON.parse(
    readFileSync(join(root, 'docs/benchmarks/gpu.json'), 'utf8'),
  );
  const measured = entries.some(({ machine }) => machine.startsWith('cuda'));
  const text = readFileSync(join(root, 'docs/benchmarks/gpu.md'), 'utf8');
  expect(text.startsWith(preface(measured))).toBe(true);
});
