// MovieNet's layout to features, and questions about them, by the command line: key frames are those of a rendered video.
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { crc32, deflateSync } from 'node:zlib';
import { type Frame, openMedia } from '@llamavid/video';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { llamavid } from './llamavid.js';

const fixtures = join(import.meta.dirname, '../../../fixtures');
const film = join(fixtures, 'world/media/long-000.mp4');
const said = join(fixtures, 'world/media/long-000.srt');
const question = 'what is said about the red star?';
/** Runtimes are whole minutes: with so many frames in one, key frame 10 k is shown at second k. */
const framesAMinute = 600;

/** A member of a tar as its header announces it. */
interface Member {
  name: string;
  data?: Buffer;
  type?: string;
  link?: string;
  /** Bytes announced, where that is not the truth. */
  size?: number;
}

function tar(members: readonly Member[]): Buffer {
  const parts = members.flatMap(
    ({ name, data = Buffer.alloc(0), type = '0', link = '', size = data.length }) => {
      const header = Buffer.alloc(512);
      header.write(name, 0, 100);
      header.write('0000644\0', 100);
      header.write(`${size.toString(8).padStart(11, '0')}\0`, 124);
      header.write('00000000000\0        ', 136);
      header.write(type, 156);
      header.write(link, 157, 100);
      header.write('ustar\u000000', 257);
      const sum = header.reduce((total, byte) => total + byte, 0);
      header.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148);
      return [header, data, Buffer.alloc((512 - (data.length % 512)) % 512)];
    },
  );
  return Buffer.concat([...parts, Buffer.alloc(1024)]);
}

/** A frame without loss, so that it is the same picture to the last bit. */
function png({ data, width, height }: Frame): Buffer {
  const rows = Buffer.alloc(height * (1 + width * 3));
  for (let row = 0; row < height; row += 1) {
    rows.set(data.subarray(row * width * 3, (row + 1) * width * 3), row * (1 + width * 3) + 1);
  }
  const chunk = (kind: string, content: Buffer) => {
    const body = Buffer.concat([Buffer.from(kind), content]);
    const [length, sum] = [Buffer.alloc(4), Buffer.alloc(4)];
    length.writeUInt32BE(content.length);
    sum.writeUInt32BE(crc32(body));
    return Buffer.concat([length, body, sum]);
  };
  const head = Buffer.alloc(13);
  head.writeUInt32BE(width, 0);
  head.writeUInt32BE(height, 4);
  head.set([8, 2, 0, 0, 0], 8);
  const parts = [
    chunk('IHDR', head),
    chunk('IDAT', deflateSync(rows, { level: 1 })),
    chunk('IEND', Buffer.alloc(0)),
  ];
  return Buffer.concat([Buffer.from('\x89PNG\r\n\x1a\n', 'latin1'), ...parts]);
}

