import { createHash } from 'node:crypto';
import {
  mkdirSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  rmSync,
  statSync,
  symlinkSync,
  unlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import process from 'node:process';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { FileProgress, PullPlan } from '../src/index.js';
import { pulledFolder } from '../src/index.js';
import { gitHash, sha256 } from './hub-server.js';
import { noise, Workplace } from './workplace.js';

const NAME = 'someone/model';
const weights = noise(300_000);
const config = '{"model_type":"llama"}';
const catalogue = { [NAME]: {} };

let place: Workplace;
beforeEach(async () => {
  place = await Workplace.start();
});
afterEach(() => place[Symbol.asyncDispose]());

/** The weights' partial file. */
const partial = () => `${place.blob(NAME, sha256(weights))}.llamavid.incomplete`;
const addModel = () => place.server.add(NAME, { 'config.json': config, 'model.safetensors': weights });
const weightRequests = () => place.server.contentRequests('/lfs/').map(({ headers }) => headers.range);

describe('pull', () => {
  it('fills the cache as huggingface_hub does, and makes a folder that loads', async () => {
    const { commit } = place.server.add(NAME, {
      'config.json': config,
      'bert/vocab.txt': 'a\nb\n',
      'model.safetensors': weights,
      empty: '',
    });
    let plan: PullPlan | undefined;
    const states = new Map<string, FileProgress>();
    const pulled = await place.pull(NAME, {
      catalogue,
      onPlan: (value) => {
        plan = value;
      },
      onProgress: (progress) => states.set(progress.name, progress),
    });

    const bytes = weights.length + config.length + 4;
    expect(plan).toEqual({ files: 4, bytes, bytesToFetch: bytes });
    expect(pulled.commit).toBe(commit);
    expect(Object.fromEntries(pulled.files.map(({ name, checkedBy }) => [name, checkedBy]))).toEqual({
      [`${NAME}/config.json`]: 'git-sha1',
      [`${NAME}/bert/vocab.txt`]: 'git-sha1',
      [`${NAME}/empty`]: 'git-sha1',
      [`${NAME}/model.safetensors`]: 'sha256',
    });
    expect(
      [...states.values()].every(({ state, done, bytes }) => state === 'fetched' && done === bytes),
    ).toBe(true);

    const folder = place.repository(NAME);
    expect(readFileSync(join(folder, 'refs/main'), 'utf8')).toBe(commit);
    expect(readlinkSync(join(folder, 'snapshots', commit, 'model.safetensors'))).toBe(
      `../../blobs/${sha256(weights)}`,
    );
    expect(readlinkSync(join(folder, 'snapshots', commit, 'bert/vocab.txt'))).toBe(
      `../../../blobs/${gitHash(Buffer.from('a\nb\n'))}`,
    );
    expect(pulled.path).toBe(join(folder, 'llamavid/model'));
    expect(pulledFolder(NAME)).toBe(pulled.path);
    expect(readFileSync(join(pulled.path, 'model.safetensors'))).toEqual(weights);
    expect(readFileSync(join(pulled.path, 'bert/vocab.txt'), 'utf8')).toBe('a\nb\n');
    expect(JSON.parse(readFileSync(join(pulled.path, 'pulled.json'), 'utf8'))).toMatchObject({
      repository: NAME,
      commit,
    });
    expect(place.files().filter((path) => path.includes('incomplete'))).toEqual([]);
  });

  it('fetches nothing twice, and repairs what is gone', async () => {
    addModel();
    const { path } = await place.pull(NAME, { catalogue });
    const before = place.server.contentRequests('').length;
    const inode = statSync(path).ino;
    const again = await place.pull(NAME, { catalogue });
    expect(again.files.map(({ state, checkedBy }) => [state, checkedBy])).toEqual([
      ['cached', 'size'],
      ['cached', 'size'],
    ]);
    expect([place.server.contentRequests('').length, statSync(path).ino]).toEqual([before, inode]);

    writeFileSync(place.blob(NAME, sha256(weights)), 'cut short');
    unlinkSync(join(path, 'config.json'));
    await place.pull(NAME, { catalogue });
    expect(readFileSync(join(path, 'model.safetensors'))).toEqual(weights);
    expect(readFileSync(join(path, 'config.json'), 'utf8')).toBe(config);
  });

  it('takes what huggingface_hub has fetched', async () => {
    const { commit } = addModel();
    const snapshot = join(place.repository(NAME), 'snapshots', commit);
    mkdirSync(snapshot, { recursive: true });
    mkdirSync(join(place.repository(NAME), 'blobs'));
    writeFileSync(place.blob(NAME, sha256(weights)), weights);
    symlinkSync(`../../blobs/${sha256(weights)}`, join(snapshot, 'model.safetensors'));
    const { path } = await place.pull(NAME, { catalogue });
    expect(weightRequests()).toEqual([]);
    expect(readFileSync(join(path, 'model.safetensors'))).toEqual(weights);
  });

  it('follows a new commit, and keeps revisions apart', async () => {
    const { commit: first } = addModel();
    const { path } = await place.pull(NAME, { catalogue });
    const changed = place.server.add(NAME, {
      'config.json': '{"changed":true}',
      'model.safetensors': weights,
    });
    changed.refs.set('v1', first).set('refs/pr/1', first);
    expect((await place.pull(NAME, { catalogue })).path).toBe(path);
    expect(readFileSync(join(path, 'config.json'), 'utf8')).toBe('{"changed":true}');
    expect(weightRequests()).toHaveLength(1);

    for (const [revision, folder] of [
      ['v1', 'model@v1'],
      ['refs/pr/1', 'model@refs%2Fpr%2F1'],
      [first, `model@${first}`],
    ]) {
      const pulled = await place.pull(`${NAME}@${revision}`, { catalogue });
      expect([pulled.commit, pulled.path]).toEqual([first, join(dirname(path), folder as string)]);
      expect(pulledFolder(`${NAME}@${revision}`)).toBe(pulled.path);
    }
    expect(readFileSync(join(place.repository(NAME), 'refs/refs/pr/1'), 'utf8')).toBe(first);
  });

  it('reads lists of many pages, and follows a repository to its new name', async () => {
    const files = Object.fromEntries(
      Array.from({ length: 25 }, (_, index) => [`part/${index}.json`, `${index}`]),
    );
    place.server.add('new/name', files);
    place.server.renamed.set(NAME, 'new/name');
    place.server.pageSize = 4;
    const { path } = await place.pull(NAME, { catalogue });
    expect(place.files(path)).toHaveLength(26);
    expect(readFileSync(join(path, 'part/24.json'), 'utf8')).toBe('24');
  });

  it('shows the token to the hub and to nobody else', async () => {
    place.server.add(NAME, { 'config.json': config, 'model.safetensors': weights }, 'private');
    writeFileSync(join(place.home, 'token'), `${place.server.token}\n`);
    await place.pull(NAME, { catalogue });
    const seen = (wanted: string) =>
      new Set(
        place.server.log
          .filter(({ origin }) => origin === wanted)
          .map(({ headers }) => headers.authorization),
      );
    expect(seen('hub')).toEqual(new Set([`Bearer ${place.server.token}`]));
    expect(seen('cdn')).toEqual(new Set([undefined]));
    // The variable goes before the file.
    process.env['HF_TOKEN'] = 'hf_wrong';
    expect((await place.failure(NAME, { catalogue })).code).toBe('HUB_ERROR');
  });
});

describe('a connection', () => {
  beforeEach(addModel);

  it('that is cut is continued where it was', async () => {
    place.server.cuts.set('/lfs/', [100_000, 0, 50_000]);
    const { path } = await place.pull(NAME, { catalogue });
    expect(readFileSync(join(path, 'model.safetensors'))).toEqual(weights);
    // How much of it arrives before the cut is seen is up to the system.
    const begins = weightRequests().map((range) => Number(/^bytes=(\d+)-$/.exec(range ?? '')?.[1] ?? 0));
    const [first = -1, second = 0, third = 0, fourth = 0] = begins;
    expect([begins.length, first, second === third]).toEqual([4, 0, true]);
    expect(second > 0 && second <= 100_000 && fourth > third && fourth <= 150_000, `${begins}`).toBe(true);
  });

  it('that is cut too often ends the pull, and the next one continues', async () => {
    place.server.cuts.set('/lfs/', [100_000, 0, 0]);
    const error = await place.failure(NAME, { catalogue, attempts: 3 });
    expect([error.code, error.message]).toEqual(['HUB_ERROR', expect.stringContaining('3 times in a row')]);
    const { size } = statSync(partial());
    expect(size).toBeGreaterThan(0);
    expect(pulledFolder(NAME)).toBeUndefined();
    await place.pull(NAME, { catalogue });
    expect(weightRequests().at(-1)).toBe(`bytes=${size}-`);
  });

  it('to a server without ranges begins anew', async () => {
    const url = `${place.server.cdnUrl}/no-ranges/file.bin`;
    place.server.plain.set('/no-ranges/file.bin', { data: weights, ranges: false });
    place.server.cuts.set('/no-ranges/', [0, 50_000]);
    const { path } = await place.pull('file', { catalogue: { file: { url, sha256: sha256(weights) } } });
    expect(readFileSync(path)).toEqual(weights);
  });

  it('is tried again when the server is busy or its address has run out', async () => {
    const answers = [503, 429, 500];
    let expired = true;
    place.server.intercept = (origin, path, response) => {
      const status = path.includes('/resolve/') || origin === 'cdn' ? undefined : answers.shift();
      if (status !== undefined) response.writeHead(status, { 'retry-after': '0.001' }).end();
      else if (origin === 'cdn' && expired) {
        expired = false;
        response.writeHead(403).end('<Error>Request has expired</Error>');
      } else return undefined;
      return true;
    };
    await place.pull(NAME, { catalogue });
    expect(
      place.server.contentRequests('/resolve/').filter(({ path }) => path.includes('model.safetensors')),
    ).toHaveLength(2);
  });

  it('that is silent is given up', async () => {
    process.env['HF_HUB_DOWNLOAD_TIMEOUT'] = '0.2';
    place.server.intercept = (origin, _path, response) => {
      if (origin !== 'cdn') return undefined;
      response.writeHead(200, { 'content-length': weights.length }).write(weights.subarray(0, 10));
      return true;
    };
    const error = await place.failure(NAME, { catalogue, attempts: 2 });
    expect([error.code, error.message]).toEqual(['HUB_ERROR', expect.stringContaining('silent for 0.2 s')]);
  });

  it('that is slow is waited for', async () => {
    process.env['HF_HUB_DOWNLOAD_TIMEOUT'] = '1';
    place.server.paceMs = 300;
    expect((await place.pull(NAME, { catalogue, attempts: 1 })).files).toHaveLength(2);
  });

  it('to nobody is an error that says so', async () => {
    process.env['HF_ENDPOINT'] = 'http://127.0.0.1:9';
    const error = await place.failure(NAME, { catalogue, attempts: 2 });
    expect([error.code, error.message]).toEqual(['HUB_ERROR', expect.stringContaining('127.0.0.1:9')]);
    expect(error.hint).toContain('HF_HUB_OFFLINE');
  });

  it('ends when the signal says so, and the next pull continues', async () => {
    place.server.paceMs = 5;
    const controller = new AbortController();
    const error = await place.failure(NAME, {
      catalogue,
      signal: controller.signal,
      onProgress: ({ bytes, done }) => {
        if (bytes === weights.length && done > 100_000) controller.abort();
      },
    });
    expect(error.code).toBe('ABORTED');
    const { size } = statSync(partial());
    expect(size).toBeGreaterThan(100_000);
    await place.pull(NAME, { catalogue });
    expect(weightRequests().at(-1)).toBe(`bytes=${size}-`);
    expect((await place.failure(NAME, { catalogue, signal: AbortSignal.abort() })).code).toBe('ABORTED');
  });
});

describe('a checksum that is wrong', () => {
  beforeEach(addModel);

  for (const [what, part, wrong] of [
    ['of a large file', '/lfs/', noise(weights.length, 2)],
    ['of a small file', 'config.json', Buffer.from('{"model_type":"lama!"}')],
  ] as const) {
    it(`${what} leaves nothing`, async () => {
      place.server.corrupt.set(part, wrong);
      const error = await place.failure(NAME, { catalogue });
      expect([error.code, error.message]).toEqual([
        'HUB_ERROR',
        expect.stringMatching(/its (sha256|git-sha1) is not/),
      ]);
      const kept = part === '/lfs/' ? sha256(weights) : gitHash(Buffer.from(config));
      expect(place.files().filter((path) => path.includes(kept))).toEqual([]);
      expect(pulledFolder(NAME)).toBeUndefined();
      place.server.corrupt.clear();
      await place.pull(NAME, { catalogue });
    });
  }

  for (const [what, begun] of [
    ['of other bytes', noise(100_000, 3)],
    ['that is full', noise(weights.length, 3)],
    ['that is too long', noise(weights.length + 1, 3)],
  ] as const) {
    it(`because of a partial file ${what} means a second try`, async () => {
      mkdirSync(dirname(partial()), { recursive: true });
      writeFileSync(partial(), begun);
      const { path } = await place.pull(NAME, { catalogue });
      expect(readFileSync(join(path, 'model.safetensors'))).toEqual(weights);
      expect(weightRequests().at(-1)).toBeUndefined();
    });
  }
});

describe('refusals', () => {
  const cases: Record<
    string,
    { name?: string; token?: string; access?: 'gated' | 'private'; code: string; says: RegExp; hint: RegExp }
  > = {
    'a name that is not there': {
      name: 'someone/else',
      code: 'MODEL_NOT_FOUND',
      says: /someone\/else/,
      hint: /HF_TOKEN/,
    },
    'the same with a token': {
      name: 'someone/else',
      token: 'hf_right',
      code: 'MODEL_NOT_FOUND',
      says: /someone\/else/,
      hint: /spelling/,
    },
    'a revision that is not there': {
      name: `${NAME}@v9`,
      code: 'MODEL_NOT_FOUND',
      says: /no revision v9/,
      hint: /branches/,
    },
    'a private repository': {
      access: 'private',
      code: 'MODEL_NOT_FOUND',
      says: /no model/,
      hint: /HF_TOKEN/,
    },
    'a gated repository': {
      access: 'gated',
      code: 'HUB_ERROR',
      says: /gated.*restricted/,
      hint: /Accept.*HF_TOKEN/,
    },
    'a gated repository for this account': {
      access: 'gated',
      token: 'hf_right',
      code: 'HUB_ERROR',
      says: /gated/,
      hint: /account of your token/,
    },
    'a wrong token': { token: 'hf_old', code: 'HUB_ERROR', says: /401/, hint: /new one.*HF_TOKEN/ },
  };
  for (const [what, { name = NAME, token, access, code, says, hint }] of Object.entries(cases)) {
    it(`${what}: ${code}`, async () => {
      addModel().access = access ?? 'public';
      if (token !== undefined) process.env['HF_TOKEN'] = token;
      const error = await place.failure(name, { catalogue });
      expect(error.code).toBe(code);
      expect(error.message).toMatch(says);
      expect(error.hint).toMatch(hint);
      expect(place.files().filter((path) => path !== 'token')).not.toContainEqual(
        expect.stringContaining('snapshots'),
      );
    });
  }

  it('a file that is listed and not there: HUB_ERROR', async () => {
    addModel();
    place.server.intercept = (_origin, path, response) => {
      if (!path.endsWith('/config.json')) return undefined;
      response.writeHead(404, { 'x-error-code': 'EntryNotFound' }).end();
      return true;
    };
    const error = await place.failure(NAME, { catalogue });
    expect([error.code, error.message]).toEqual(['HUB_ERROR', expect.stringContaining('lists config.json')]);
  });

  it('a file that the catalogue wants and the repository lacks: MODEL_FILE_MISSING', async () => {
    addModel();
    const error = await place.failure(NAME, { catalogue: { [NAME]: { files: ['vocab.txt'] } } });
    expect([error.code, error.message]).toEqual(['MODEL_FILE_MISSING', expect.stringContaining('vocab.txt')]);
  });

  for (const name of [
    '',
    ' ',
    '../x',
    '/etc',
    'a/b/c',
    'a--b/c',
    'a/b@',
    'a/b@../c',
    'a/b@.',
    '.hidden/x',
    'x y',
    'a\\b',
  ]) {
    it(`"${name}" is no name: INVALID_ARGUMENT`, async () => {
      expect((await place.failure(name, { catalogue })).code).toBe('INVALID_ARGUMENT');
      expect(place.server.log).toEqual([]);
    });
  }

  it('a number that makes no sense: INVALID_ARGUMENT', async () => {
    for (const options of [
      { parallel: 0 },
      { parallel: Number.NaN },
      { attempts: 1.5 },
      { retryDelayMs: -1 },
    ]) {
      expect((await place.failure(NAME, { catalogue, ...options })).code).toBe('INVALID_ARGUMENT');
    }
  });

  it('an endpoint that is none: INVALID_ARGUMENT', async () => {
    process.env['HF_ENDPOINT'] = 'ftp://hub';
    expect((await place.failure(NAME, { catalogue })).code).toBe('INVALID_ARGUMENT');
  });
});

describe('a hub that answers garbage', () => {
  const entry = { type: 'file', path: 'config.json', size: 3, oid: '0'.repeat(40) };
  const answers: Record<string, { model?: string; tree?: string; link?: boolean }> = {
    'a login page in the place of the model': { model: '<html>Welcome</html>' },
    'null in the place of the model': { model: 'null' },
    'a model without a commit': { model: '{"id":"x","sha":"../../etc"}' },
    'a login page in the place of the list': { tree: '<html>Welcome</html>' },
    'half a list': { tree: '[{"type":"file","path":"con' },
    'an object in the place of the list': { tree: '{}' },
    'a list of numbers': { tree: '[1]' },
    'a path that leaves the folder': { tree: JSON.stringify([{ ...entry, path: '../../../x' }]) },
    'an absolute path': { tree: JSON.stringify([{ ...entry, path: '/tmp/x' }]) },
    'a path of Windows': { tree: JSON.stringify([{ ...entry, path: 'a\\..\\x' }]) },
    'a size below zero': { tree: JSON.stringify([{ ...entry, size: -1 }]) },
    'a size that is text': { tree: JSON.stringify([{ ...entry, size: '3' }]) },
    'a checksum that is a path': { tree: JSON.stringify([{ ...entry, lfs: { oid: '../x', size: 3 } }]) },
    'the same file twice': { tree: JSON.stringify([entry, entry]) },
    'pages without end': { tree: '[]', link: true },
  };
  for (const [what, { model, tree, link }] of Object.entries(answers)) {
    it(`${what}: HUB_ERROR`, async () => {
      addModel();
      place.server.intercept = (_origin, path, response) => {
        const body = path.includes('/revision/') ? model : path.includes('/tree/') ? tree : undefined;
        if (body === undefined) return undefined;
        if (link) response.setHeader('link', `<${place.server.url}${path}>; rel="next"`);
        response.writeHead(200, { 'content-type': 'application/json' }).end(body);
        return true;
      };
      const error = await place.failure(NAME, { catalogue });
      expect([error.code, error.message]).toEqual([
        'HUB_ERROR',
        expect.stringContaining('does not answer as a hub'),
      ]);
      expect(place.files()).toEqual([]);
    });
  }

  it('a file longer than its list says: HUB_ERROR', async () => {
    addModel();
    place.server.corrupt.set('/lfs/', noise(weights.length + 5));
    expect((await place.failure(NAME, { catalogue })).code).toBe('HUB_ERROR');
    expect(pulledFolder(NAME)).toBeUndefined();
  });

  it('other bytes than were asked for: HUB_ERROR', async () => {
    addModel();
    place.server.cuts.set('/lfs/', [1000]);
    place.server.intercept = (origin, _path, response) => {
      if (origin !== 'cdn' || place.server.cuts.get('/lfs/')?.length !== 0) return undefined;
      response.writeHead(206, { 'content-range': `bytes 0-9/${weights.length}`, 'content-length': 10 });
      response.end(weights.subarray(0, 10));
      return true;
    };
    const error = await place.failure(NAME, { catalogue });
    expect([error.code, error.message]).toEqual([
      'HUB_ERROR',
      expect.stringMatching(/asked for bytes from \d+ on/),
    ]);
  });
});

describe('a full disk', () => {
  // What is written to /dev/full is refused by the system as on a disk that is full.
  it.skipIf(process.platform !== 'linux')(
    'while writing: DISK_FULL, and the next pull succeeds',
    async () => {
      addModel();
      mkdirSync(dirname(partial()), { recursive: true });
      symlinkSync('/dev/full', partial());
      const error = await place.failure(NAME, { catalogue });
      expect([error.code, error.message]).toEqual(['DISK_FULL', expect.stringContaining('the disk is full')]);
      expect(pulledFolder(NAME)).toBeUndefined();
      rmSync(partial());
      await place.pull(NAME, { catalogue });
    },
  );

  it('is noticed before anything is fetched', async () => {
    const { commit } = addModel();
    const huge = {
      type: 'file',
      path: 'huge.bin',
      size: 2 ** 52,
      oid: '0'.repeat(40),
      lfs: { oid: '0'.repeat(64), size: 2 ** 52, pointerSize: 1 },
    };
    place.server.intercept = (_origin, path, response) => {
      if (!path.includes(`/tree/${commit}`)) return undefined;
      response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify([huge]));
      return true;
    };
    const error = await place.failure(NAME, { catalogue });
    expect([error.code, error.message]).toEqual([
      'DISK_FULL',
      expect.stringMatching(/4503599.63 GB are needed, [\d.]+ GB are free/),
    ]);
    expect(place.server.contentRequests('/resolve/')).toEqual([]);
  });
});

