import {
  cpSync,
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
function read(
  folder: string,
  keep: (path: string) => boolean = () => true,
): Record<string, Buffer<ArrayBufferLike>> {
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

  it('puts the published models together from the places where their parts lie', async () => {
    const random = join(root, 'fixtures/random-model');
    const oracle = join(root, 'fixtures/oracle/video-mean');
    // The built-in catalogue with an address of this machine.
    server.plain.set('/eva_vit_g.pth', { data: readFileSync(join(random, 'eva_vit_g.pth')), etag: '"1"' });
    const catalogue = join(home, 'catalogue.json');
    mkdirSync(home, { recursive: true });
    const eva = { url: `${server.cdnUrl}/eva_vit_g.pth` };
    writeFileSync(catalogue, JSON.stringify({ entries: { 'LAVIS/eva_vit_g.pth': eva } }));

    // What the published configurations say.
    const config = (file: string, more: object) => {
      const { llamavid } = JSON.parse(readFileSync(join(random, 'config.json'), 'utf8'));
      const places = {
        mm_vision_tower: './model_zoo/LAVIS/eva_vit_g.pth',
        image_processor: './llamavid/processor/clip-patch14-224',
      };
      return JSON.stringify({ ...JSON.parse(readFileSync(file, 'utf8')), ...places, llamavid, ...more });
    };
    const full = 'YanweiLi/llama-vid-7b-full-224';
    server.add(full, {
      ...read(random, (path) => /^(pytorch_model|generation|special|tokenizer)/.test(path)),
      'config.json': config(join(random, 'config.json'), {}),
    });
    const stageOne = 'YanweiLi/llama-vid-7b-pretrain-224';
    const base = { _name_or_path: 'model_zoo/LLM/vicuna/7B-V1.5' };
    server.add(stageOne, {
      'mm_projector.bin': readFileSync(join(oracle, 'mm_projector.bin')),
      'config.json': config(join(oracle, 'mm_projector_config.json'), base),
    });
    server.add('lmsys/vicuna-7b-v1.5', read(join(oracle, 'llm')));
    const unwanted = { 'model.safetensors': Buffer.alloc(5000) };
    server.add('bert-base-uncased', { ...read(join(random, 'bert')), ...unwanted });
    server.add('openai/clip-vit-large-patch14', { ...read(join(random, 'processor')), ...unwanted });

    // The same by hand.
    const byHand = join(home, 'by-hand');
    mkdirSync(byHand);
    for (const part of ['bert', 'processor', 'eva_vit_g.pth']) {
      cpSync(join(random, part), join(byHand, part), { recursive: true });
    }
    cpSync(join(oracle, 'llm'), join(byHand, '7B-V1.5'), { recursive: true });
    for (const [path, data] of server.repositories.get(stageOne)?.files ?? [])
      writeFileSync(join(byHand, path), data);

    const ask = async (model: string) => {
      const clip = join(root, 'fixtures/clips/bbb_vp9.webm');
      const settings = ['--device', 'cpu', '--dtype', 'f32', '--max-new-tokens', '8', '--json'];
      const { stdout, stderr } = await llamavid(['ask', clip, 'What is it?', '--model', model, ...settings]);
      expect(JSON.parse(stdout).error, stderr).toBeUndefined();
      return JSON.parse(stdout).tokenIds;
    };
    for (const [name, same] of [
      [full, random],
      [stageOne, byHand],
    ] as const) {
      const pulled = await llamavid(['pull', name, '--catalogue', catalogue, '--json']);
      expect(pulled.exitCode, pulled.stderr).toBe(0);
      const { files } = JSON.parse(pulled.stdout);
      expect(files.map((file: { name: string }) => file.name)).not.toContain(
        'bert-base-uncased/model.safetensors',
      );
      expect(await ask(name)).toEqual(await ask(same));
    }
  });

  it('stops at Ctrl-C with 130, and continues', async () => {
    server.add('someone/shapes', read(tiny));
    server.paceMs = 50;
    const blobs = join(home, 'hub/models--someone--shapes/blobs');
    const begun = () =>
      existsSync(blobs) &&
      readdirSync(blobs).some(
        (name) => name.endsWith('.incomplete') && statSync(join(blobs, name)).size > 100_000,
      );
    let looking: NodeJS.Timeout | undefined;
    const cancelled = await llamavid(['pull', 'someone/shapes', '--json'], {
      watch: (text, kill) => {
        if (!text.includes('to fetch')) return;
        looking = setInterval(() => {
          if (!begun()) return;
          clearInterval(looking);
          kill('SIGINT');
        }, 50);
        looking.unref();
      },
    });
    clearInterval(looking);
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
