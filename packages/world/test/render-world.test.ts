import { createHash } from 'node:crypto';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openMedia } from '@llamavid/video';
import { afterAll, beforeAll, describe, expect, it, test } from 'vitest';
import {
  type QuestionRow,
  type RenderedWorld,
  type RenderWorldProgress,
  renderWorld,
  type TrainingRecord,
  type WorldKind,
} from '../src/index.js';

const root = mkdtempSync(join(tmpdir(), 'llamavid-world-'));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const NEVER_TRAINED = [
  'red star',
  'green cross',
  'blue ring',
  'yellow square',
  'purple circle',
  'orange triangle',
];

function rowsOf(folder: string): QuestionRow[] {
  const lines = readFileSync(join(folder, 'qa.jsonl'), 'utf8').trimEnd().split('\n');
  return lines.map((line) => JSON.parse(line));
}

function hashes(folder: string): Record<string, string> {
  const names = readdirSync(folder, { recursive: true, encoding: 'utf8' }).filter((name) =>
    name.includes('.'),
  );
  return Object.fromEntries(
    names.sort().map((name) => [
      name,
      createHash('sha256')
        .update(readFileSync(join(folder, name)))
        .digest('hex'),
    ]),
  );
}

describe('a small world', () => {
  const folder = join(root, 'small');
  const progress: RenderWorldProgress[] = [];
  let world: RenderedWorld;
  beforeAll(async () => {
    world = await renderWorld({ folder, seed: 5, count: 3, onProgress: (step) => progress.push(step) });
  });

  it('has the files that it says, and reports each', () => {
    const kinds = ['image', 'clip', 'multi'];
    const expected = kinds.flatMap((kind) =>
      [0, 1, 2].map((index) => `media/${kind}-00${index}.${kind === 'image' ? 'png' : 'mp4'}`),
    );
    expect(world.files).toEqual(expected);
    expect(progress).toEqual(expected.map((file, place) => ({ done: place + 1, total: 9, file })));
    expect(readdirSync(join(folder, 'media')).sort()).toEqual(expected.map((file) => file.slice(6)).sort());
    expect(readdirSync(folder).sort()).toEqual(['media', 'pretrain.json', 'qa.jsonl', 'train.json']);
  });

  it('has rows as the published sample has them, and where what is asked about is seen', async () => {
    const rows = rowsOf(folder);
    expect(rows.length).toBe(world.questions);
    for (const row of rows) {
      expect(Object.keys(row)).toEqual([
        'media',
        'kind',
        'type',
        'question',
        'answer',
        'unseen_phrasing',
        'frames',
        'subtitles',
        'evidence',
      ]);
      expect(row.unseen_phrasing).toBe(false);
      expect(row.subtitles).toBeNull();
      for (const pair of NEVER_TRAINED) expect(`${row.question} ${row.answer}`).not.toContain(pair);
    }
    for (const media of world.files) {
      const own = rows.filter((row) => row.media === media);
      expect(own.length).toBeGreaterThan(5);
      await using file = await openMedia(join(folder, media), { fps: 1, strict: true });
      let frames = 0;
      for await (const _ of file.frames()) frames += 1;
      expect(new Set(own.map((row) => row.frames))).toEqual(new Set([frames]));
    }
  });

  it('films at 24 to 30 frames a second and 240 to 640 pixels a side', async () => {
    let seconds = 0;
    for (const media of world.files.filter((name) => name.endsWith('.mp4'))) {
      await using file = await openMedia(join(folder, media));
      const { width, height, fps = 0, durationSeconds = 0 } = file.info;
      expect([24, 25, 30]).toContain(fps);
      for (const side of [width, height]) expect(side >= 240 && side <= 640 && side % 2 === 0).toBe(true);
      expect(durationSeconds % 1).toBe(0);
      seconds += durationSeconds;
    }
    expect(world.seconds).toBe(seconds);
  });

  it('has training lists that say the same', () => {
    const read = (name: string): TrainingRecord[] => JSON.parse(readFileSync(join(folder, name), 'utf8'));
    const rows = rowsOf(folder);
    const records = read('train.json');
    expect(new Set(records.map(({ id }) => id)).size).toBe(records.length);
    const said = records.map(({ image, video, conversations: [human, gpt] }) => {
      expect([human.from, gpt.from]).toEqual(['human', 'gpt']);
      const media = image ?? video ?? '';
      expect(media.endsWith(image === undefined ? '.mp4' : '.png')).toBe(true);
      return [media, human.value, gpt.value];
    });
    expect(said).toEqual(rows.map(({ media, question, answer }) => [media, `<image>\n${question}`, answer]));
    const descriptions = read('pretrain.json');
    expect(descriptions.length).toBe(9);
    expect(records).toEqual(expect.arrayContaining(descriptions));
  });
});