describe('offline', () => {
  it('takes what the cache has, and asks nobody', async () => {
    addModel();
    const { path } = await place.pull(NAME, { catalogue });
    const before = place.server.log.length;
    process.env['HF_HUB_OFFLINE'] = '1';
    const notes: string[] = [];
    const again = await place.pull(NAME, { catalogue, onNote: (note) => notes.push(note) });
    expect([again.path, place.server.log.length]).toEqual([path, before]);
    expect(notes).toEqual([expect.stringContaining('the hub was not asked')]);
    // What another program fetched serves too.
    rmSync(dirname(path), { recursive: true });
    expect(readFileSync(join((await place.pull(NAME, { catalogue })).path, 'model.safetensors'))).toEqual(
      weights,
    );
  });

  it('fails for what is not there', async () => {
    process.env['HF_HUB_OFFLINE'] = 'yes';
    const repository = await place.failure(NAME, { catalogue });
    expect([repository.code, repository.hint]).toEqual([
      'MODEL_NOT_FOUND',
      expect.stringContaining('HF_HUB_OFFLINE'),
    ]);
    const file = await place.failure('file', { catalogue: { file: { url: `${place.server.cdnUrl}/x` } } });
    expect(file.code).toBe('MODEL_NOT_FOUND');
    expect(place.server.log).toEqual([]);
  });
});

