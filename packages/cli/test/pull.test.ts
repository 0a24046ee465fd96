import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { HubServer } from '../../hub/test/hub-server.js';
import { llamavid } from './llamavid.js';

const root = join(import.meta.dirname, '../../..');
const tiny = join(root, 'packages/tiny/model');
const shapes = join(root, 'fixtures/world/media/multi-018.mp4');
const question = ['ask', shapes, 'what appears first?', '--device', 'cpu', '--json'];

let server: HubServer;
const home = mkdtempSync(join(tmpdir(), 'llamavid-pull-'));
const before = { ...process.env };

/** Files below a folder, those that `keep` takes. */
function read(folder: string, keep: (path: string) => boolean = () => true): Record<string, Buffer> {
  const paths = readdirSync(folder, { recursive: true, encoding: 'utf8' });
  const files = paths.filter((path) => keep(path) && statSync(join(folder, path)).isFile());
  return Object.fromEntries(files.map((path) => [path, readFileSync(join(folder, path))]));
}

beforeAll(async () => {
  server = await HubServer.start();
  for (const name of Object.keys(process.env)) if (/^(HF_|LLAMAVID_)/.test(name)) delete process.env[name];
  process.env['HF_HOME'] = home;
  process.env['HF_ENDPOINT'] = server.url;
});
beforeEach(() => {
  server.repositories.clear();
  rmSync(home, { recursive: true, force: true });
});
afterAll(async () => {
  process.env = before;
  await server[Symbol.asyncDispose]();
  rmSync(home, { recursive: true, force: true });
});

describe('llamavid pull', () => {
  it('fetches a model that then answers by its name, and by its folder', async () => {
    server.add('someone/shapes', read(tiny));
    const early = await llamavid([...question, '--model', 'someone/shapes']);
    expect(early.exitCode).toBe(1);
    expect(JSON.parse(early.stdout).error).toMatchObject({
      code: 'MODEL_NOT_FOUND',
      hint: expect.stringContaining('llamavid pull someone/shapes'),
    });
    expect(server.log).toEqual([]);

    const { exitCode, stdout, stderr } = await llamavid(['pull', 'someone/shapes']);
    expect(exitCode, stderr).toBe(0);
    const folder = stdout.trim();
    expect(stdout).toBe(`${folder}\n`);
    expect(stderr).toMatch(/^asking for someone\/shapes\n\d+ files, [\d.]+ MB: [\d.]+ MB to fetch\n/);
    expect(stderr).toContain('someone/shapes/model.safetensors: 5.8 MB fetched\n');
    expect(stderr).toContain('note: someone/shapes is not in the catalogue');

    const [embedded, named, loaded] = await Promise.all([
      llamavid(question),
      llamavid([...question, '--model', 'someone/shapes']),
      llamavid([...question, '--model', folder]),
    ]);
    const { answer } = JSON.parse(embedded.stdout);
    expect(JSON.parse(named.stdout)).toMatchObject({ answer, model: { name: 'shapes' } });
    expect(JSON.parse(loaded.stdout)).toMatchObject({ answer });
  });

  it('puts a model together from the places where its parts lie', async () => {
    const model = read(tiny, (path) => !/^(bert|processor|tokenizer)/.test(path));
    // As published: weights in a shard with an index, links into the cache.
    const { 'model.safetensors': weights = Buffer.alloc(0), ...rest } = model;
    const names = Object.keys(
      JSON.parse(weights.subarray(8, 8 + Number(weights.readBigUInt64LE())).toString()),
    );
    const shard = 'model-00001-of-00001.safetensors';
    const map = names.filter((name) => name !== '__metadata__').map((name) => [name, shard]);
    const index = JSON.stringify({ weight_map: Object.fromEntries(map) });
    server.add('someone/parts', { ...rest, [shard]: weights, 'model.safetensors.index.json': index });
    server.add('someone/words', read(join(tiny, 'bert')));
    server.add('someone/pictures', { ...read(join(tiny, 'processor')), 'weights.bin': Buffer.alloc(5000) });
    server.plain.set('/tokenizer.model', { data: readFileSync(join(tiny, 'tokenizer.model')), etag: '"1"' });
    const catalogue = join(home, 'catalogue.json');
    mkdirSync(home, { recursive: true });
    writeFileSync(
      catalogue,
      JSON.stringify({
        entries: {
          'someone/parts': {
            needs: { bert: 'someone/words', processor: 'someone/pictures', 'tokenizer.model': 'sentences' },
          },
          'someone/words': {},
          'someone/pictures': { files: ['preprocessor_config.json'] },
          sentences: { url: `${server.cdnUrl}/tokenizer.model` },
        },
      }),
    );
    const pulled = await llamavid(['pull', 'someone/parts', '--catalogue', catalogue, '--json']);
    expect(pulled.exitCode, pulled.stderr).toBe(0);
    const { path, bytes, bytesFetched, files } = JSON.parse(pulled.stdout);
    expect(bytesFetched).toBe(bytes);
    expect(files).toContainEqual({ name: 'sentences', bytes: 20_347, state: 'fetched', checkedBy: 'size' });
    expect(existsSync(join(path, 'processor/weights.bin'))).toBe(false);
    const { stdout, stderr } = await llamavid([...question, '--model', 'someone/parts']);
    const embedded = await llamavid(question);
    expect(JSON.parse(stdout).answer, stderr).toBe(JSON.parse(embedded.stdout).answer);
  });

  it('stops at Ctrl-C with 130, and continues', async () => {
    server.add('someone/shapes', read(tiny));
    server.paceMs = 50;
    const cancelled = await llamavid(['pull', 'someone/shapes', '--json'], {
      watch: (text, kill) => {
        if (text.includes('to fetch')) setTimeout(() => kill('SIGINT'), 600);
      },
    });
    expect([cancelled.exitCode, JSON.parse(cancelled.stdout).error.code]).toEqual([130, 'ABORTED']);
    server.paceMs = 0;
    const { exitCode } = await llamavid(['pull', 'someone/shapes', '--quiet']);
    expect(exitCode).toBe(0);
    const ranges = server.contentRequests('/lfs/').map(({ headers }) => headers.range);
    expect(ranges).toContainEqual(expect.stringMatching(/^bytes=\d+-$/));
  });

  it('lists what it knows', async () => {
    const { exitCode, stdout } = await llamavid(['pull', '--list']);
    expect(exitCode).toBe(0);
    expect(stdout).toMatch(/^YanweiLi\/llama-vid-7b-full-224-long-video +hour-long videos/m);
    const json = await llamavid(['pull', '--list', '--json']);
    expect(JSON.parse(json.stdout).entries['bert-base-uncased'].files).toContain('vocab.txt');
  });

  for (const [what, args, exitCode, code] of [
    ['no name', ['pull'], 2, 'INVALID_ARGUMENT'],
    ['two names', ['pull', 'a/b', 'c/d'], 2, 'INVALID_ARGUMENT'],
    ['a name that is none', ['pull', 'a/b/c/d'], 2, 'INVALID_ARGUMENT'],
    ['a catalogue that is not there', ['pull', 'a/b', '--catalogue', 'nowhere.json'], 2, 'INVALID_ARGUMENT'],
    ['a model that is not there', ['pull', 'a/b'], 1, 'MODEL_NOT_FOUND'],
  ] as const) {
    it(`refuses ${what}`, async () => {
      const run = await llamavid([...args, '--json']);
      expect([run.exitCode, JSON.parse(run.stdout).error.code]).toEqual([exitCode, code]);
    });
  }
});