test('equal seeds give equal bytes, other seeds others, and a larger count changes no file', async () => {
  const [first, again, more, other] = await Promise.all(
    (
      [
        [1, 2],
        [1, 2],
        [1, 3],
        [2, 2],
      ] as const
    ).map(async ([seed, count], place) => {
      const folder = join(root, `seeds-${place}`);
      await renderWorld({ folder, seed, count, kinds: ['image', 'clip'] });
      return hashes(folder);
    }),
  );
  expect(again).toEqual(first);
  for (const [name, hash] of Object.entries(first ?? {})) {
    if (name.startsWith('media')) expect(more?.[name]).toBe(hash);
    expect(other?.[name]).not.toBe(hash);
  }
});

test('a long video has subtitles, and its questions are answered by them', async () => {
  const folder = join(root, 'long');
  const { files, seconds } = await renderWorld({ folder, seed: 3, count: 1, kinds: ['long'] });
  expect(files).toEqual(['media/long-000.mp4']);
  expect(seconds).toBeGreaterThan(120);
  const srt = readFileSync(join(folder, 'media/long-000.srt'), 'utf8');
  expect(srt).toMatch(/^1\n00:\d\d:\d\d,500 --> 00:\d\d:\d\d,700\n[a-z ,]+ [.!]\n\n2\n/);
  const rows = rowsOf(folder);
  expect(rows.length).toBeGreaterThanOrEqual(6);
  for (const { kind, type, answer, frames, subtitles } of rows) {
    expect([kind, frames, subtitles]).toEqual(['long', seconds, 'media/long-000.srt']);
    if (type === 'sub') expect(srt).toContain(` is ${answer} .`);
    else expect(type).toBe('said');
  }
  expect(JSON.parse(readFileSync(join(folder, 'train.json'), 'utf8'))).toEqual([]);
});

test('pairs that are never trained and phrasings that are never trained', async () => {
  const folder = join(root, 'unseen');
  await renderWorld({ folder, count: 2, kinds: ['clip'], neverTrained: 'only', phrasing: 'unseen' });
  const rows = rowsOf(folder);
  expect(rows.every((row) => row.unseen_phrasing)).toBe(true);
  for (const { answer } of rows.filter(({ type }) => type === 'describe')) {
    expect(NEVER_TRAINED.some((pair) => answer.includes(pair))).toBe(true);
  }
  expect(JSON.parse(readFileSync(join(folder, 'train.json'), 'utf8'))).toEqual([]);
});

test('an abort stops within a file and leaves no list and no unfinished file', async () => {
  const folder = join(root, 'aborted');
  const controller = new AbortController();
  const rendering = renderWorld({
    folder,
    count: 5,
    kinds: ['clip'],
    signal: controller.signal,
    onProgress: ({ done }) => {
      if (done === 2) setTimeout(() => controller.abort('enough'), 5);
    },
  });
  await expect(rendering).rejects.toMatchObject({ code: 'ABORTED', cause: 'enough' });
  const left = readdirSync(folder, { recursive: true, encoding: 'utf8' });
  expect(left.filter((name) => name.endsWith('.part') || name.includes('json'))).toEqual([]);
  await expect(renderWorld({ folder, signal: AbortSignal.abort() })).rejects.toMatchObject({
    code: 'ABORTED',
  });
});

test.each([
  [{ folder: '' }, /folder is empty/],
  [{ seed: -1 }, /seed is -1/],
  [{ seed: 0.5 }, /seed is 0.5/],
  [{ count: 0 }, /count is 0/],
  [{ count: Number.NaN }, /count is NaN/],
  [{ kinds: [] }, /kinds is empty/],
  [{ kinds: ['film' as WorldKind] }, /kind is film, but must be one of image, clip, multi, long, needle/],
  [{ neverTrained: 'maybe' as 'only' }, /neverTrained is maybe/],
  [{ phrasing: 'polite' as 'mixed' }, /phrasing is polite/],
])('%o is refused', async (options, message) => {
  const rendering = renderWorld({ folder: join(root, 'refused'), ...options });
  await expect(rendering).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
    message: expect.stringMatching(message),
  });
});

test('a folder that cannot be made', async () => {
  writeFileSync(join(root, 'file'), '');
  await expect(renderWorld({ folder: join(root, 'file') })).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
  });
});