describe('a file at a plain address', () => {
  const data = noise(200_000, 7);
  const md5 = createHash('md5').update(data).digest('base64');
  let url: string;
  let entries: { eva: { url: string } };
  beforeEach(() => {
    url = `${place.server.cdnUrl}/models/eva_vit_g.pth`;
    entries = { eva: { url } };
  });
  const serve = (file: object = {}) =>
    place.server.plain.set('/models/eva_vit_g.pth', { data, etag: '"v1"', ...file });
  const requests = () =>
    place.server.contentRequests('/models/').map(({ headers }) => [headers.range, headers['if-range']]);

  it('is cached by its address, and checked by the checksum that its server tells', async () => {
    serve({ headers: { 'x-goog-hash': `crc32c=AAAAAA==,md5=${md5}` } });
    const { path, files } = await place.pull('eva', { catalogue: entries });
    expect(path).toMatch(/\/eva_vit_g\.pth$/);
    expect(readFileSync(path)).toEqual(data);
    expect(files).toEqual([{ name: 'eva', bytes: data.length, state: 'fetched', checkedBy: 'md5' }]);
    expect((await place.pull('eva', { catalogue: entries })).files[0]?.state).toBe('cached');
    expect(requests()).toEqual([
      ['bytes=0-0', undefined],
      [undefined, undefined],
      ['bytes=0-0', undefined],
    ]);
    process.env['HF_HUB_OFFLINE'] = '1';
    expect((await place.pull('eva', { catalogue: entries })).path).toBe(path);
  });

  it('says when only the size could be checked', async () => {
    serve();
    const notes: string[] = [];
    const { files } = await place.pull('eva', { catalogue: entries, onNote: (note) => notes.push(note) });
    expect(files[0]?.checkedBy).toBe('size');
    expect(notes).toEqual([expect.stringContaining('no checksum is published')]);
  });

  it('is continued while the server has the same version, else begun anew', async () => {
    serve();
    place.server.cuts.set('/models/', [1, 80_000]);
    await place.failure('eva', { catalogue: entries, attempts: 1 });
    const begun = place.files().find((path) => path.includes('incomplete')) ?? '';
    const { size } = statSync(join(place.home, begun));
    await place.pull('eva', { catalogue: entries });
    expect(requests().at(-1)).toEqual([`bytes=${size}-`, '"v1"']);

    // Changed between two pulls.
    const changed = noise(200_000, 8);
    serve({ data: changed, etag: '"v2"' });
    place.server.cuts.set('/models/', [1, 70_000]);
    await place.failure('eva', { catalogue: entries, attempts: 1 });
    serve({ data, etag: '"v3"' });
    expect(readFileSync((await place.pull('eva', { catalogue: entries })).path)).toEqual(data);
    expect(requests().at(-1)).toEqual([undefined, undefined]);
    expect(place.files().filter((path) => path.includes('incomplete'))).toEqual([]);

    // Changed in the middle of one: the tag goes along, and the server sends all of it.
    serve({ data, etag: '"v4"' });
    place.server.cuts.set('/models/', [1, 60_000]);
    const { path } = await place.pull('eva', {
      catalogue: entries,
      onProgress: ({ done }) => {
        if (done > 0) serve({ data: changed, etag: '"v5"' });
      },
    });
    expect(requests().at(-1)).toEqual([expect.stringMatching(/^bytes=\d+-$/), '"v4"']);
    expect(readFileSync(path)).toEqual(changed);
  });

  it('is begun anew where the server names no version', async () => {
    serve({ etag: undefined });
    place.server.cuts.set('/models/', [1, 80_000]);
    const { path } = await place.pull('eva', { catalogue: entries });
    expect(readFileSync(path)).toEqual(data);
    expect(requests().at(-1)).toEqual([undefined, undefined]);
  });

  const wrong = { sha256: '0'.repeat(64) };
  for (const [what, file, facts, says] of [
    ['a web page', { headers: { 'content-type': 'text/html; charset=utf-8' } }, {}, /is a web page/],
    ['an empty file', { data: Buffer.alloc(0), ranges: false }, {}, /does not tell its size/],
    ['another size than the catalogue says', {}, { bytes: 5 }, /the catalogue says 5/],
    ['another checksum than the catalogue says', {}, wrong, /its sha256 is not/],
    [
      'another checksum than the server says',
      { headers: { 'x-goog-hash': 'md5=AAAAAAAAAAAAAAAAAAAAAA==' } },
      {},
      /its md5 is not/,
    ],
  ] as const) {
    it(`is not taken: ${what}`, async () => {
      serve(file);
      const error = await place.failure('eva', { catalogue: { eva: { url, ...facts } } });
      expect([error.code, error.message]).toEqual(['HUB_ERROR', expect.stringMatching(says)]);
      expect(place.files()).toEqual([]);
    });
  }

  it('that is gone: HUB_ERROR', async () => {
    const error = await place.failure('eva', { catalogue: entries });
    expect([error.code, error.message]).toEqual([
      'HUB_ERROR',
      expect.stringContaining(`${url} answered 404`),
    ]);
  });
});

