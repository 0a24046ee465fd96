// Every tensor, id and text that was recorded from the reference implementation, from the file to the answer.
import { spawnSync } from 'node:child_process';
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { expect, it } from 'vitest';

const root = resolve(import.meta.dirname, '../..');

interface Report {
  passed: boolean;
  folders: { folder: string; checks: { case: string; name: string; passed: boolean; problem?: string }[] }[];
}

function parity(folder: string): { status: number | null; report: Report } {
  const run = spawnSync(process.execPath, ['tools/cargo.mjs', 'parity', folder, '--json'], {
    cwd: root,
    encoding: 'utf8',
    maxBuffer: 1 << 28,
  });
  return { status: run.status, report: JSON.parse(run.stdout) };
}

it('holds for every recorded case', () => {
  const { status, report } = parity(join(root, 'fixtures/oracle'));
  const failed = report.folders.flatMap(({ folder, checks }) =>
    checks.filter((check) => !check.passed).map((check) => ({ folder, ...check })),
  );
  expect(failed).toEqual([]);
  expect(report.folders.length).toBe(10);
  expect(status).toBe(0);
});

it('fails where an expectation is wrong', () => {
  const folder = mkdtempSync(join(tmpdir(), 'llamavid-parity-'));
  try {
    cpSync(join(root, 'fixtures/oracle/eps-probe'), folder, { recursive: true });
    const path = join(folder, 'cases.json');
    const cases = JSON.parse(readFileSync(path, 'utf8'));
    cases.cases[0].greedy_ids[3] += 1;
    writeFileSync(path, JSON.stringify(cases));
    const { status, report } = parity(folder);
    expect(report.folders[0]?.checks.filter((check) => !check.passed).map((check) => check.name)).toEqual([
      'greedy_ids',
    ]);
    expect(status).toBe(1);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});
