// The feature store as a user meets it: by the command line, in processes of their own.
import {
  appendFileSync,
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { llamavid } from './llamavid.js';

const fixtures = join(import.meta.dirname, '../../../fixtures');
const shapes = join(fixtures, 'world/media/multi-010.mp4');
const long = join(fixtures, 'world/media/long-000.mp4');
const question = 'what appears first?';

/** Every file of a folder with its bytes. */
function contents(folder: string): Map<string, string> {
  const names = readdirSync(folder, { recursive: true, encoding: 'utf8' }).sort();
  const files = names.filter((name) => statSync(join(folder, name)).isFile());
  return new Map(files.map((name) => [name, readFileSync(join(folder, name), 'base64')]));
}

const shardsOf = (folder: string) =>
  readdirSync(folder, { recursive: true, encoding: 'utf8' }).filter((name) =>
    /\d{5}\.safetensors$/.test(name),
  );

describe('the feature store', () => {
  let place: string;
  let next = 0;
  beforeAll(() => {
    place = mkdtempSync(join(tmpdir(), 'llamavid-store-'));
  });
  afterAll(() => rmSync(place, { recursive: true, force: true }));
  const fresh = () => join(place, `store-${next++}`);

  const ask = async (media: string, ...flags: string[]) => {
    const run = await llamavid(['ask', media, question, '--json', '--quiet', ...flags]);
    expect(run.stderr).toBe('');
    expect(run.exitCode).toBe(0);
    return JSON.parse(run.stdout);
  };
  const failure = async (...args: string[]) => {
    const run = await llamavid([...args, '--json', '--quiet']);
    expect(run.exitCode).toBe(1);
    return JSON.parse(run.stdout).error;
  };

  it('decodes and encodes nothing at the second question, and answers the same', async () => {
    const store = fresh();
    const first = await ask(shapes, '--store', store);
    const second = await ask(shapes, '--store', store);
    expect(first.work.framesDecoded).toBeGreaterThanOrEqual(first.sampling.frames);
    expect(first.work).toMatchObject({ storeHit: false, framesEncoded: first.sampling.frames });
    expect(second.work).toEqual({ framesDecoded: 0, framesEncoded: 0, storeHit: true });
    const without = await ask(shapes, '--no-store');
    for (const { tokenIds, answer, sampling, usage } of [second, without]) {
      expect({ tokenIds, answer, sampling, usage }).toEqual({
        tokenIds: first.tokenIds,
        answer: first.answer,
        sampling: first.sampling,
        usage: first.usage,
      });
    }
    expect(without.work.storeHit).toBe(false);
    // Other frames, or other bits, are other features.
    expect((await ask(shapes, '--store', store, '--fps', '2')).work.storeHit).toBe(false);
    expect((await ask(shapes, '--store', store, '--store-bits', '8')).work.storeHit).toBe(false);
    // The name does not matter, the bytes do.
    const copy = join(place, 'copy.mp4');
    copyFileSync(shapes, copy);
    const copied = await ask(copy, '--store', store);
    expect(copied.work.storeHit).toBe(true);
    expect(copied.sampling.source.path).toBe(copy);
    copyFileSync(long, copy);
    expect((await ask(copy, '--store', store)).work.storeHit).toBe(false);
  });

  it('is where LLAMAVID_STORE says, up to LLAMAVID_STORE_LIMIT, and is shown and emptied by `cache`', async () => {
    const env = { LLAMAVID_STORE: fresh() };
    const run = async (...args: string[]) => {
      const { stdout, exitCode, stderr } = await llamavid([...args, '--json'], { env });
      expect([exitCode, stderr.replace(/^(?!error).*\n/gm, '')]).toEqual([0, '']);
      return JSON.parse(stdout);
    };
    await run('encode', shapes);
    expect((await run('ask', shapes, question)).work.storeHit).toBe(true);
    await run('encode', join(fixtures, 'world/media/image-000.png'));
    const { videos, store, limitBytes } = await run('cache', 'ls');
    expect([store, limitBytes, videos.length]).toEqual([env.LLAMAVID_STORE, 20e9, 2]);
    expect(videos[0]).toMatchObject({ source: 'image-000.png', frames: 1, precision: '16bit' });
    const [picture, video] = videos;
    expect(video.bytes).toBeGreaterThan(1000);
    const { removed } = await run('cache', 'rm', picture.key.slice(0, 8));
    expect(removed.map(({ key }: { key: string }) => key)).toEqual([picture.key]);
    const limited = { ...env, LLAMAVID_STORE_LIMIT: '1kB' };
    // The newest stays, however large.
    await llamavid(['ask', join(fixtures, 'world/media/image-001.png'), question], { env: limited });
    const left = (await run('cache', 'ls')).videos;
    expect(left.map(({ source }: { source: string }) => source)).toEqual(['image-001.png']);
    expect((await run('cache', 'prune', '--limit', '0')).removed).toHaveLength(1);
    expect((await run('cache', 'ls')).videos).toEqual([]);
    const plain = await llamavid(['cache', 'ls'], { env });
    expect(plain.stdout).toBe(`0 videos, 0 MB, at most 20.0 GB, in ${env.LLAMAVID_STORE}\n`);
  });

  it('encodes frames that repeat once', async () => {
    const folder = join(place, 'frames');
    mkdirSync(folder);
    const picture = (number: number) => join(fixtures, `world/media/image-00${number}.png`);
    for (let frame = 0; frame < 40; frame += 1) {
      copyFileSync(picture(frame === 20 ? 1 : 0), join(folder, `${frame}.png`));
    }
    const { work, sampling, tokenIds } = await ask(folder, '--store', fresh());
    // Frames 0 to 19, 20, and 21 to 39, of which some are in the next shard.
    expect([sampling.frames, work.framesDecoded, work.framesEncoded]).toEqual([40, 40, 3]);
    expect((await ask(folder, '--store', 'none')).tokenIds).toEqual(tokenIds);
  });

  it('goes on where it was killed, and ends with the same bytes', async () => {
    // `LLAMAVID_KILL_SEED` chooses other moments, `LLAMAVID_KILLS` more of them.
    const { LLAMAVID_KILL_SEED = '1', LLAMAVID_KILLS = '6' } = process.env;
    let state = Number(LLAMAVID_KILL_SEED);
    const random = () => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return state / 2 ** 32;
    };
    const encode = (store: string, killAfter?: number) =>
      llamavid(['encode', long, '-o', store, '--fps', '8', '--json', '--quiet'], {
        ...(killAfter !== undefined && { killAfter }),
      });
    const whole = fresh();
    const begun = performance.now();
    const reference = await encode(whole);
    const usual = performance.now() - begun;
    expect(reference.exitCode).toBe(0);
    const expected = contents(whole);
    expect(shardsOf(whole).length).toBeGreaterThan(4);
    const { sampling } = JSON.parse(reference.stdout);

    let [kills, resumed] = [0, 0];
    while (kills < Number(LLAMAVID_KILLS)) {
      const store = fresh();
      let stored = 0;
      for (let attempt = 0; ; attempt += 1) {
        const run = await encode(store, usual * random() * (1 + attempt / 2));
        // It may be killed behind its last word.
        if (run.stdout !== '') {
          const result = JSON.parse(run.stdout);
          expect(result.sampling).toEqual(sampling);
          // The last shard has fewer frames than the others.
          expect(result.work.framesEncoded).toBeLessThanOrEqual(Math.max(sampling.frames - 32 * stored, 0));
          if (stored > 0) resumed += 1;
          break;
        }
        expect(run.signal).toBe('SIGKILL');
        kills += 1;
        const now = statSync(store, { throwIfNoEntry: false }) ? shardsOf(store).length : 0;
        expect(now, `seed ${LLAMAVID_KILL_SEED}`).toBeGreaterThanOrEqual(stored);
        stored = now;
      }
      expect(contents(store), `seed ${LLAMAVID_KILL_SEED}`).toEqual(expected);
      rmSync(store, { recursive: true });
    }
    expect(resumed, `seed ${LLAMAVID_KILL_SEED}`).toBeGreaterThan(0);
  }, 600_000);

  it('ends with the same bytes wherever it goes on', async () => {
    const encode = async (store: string) => {
      const run = await llamavid(['encode', long, '-o', store, '--fps', '8', '--json', '--quiet']);
      expect(run.exitCode).toBe(0);
      return JSON.parse(run.stdout).work;
    };
    const store = fresh();
    await encode(store);
    const expected = contents(store);
    const shards = shardsOf(store).sort();
    const [entry = ''] = [...expected.keys()].filter((name) => name.endsWith('entry.json'));
    // Also where one frame is left, which is then encoded alone, and where nothing is but the last word.
    expect(expected.get(shards.at(-1) ?? '')?.length).toBeLessThan(
      expected.get(shards[0] ?? '')?.length ?? 0,
    );
    for (const left of [0, 1, 2, shards.length / 2, shards.length]) {
      for (const shard of shards.slice(shards.length - left)) rmSync(join(store, shard));
      const known = JSON.parse(readFileSync(join(store, entry), 'utf8'));
      writeFileSync(join(store, entry), JSON.stringify({ ...known, complete: null }));
      const { framesEncoded } = await encode(store);
      expect(framesEncoded > 0).toBe(left > 0);
      expect(contents(store), `${left} shards`).toEqual(expected);
    }
  }, 120_000);

  it('keeps what was done when it is cancelled', async () => {
    const store = fresh();
    const args = ['encode', long, '-o', store, '--fps', '8', '--json'];
    const cancelled = await llamavid([...args, '--quiet'], {
      interruptWhen: () =>
        statSync(store, { throwIfNoEntry: false }) !== undefined && shardsOf(store).length > 0,
    });
    if (cancelled.exitCode === 0) return; // The machine was faster.
    expect(cancelled.exitCode).toBe(130);
    expect(JSON.parse(cancelled.stdout).error.code).toBe('ABORTED');
    const stored = shardsOf(store).length;
    expect(stored).toBeGreaterThan(0);
    const { work, sampling } = JSON.parse((await llamavid([...args, '--quiet'])).stdout);
    expect(work.framesEncoded).toBeLessThanOrEqual(sampling.frames - 32 * stored);
  });

  it('makes a damaged shard anew and says so', async () => {
    const store = fresh();
    const { tokenIds } = await ask(shapes, '--store', store);
    const [shard = ''] = shardsOf(store);
    const before = contents(store);
    truncateSync(join(store, shard), 200);
    const repaired = await ask(shapes, '--store', store);
    expect(repaired.work.storeHit).toBe(false);
    expect(repaired.tokenIds).toEqual(tokenIds);
    expect(repaired.sampling.notes.join()).toMatch(/store: .*00000\.safetensors: .*encoded again/);
    expect(contents(store)).toEqual(before);
    expect((await ask(shapes, '--store', store)).work.storeHit).toBe(true);
  });

  it('refuses a folder that is something else, or of another version', async () => {
    const folder = fresh();
    mkdirSync(folder);
    writeFileSync(join(folder, 'store.json'), '{"version":9}');
    const version = await failure('ask', shapes, question, '--store', folder);
    expect(version).toMatchObject({ code: 'STORE_INVALID', message: expect.stringContaining('version 9') });
    const other = await failure('encode', shapes, '-o', fixtures);
    expect(other).toMatchObject({ code: 'STORE_INVALID', hint: expect.any(String) });
  });

  it('answers without a store where the usual one cannot be written, and says so', async () => {
    const env = { LLAMAVID_STORE: '/proc/llamavid' };
    const run = await llamavid(['ask', shapes, question, '--json'], { env });
    expect(run.exitCode).toBe(0);
    expect(JSON.parse(run.stdout).sampling.notes.join()).toContain('store: the features are not kept: /proc');
    expect(run.stderr).toContain('note: store: ');
    // Who asked for it is told.
    expect(await failure('ask', shapes, question, '--store', env.LLAMAVID_STORE)).toMatchObject({
      code: 'STORE_INVALID',
    });
    expect((await llamavid(['encode', shapes], { env })).exitCode).toBe(1);
  });

  it('refuses a second `encode` of the same video while the first one runs', async () => {
    const store = fresh();
    const args = ['encode', long, '-o', store, '--fps', '8', '--json', '--quiet'];
    let second: ReturnType<typeof llamavid> | undefined;
    const first = await llamavid(args, {
      interruptWhen: () => {
        if (statSync(store, { throwIfNoEntry: false }) && shardsOf(store).length > 0)
          second ??= llamavid(args);
        return false;
      },
    });
    expect(first.exitCode).toBe(0);
    const run = await second;
    const { error, work } = JSON.parse(run?.stdout ?? '{}');
    // On a fast machine the first one was done already.
    if (work === undefined) expect(error).toMatchObject({ code: 'STORE_LOCKED', hint: expect.any(String) });
    else expect(work.storeHit).toBe(true);
  });

  it('tells that a file changed', async () => {
    const store = fresh();
    const growing = join(place, 'growing.mp4');
    copyFileSync(long, growing);
    let grown = false;
    const run = await llamavid(['encode', growing, '-o', store, '--fps', '8', '--json', '--quiet'], {
      interruptWhen: () => {
        if (!grown && statSync(store, { throwIfNoEntry: false }) && shardsOf(store).length > 0) {
          appendFileSync(growing, 'more');
          grown = true;
        }
        return false;
      },
    });
    expect(run.exitCode).toBe(1);
    expect(JSON.parse(run.stdout).error).toMatchObject({
      code: 'MEDIA_UNREADABLE',
      message: expect.stringContaining('changed while it was read'),
    });
    expect(shardsOf(store)).toEqual([]);
  });
});
