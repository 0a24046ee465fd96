import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, rmSync, truncateSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { llamavid, main } from './llamavid.js';

const fixtures = join(import.meta.dirname, '../../../fixtures');
const model = join(fixtures, 'random-model');
const tiny = join(import.meta.dirname, '../../tiny/model');
const shapes = join(fixtures, 'world/media/multi-018.mp4');
const root = mkdtempSync(join(tmpdir(), 'llamavid-convert-cli-'));
afterAll(() => rmSync(root, { recursive: true, force: true }));

describe('llamavid convert', () => {
  it('makes a folder that answers as the embedded model does', async () => {
    const output = join(root, 'tiny');
    const made = await llamavid(['convert', tiny, '-o', output, '--quiet']);
    expect(made).toMatchObject({ exitCode: 0, stderr: '' });
    expect(made.stdout).toMatch(/^\d+ weights, 5\.\d+ MB: .*tiny\n$/);
    const question = 'what appears first?';
    const ask = (folder: string) => llamavid(['ask', shapes, question, '--model', folder, '--json']);
    const [converted, embedded] = await Promise.all([ask(output), ask(tiny)]);
    expect(JSON.parse(converted.stdout).tokenIds).toEqual(JSON.parse(embedded.stdout).tokenIds);
  });

  it('reports wrong usage, missing parts and JSON', async () => {
    const none = join(root, 'none');
    expect(await llamavid(['convert', tiny])).toMatchObject({ exitCode: 2 });
    expect(await llamavid(['convert', tiny, '-o', none, '--quantize', 'q1'])).toMatchObject({ exitCode: 2 });
    const missing = await llamavid(['convert', join(model, 'eva_vit_g.pth'), '-o', none, '--json']);
    expect(missing.exitCode).toBe(1);
    expect(JSON.parse(missing.stdout).error.code).toBe('MODEL_FILE_MISSING');
    const made = await llamavid(['convert', model, '-o', join(root, 'json'), '--dtype', 'f16', '--json']);
    expect(JSON.parse(made.stdout)).toMatchObject({ folder: join(root, 'json'), tensors: 176 });
  });

  it('interleaves the rows of a model that answers as before', async () => {
    const [plain, interleaved] = [join(root, 'q8_0'), join(root, 'q8_0-interleaved')];
    await llamavid(['convert', tiny, '-o', plain, '--quantize', 'q8_0', '--quiet']);
    await llamavid(['convert', plain, '-o', interleaved, '--interleave', '--quiet']);
    const inspected = await llamavid(['inspect', interleaved]);
    expect(inspected.stdout).toMatch(/language model: .*36 Q8_0 interleaved/);
    const question = 'what appears first?';
    const ask = (folder: string) => llamavid(['ask', shapes, question, '--model', folder, '--json']);
    const [before, after] = await Promise.all([ask(plain), ask(interleaved)]);
    expect(JSON.parse(after.stdout).tokenIds).toEqual(JSON.parse(before.stdout).tokenIds);
    const refused = await llamavid([
      'convert',
      tiny,
      '-o',
      join(root, 'no-blocks'),
      '--interleave',
      '--json',
    ]);
    expect([refused.exitCode, JSON.parse(refused.stdout).error.code]).toEqual([2, 'INVALID_ARGUMENT']);
  });

  it('killed or interrupted leaves nothing that loads, and succeeds the next time', async () => {
    for (const [kill, exitCode] of [['SIGKILL', null] as const, ['SIGINT', 130] as const]) {
      const output = join(root, kill);
      // Small files are written quickly: killed at any moment, the folder is whole or not there.
      const child = spawn(process.execPath, [main, 'convert', tiny, '-o', output], { stdio: 'ignore' });
      const hidden = join(root, `.${kill}.converting`);
      const watch = setInterval(() => {
        if (existsSync(hidden)) child.kill(kill);
      }, 1);
      const ended = await new Promise((resolve) => child.on('close', resolve));
      clearInterval(watch);
      if (!existsSync(output)) {
        expect(ended).toBe(exitCode);
        const left = await llamavid(['inspect', hidden, '--json']);
        expect(left.exitCode).toBe(1);
        expect(await llamavid(['convert', tiny, '-o', output, '--quiet'])).toMatchObject({ exitCode: 0 });
      }
      expect(await llamavid(['inspect', output, '--verify'])).toMatchObject({ exitCode: 0 });
      expect(readdirSync(root).filter((name) => name.endsWith('.converting'))).toEqual([]);
    }
  });
});

describe('llamavid inspect', () => {
  it('lists parts and what is wrong, as text and as JSON', async () => {
    const text = await llamavid(['inspect', model]);
    expect(text.exitCode).toBe(0);
    expect(text.stdout).toMatch(/language model: \d+\.\d+ M parameters/);
    expect(text.stdout).toMatch(/found {3}vocab\.txt: /);
    const output = join(root, 'cut');
    await llamavid(['convert', model, '-o', output, '--quiet']);
    truncateSync(join(output, 'model.safetensors'), 1000);
    const cut = await llamavid(['inspect', output, '--json']);
    expect(cut.exitCode).toBe(1);
    expect(JSON.parse(cut.stdout).problems[0]).toMatchObject({ code: 'MODEL_INVALID' });
  });
});

describe('llamavid doctor', () => {
  it('looks at the machine, the addon, the codecs, the cache and a model', async () => {
    const { exitCode, stdout } = await llamavid(['doctor', '--model', tiny, '--json'], {
      env: { HF_HOME: join(root, 'cache') },
    });
    const { ok, checks } = JSON.parse(stdout) as { ok: boolean; checks: { name: string; status: string }[] };
    expect([exitCode, ok]).toEqual([0, true]);
    const names = [
      'processors',
      'memory',
      'addon',
      'instruction sets',
      'threads',
      'GPU',
      'codecs',
      'cache',
      'model',
    ];
    expect(checks.map(({ name }) => name)).toEqual(names);
    expect(checks.find(({ name }) => name === 'codecs')).toMatchObject({
      status: 'pass',
      message: expect.stringContaining('h264'),
    });
  });

  it('fails with the fix when something is missing', async () => {
    const { exitCode, stdout } = await llamavid(['doctor', '--model', join(root, 'nothing')]);
    expect(exitCode).toBe(1);
    expect(stdout).toMatch(/failure model: .*nothing/);
    const broken = await llamavid(['doctor', '--json'], {
      env: { LLAMAVID_NATIVE_PATH: join(root, 'none.node') },
    });
    expect(broken.exitCode).toBe(1);
    const { checks } = JSON.parse(broken.stdout) as {
      checks: { name: string; status: string; fix: string }[];
    };
    expect(checks.find(({ name }) => name === 'addon')).toMatchObject({
      status: 'failure',
      fix: expect.any(String),
    });
  });
});