describe('movie-features', () => {
  let place: string;
  let pictures: Buffer[];
  /** A folder of the same pictures, one a second. */
  let frames: string;
  let next = 0;
  /** A model that was trained on features without class rows, as the long-video models are. */
  let longVideoModel: string;

  beforeAll(async () => {
    place = mkdtempSync(join(tmpdir(), 'llamavid-movies-'));
    pictures = [];
    frames = join(place, 'frames');
    // A shard of a store and some more.
    await using media = await openMedia(film, { fps: 1, end: 40 });
    for await (const frame of media.frames()) {
      pictures.push(png(frame));
      write(join(frames, `${frame.timestamp}.png`), pictures.at(-1) as Buffer);
    }
    longVideoModel = join(place, 'model');
    cpSync(join(import.meta.dirname, '../../tiny/model'), longVideoModel, { recursive: true });
    rmSync(join(longVideoModel, 'manifest.json'), { force: true });
    const config = JSON.parse(readFileSync(join(longVideoModel, 'config.json'), 'utf8'));
    config.llamavid.features = 'precomputed';
    writeFileSync(join(longVideoModel, 'config.json'), JSON.stringify(config));
  }, 120_000);
  afterAll(() => rmSync(place, { recursive: true, force: true }));
  const fresh = () => join(place, `${next++}`);

  const write = (path: string, content: string | Buffer) => {
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, content);
  };
  /** A movie of these key frames, three a shot. */
  function addMovie(root: string, id: string, count: number, members?: readonly Member[]): void {
    const keys = Array.from({ length: count }, (_, key) => key * 10);
    const shots: string[] = [];
    for (let at = 0; at < count; at += 3) {
      shots.push(`${at * 10} ${at * 10 + 29} ${keys.slice(at, at + 3).join(' ')}`);
    }
    const minutes = Math.ceil((count * 10) / framesAMinute);
    shots.push(`${count * 10} ${minutes * framesAMinute}`);
    const key = (index: number) =>
      `shot_${String(Math.floor(index / 3)).padStart(4, '0')}_img_${index % 3}.jpg`;
    const all = keys.map((_, index) => ({ name: key(index), data: pictures[index] as Buffer }));
    // Tars keep any order; names tell the frames'.
    write(join(root, 'videos', `${id}.tar`), tar(members ?? all.reverse()));
    write(join(root, 'files/shot', `${id}.txt`), `${shots.join('\n')}\n`);
    write(
      join(root, 'files/meta', `${id}.json`),
      JSON.stringify({ version: [{ runtime: `${minutes} min` }] }),
    );
    write(join(root, 'files/subtitle', `${id}.srt`), readFileSync(said));
    write(join(root, 'files/script', `${id}.script`), '');
  }
  const extract = async (root: string, ...flags: string[]) => {
    const args = ['movie-features', join(root, 'videos'), join(root, 'files'), '--json', '--quiet', ...flags];
    const { exitCode, stdout, stderr } = await llamavid(args);
    expect(stderr).toBe('');
    return {
      exitCode,
      movies: stdout
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line)),
    };
  };
  const ask = async (media: string, ...flags: string[]) => {
    const { stdout } = await llamavid(['ask', media, question, '--json', '--quiet', ...flags]);
    return JSON.parse(stdout);
  };

  it('answers about files and stores as about the frames themselves', async () => {
    const root = fresh();
    addMovie(root, 'tt01', pictures.length);
    const model = ['--model', longVideoModel];
    const direct = await ask(frames, '--subtitles', said, '--store', fresh(), ...model);
    const prompt = (await ask(frames, '--subtitles', said, '--dry-run', ...model)).prompt;
    expect(direct.tokenIds.length).toBeGreaterThan(0);

    const [pickles, store] = [fresh(), fresh()];
    const asPickle = ['--format', 'pkl', '-o', pickles, ...model];
    const made = await extract(root, ...asPickle);
    const pickle = join(pickles, 'tt01.pkl');
    const facts = { id: 'tt01', path: pickle, notes: expect.any(Array) };
    expect(made).toEqual({
      exitCode: 0,
      movies: [{ ...facts, state: 'made', frames: pictures.length, dropped: 0 }],
    });
    expect(readdirSync(pickles)).toEqual(['tt01.pkl']);
    const before = readFileSync(pickle);
    expect((await extract(root, ...asPickle)).movies).toEqual([{ ...facts, state: 'finished', notes: [] }]);
    expect(readFileSync(pickle).equals(before)).toBe(true);

    const [stored] = (await extract(root, '-o', store, ...model)).movies;
    expect(stored).toMatchObject({ state: 'made', frames: pictures.length });
    const [again] = (await extract(root, '-o', store, ...model)).movies;
    expect(again).toMatchObject({ state: 'finished', path: stored.path, frames: pictures.length });

    for (const media of [pickle, store, stored.path]) {
      const answer = await ask(media, ...model);
      expect(answer.tokenIds, media).toEqual(direct.tokenIds);
      expect(answer).toMatchObject({
        answer: direct.answer,
        usage: direct.usage,
        work: { storeHit: true, framesDecoded: 0 },
      });
      expect((await ask(media, '--dry-run', ...model)).prompt, media).toBe(prompt);
    }
    expect((await ask(store, ...model)).sampling.timestamps).toEqual(direct.sampling.timestamps);
    const chat = await llamavid(['chat', pickle, '--quiet', ...model], { input: `${question}\n` });
    expect(chat).toMatchObject({ exitCode: 0, stdout: `${direct.answer}\n` });
    const planned = await llamavid(['plan', pickle, '--json', '--quiet', '--question', question, ...model]);
    expect(JSON.parse(planned.stdout).promptTokens).toBe(direct.usage.promptTokens);

    // The embedded model itself, which sees class rows in pictures: file and store are the same to it.
    const other = fresh();
    await extract(root, '-o', other);
    expect((await ask(other)).tokenIds).toEqual((await ask(pickle)).tokenIds);
  }, 300_000);

  it('places key frames and subtitles where the reference does', async () => {
    const { shot, meta, srt, frame_time, inputs } = JSON.parse(
      readFileSync(join(fixtures, 'oracle/text/movie_features.json'), 'utf8'),
    );
    const [root, store] = [fresh(), fresh()];
    addMovie(root, 'tt02', frame_time.length);
    write(join(root, 'files/shot/tt02.txt'), shot);
    write(join(root, 'files/meta/tt02.json'), JSON.stringify(meta));
    write(join(root, 'files/subtitle/tt02.srt'), srt);
    await extract(root, '-o', store);
    const { prompt, samplings, tokensPerFrame } = await ask(store, '--dry-run');
    expect(samplings[0].timestamps).toEqual(frame_time);
    expect(prompt).toContain(
      `this movie.${inputs.replaceAll('<image>', '<image>'.repeat(tokensPerFrame))}Now the`,
    );
  });

  it('cuts the work into parts, and goes on behind movies that cannot be made', async () => {
    const root = fresh();
    for (const id of ['a', 'b', 'c', 'd', 'e']) addMovie(root, id, 4);
    rmSync(join(root, 'files/script/b.script'));
    rmSync(join(root, 'files/subtitle/c.srt'));
    write(join(root, 'files/meta/d.json'), '{"version": [{"runtime": "soon"}]}');
    const states = async (output: string, ...flags: string[]) => {
      const { exitCode, movies } = await extract(root, '--format', 'pkl', '-o', output, ...flags);
      return [exitCode, ...movies.map(({ id, state }) => `${id} ${state}`)];
    };
    const output = fresh();
    expect(await states(output, '--chunk', '2', '--index', '0')).toEqual([0, 'a made', 'b left-out']);
    expect(await states(output, '--chunk', '2', '--index', '1')).toEqual([1, 'd failed', 'e made']);
    expect(readdirSync(output)).toEqual(['a.pkl', 'e.pkl']);
    expect(await states(output)).toEqual([1, 'a finished', 'b left-out', 'd failed', 'e finished']);
    for (const flags of [
      ['--chunk', '2', '--index', '2'],
      ['--chunk', '0'],
      ['--format', 'npy'],
      ['--format', 'pkl'],
    ]) {
      const run = await llamavid(['movie-features', join(root, 'videos'), join(root, 'files'), ...flags]);
      expect(run.exitCode, flags.join(' ')).toBe(2);
    }
    expect((await llamavid(['movie-features', join(root, 'nowhere'), join(root, 'files')])).exitCode).toBe(1);
  });

  it('takes no harm from tars, shots and texts that are something else', async () => {
    const root = fresh();
    const [first, second] = pictures as [Buffer, Buffer];
    const frame = (name: string, data = first): Member => ({ name, data });
    const tars: [string, readonly Member[], RegExp | number][] = [
      // Names lead nowhere, and links are no pictures.
      ['escape', [frame('../../../escaped.jpg'), frame('/tmp/escaped.jpg', second)], 2],
      [
        'links',
        [
          frame('1.jpg'),
          { name: '2.jpg', type: '2', link: '/etc/passwd' },
          { name: '3.jpg', type: '1', link: '1.jpg' },
          frame('4.jpg', second),
        ],
        2,
      ],
      [
        'devices',
        [frame('1.jpg'), { name: 'p.jpg', type: '6' }, { name: 'd.jpg', type: '3' }, frame('2.jpg', second)],
        2,
      ],
      // One that cannot be decoded goes, with its time.
      ['broken', [frame('1.jpg'), frame('2.jpg', Buffer.from('\xff\xd8\xff no picture', 'latin1'))], 1],
      ['none', [frame('readme.txt')], /without pictures/],
      ['fewer', [frame('1.jpg')], /holds 1 pictures, and there are 2 times/],
      ['announced', [frame('1.jpg'), { name: '2.jpg', data: second, size: 8 ** 11 - 1 }], /cut off/],
      [
        'header',
        [{ name: 'x', type: 'x', data: Buffer.alloc(512), size: 8 ** 11 - 1 }, frame('1.jpg')],
        /no picture in this tar is whole/,
      ],
    ];
    for (const [id, members] of tars) addMovie(root, id, 2, members);
    addMovie(root, 'video', 2);
    cpSync(film, join(root, 'videos/video.tar'));
    addMovie(root, 'packed', 2);
    write(join(root, 'videos/packed.tar'), Buffer.from([31, 139, 8, 0, 0, 0]));
    addMovie(root, 'empty', 2);
    write(join(root, 'videos/empty.tar'), '');
    addMovie(root, 'shots', 2);
    write(join(root, 'files/shot/shots.txt'), '0 10 five\n');
    addMovie(root, 'noshots', 2);
    write(join(root, 'files/shot/noshots.txt'), '\n');
    addMovie(root, 'meta', 2);
    write(join(root, 'files/meta/meta.json'), '{"version": []}');
    addMovie(root, 'spoken', 2);
    write(join(root, 'files/subtitle/spoken.srt'), first);
    // Two key frames of one time.
    addMovie(root, 'same', 2);
    write(join(root, 'files/shot/same.txt'), '0 600 5 5\n');

    const store = fresh();
    const { exitCode, movies } = await extract(root, '-o', store);
    expect(exitCode).toBe(1);
    const found = new Map(movies.map((movie) => [movie.id, movie]));
    for (const [id, , expected] of tars) {
      const { state, frames, dropped, error } = found.get(id);
      if (typeof expected === 'number')
        expect([state, frames, dropped], id).toEqual(['made', expected, 2 - expected]);
      else expect([state, error.message], id).toEqual(['failed', expect.stringMatching(expected)]);
    }
    expect(found.get('same')).toMatchObject({
      state: 'made',
      frames: 2,
      notes: [expect.stringContaining('1 key frames')],
    });
    for (const [id, message] of Object.entries({
      video: 'no folder or tar of pictures',
      packed: 'compressed with gzip',
      empty: 'it is empty',
      shots: 'shots.txt, line 1',
      noshots: 'names no key frames',
      meta: 'has no version[0].runtime',
      spoken: 'spoken.srt',
    })) {
      const { state, error } = found.get(id);
      expect([state, error.message, error.code], id).toEqual([
        'failed',
        expect.stringContaining(message),
        expect.any(String),
      ]);
      expect(error.code, id).not.toBe('INTERNAL');
    }
    for (const name of ['escaped.jpg', '../escaped.jpg']) expect(existsSync(join(root, name))).toBe(false);
    expect(existsSync('/tmp/escaped.jpg')).toBe(false);
    // As files: those that fail leave nothing behind.
    const pickles = fresh();
    await extract(root, '--format', 'pkl', '-o', pickles);
    const whole = ['broken.pkl', 'devices.pkl', 'escape.pkl', 'links.pkl', 'same.pkl'];
    expect(readdirSync(pickles).sort()).toEqual(whole);
    // Several videos in a store have to be named.
    expect((await ask(store)).error).toMatchObject({
      code: 'STORE_INVALID',
      message: expect.stringContaining('(broken.tar)'),
    });
  }, 300_000);

  it('leaves no file when it is stopped, and begins the movie again', async () => {
    const root = fresh();
    addMovie(root, 'tt03', pictures.length);
    const [output, unfinished] = [fresh(), '.tt03.pkl.writing'];
    const args = [
      'movie-features',
      join(root, 'videos'),
      join(root, 'files'),
      '--format',
      'pkl',
      '-o',
      output,
    ];
    const stopped = await llamavid([...args, '--json', '--quiet'], {
      interruptWhen: () => existsSync(join(output, unfinished)),
    });
    // A fast machine was done before it heard of it.
    expect([0, 130]).toContain(stopped.exitCode);
    expect(readdirSync(output)).toEqual(stopped.exitCode === 0 ? ['tt03.pkl'] : []);
    rmSync(output, { recursive: true });
    expect((await llamavid(args)).exitCode).toBe(0);
    const expected = readFileSync(join(output, 'tt03.pkl'));
    // What a killed process left is written over.
    rmSync(join(output, 'tt03.pkl'));
    writeFileSync(join(output, unfinished), Buffer.alloc(3 * expected.length, 1));
    expect((await llamavid(args)).exitCode).toBe(0);
    expect(readdirSync(output)).toEqual(['tt03.pkl']);
    expect(readFileSync(join(output, 'tt03.pkl')).equals(expected)).toBe(true);
  }, 120_000);

  it('refuses files that are no features of this model', async () => {
    const root = fresh();
    addMovie(root, 'tt04', 3);
    write(join(root, 'files/subtitle/tt04.srt'), '1\n00:00:00,000 --> 00:00:01,000\nhello\n');
    const [pickles, store] = [fresh(), fresh()];
    await extract(root, '--format', 'pkl', '-o', pickles);
    await extract(root, '-o', store);
    const good = join(pickles, 'tt04.pkl');
    const cut = join(pickles, 'cut.pkl');
    cpSync(good, cut);
    truncateSync(cut, readFileSync(good).length - 9);
    const bad = (name: string, content: string | Buffer) => {
      write(join(pickles, name), content);
      return join(pickles, name);
    };
    const harm = join(root, 'harm');
    const command = `touch ${harm}`;
    const running = `\x80\x04cos\nsystem\nX${String.fromCharCode(command.length)}\0\0\0${command}\x85R.`;
    const cases: [string, string, string | RegExp][] = [
      [bad('running.pkl', Buffer.from(running, 'latin1')), 'DATA_INVALID', 'os.system'],
      [cut, 'DATA_INVALID', 'cut.pkl'],
      [bad('empty.pkl', ''), 'DATA_INVALID', 'empty.pkl'],
      [
        bad('no-inputs.pkl', Buffer.from('\x80\x04}X\x05\0\0\0featsNs.', 'latin1')),
        'DATA_INVALID',
        '`inputs`',
      ],
      [bad('video.pkl', readFileSync(film)), 'DATA_INVALID', 'video.pkl'],
      // Of a model of another width, with as many `<image>` as frames.
      [
        join(fixtures, 'oracle/long-video/data/feats/movie_short.pkl'),
        'DATA_INVALID',
        /`feats` is \[9, 17, 32\].* \[37, 128\]/,
      ],
      [join(pickles, 'nowhere.pkl'), 'MEDIA_NOT_FOUND', 'nowhere.pkl'],
    ];
    for (const [path, code, message] of cases) {
      const { error } = await ask(path);
      expect([error?.code, error?.message, error?.hint], path).toEqual([
        code,
        expect.stringMatching(message),
        expect.any(String),
      ]);
    }
    expect(existsSync(harm)).toBe(false);
    const random = ['--model', join(fixtures, 'random-model')];
    expect((await ask(store, ...random)).error).toMatchObject({
      code: 'STORE_INVALID',
      message: expect.stringContaining('another visual encoder'),
    });
    expect((await ask(store, '--fps', '2')).error).toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining('fps'),
    });
    expect((await ask(good, '--subtitles', said)).error).toMatchObject({ code: 'INVALID_ARGUMENT' });
    const shard = join(store, 'videos', readdirSync(join(store, 'videos'))[0] ?? '', '00000.safetensors');
    truncateSync(shard, 100);
    expect((await ask(store)).error).toMatchObject({
      code: 'STORE_INVALID',
      message: expect.stringContaining('00000'),
    });
  }, 120_000);
});