describe('what a model needs', () => {
  const vocabulary = 'the\nof\n';
  const eva = noise(5000, 4);
  const needs = { 'eva_vit_g.pth': 'eva', bert: 'bert-base', processor: 'clip', base: 'big/base' };
  const known = () => ({
    [NAME]: { needs },
    eva: { url: `${place.server.cdnUrl}/eva.pth` },
    'bert-base': { files: ['vocab.txt'] },
    clip: { files: ['preprocessor_config.json'] },
    'big/base': {},
  });
  beforeEach(() => {
    place.server.plain.set('/eva.pth', { data: eva, etag: '"1"' });
    place.server.add('bert-base', { 'vocab.txt': vocabulary, 'model.safetensors': noise(5000, 5) });
    place.server.add('clip', { 'preprocessor_config.json': '{"size":224}' });
    place.server.add('big/base', { 'pytorch_model.bin': noise(4000, 6) });
  });

  it('is fetched along, and lies where the loader looks', async () => {
    addModel();
    const { path, files } = await place.pull(NAME, { catalogue: known() });
    expect(files).toHaveLength(6);
    expect(readFileSync(join(path, 'eva_vit_g.pth'))).toEqual(eva);
    expect(readFileSync(join(path, 'bert/vocab.txt'), 'utf8')).toBe(vocabulary);
    expect(readFileSync(join(path, 'processor/preprocessor_config.json'), 'utf8')).toBe('{"size":224}');
    // The loader lets shards be links of a repository's own folder only, and this is the base model's.
    const base = realpathSync(join(path, 'base'));
    expect(base).toBe(realpathSync(join(place.repository('big/base'), 'llamavid/base')));
    expect(place.server.contentRequests('bert-base/').map(({ path }) => path.split('/').at(-1))).toEqual([
      'vocab.txt',
    ]);

    // Gone again, it comes back.
    rmSync(place.repository('bert-base'), { recursive: true });
    await place.pull(NAME, { catalogue: known() });
    expect(readFileSync(join(path, 'bert/vocab.txt'), 'utf8')).toBe(vocabulary);
  });

  it('stays away where the repository has its own', async () => {
    place.server.add(NAME, { 'config.json': config, 'bert/vocab.txt': 'own\n', 'eva_vit_g.pth': 'own' });
    const { path } = await place.pull(NAME, { catalogue: known() });
    expect(readFileSync(join(path, 'bert/vocab.txt'), 'utf8')).toBe('own\n');
    expect(readFileSync(join(path, 'eva_vit_g.pth'), 'utf8')).toBe('own');
    expect(place.server.log.filter(({ path }) => /bert-base|eva\.pth/.test(path))).toEqual([]);
  });

  it('is looked for in the cache when offline', async () => {
    addModel();
    const { path } = await place.pull(NAME, { catalogue: known() });
    process.env['HF_HUB_OFFLINE'] = '1';
    expect((await place.pull(NAME, { catalogue: known() })).path).toBe(path);
    rmSync(place.repository('clip'), { recursive: true });
    expect((await place.failure(NAME, { catalogue: known() })).message).toContain('clip is not in the cache');
  });

  it('is told to be unknown for a repository that is not in the catalogue', async () => {
    addModel();
    const notes: string[] = [];
    await place.pull(NAME, { catalogue: {}, onNote: (note) => notes.push(note) });
    expect(notes).toEqual([expect.stringContaining('not in the catalogue')]);
  });
});

describe('a lock', () => {
  it('of a dead process is taken over, and a folder that it left unfinished is removed', async () => {
    addModel();
    const lock = join(place.hub, `.locks/models--someone--model/${sha256(weights)}.llamavid.lock`);
    mkdirSync(lock, { recursive: true });
    const past = new Date(Date.now() - 60_000);
    utimesSync(lock, past, past);
    const left = join(place.repository(NAME), 'llamavid/model.some-id.incomplete');
    mkdirSync(left, { recursive: true });
    const states = new Set<string>();
    await place.pull(NAME, { catalogue, onProgress: ({ state }) => states.add(state) });
    expect(states).toEqual(new Set(['fetching', 'fetched']));
    expect(place.files(dirname(left))).not.toContainEqual(expect.stringContaining('incomplete'));
  });

  it('makes two pulls in one process share the work', async () => {
    addModel();
    place.server.paceMs = 20;
    const [first, second] = await Promise.all([
      place.pull(NAME, { catalogue }),
      place.pull(NAME, { catalogue }),
    ]);
    expect(first.path).toBe(second.path);
    expect(weightRequests()).toEqual([undefined]);
  });
});
