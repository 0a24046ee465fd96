// The check of a list names every bad record, opens its videos, and knows the published lists.
import { cpSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { checkData, type DataCheckOptions, type DataFinding, publishedData } from '../dist/index.js';
import { type DataRecord, oracle, smallSet } from './small-set.js';
import { temporaryFolder } from './temporary-folder.js';

const folder = temporaryFolder();
const { images, videos, lists } = smallSet(folder);

async function check(list: string, options: DataCheckOptions = {}) {
  const findings: DataFinding[] = [];
  const checking = checkData(list, { images, videos, ...options });
  for (;;) {
    const { done, value } = await checking.next();
    if (done) return { findings, summary: value };
    findings.push(value);
  }
}

function written(name: string, records: unknown): string {
  const path = join(folder, name);
  writeFileSync(path, typeof records === 'string' ? records : JSON.stringify(records));
  return path;
}

const read = (list: string): DataRecord[] => JSON.parse(readFileSync(list, 'utf8'));

describe('the check of a list', () => {
  it('finds nothing wrong with good records', async () => {
    for (const list of lists) {
      const { findings, summary } = await check(list);
      expect(findings).toEqual([]);
      expect(summary).toMatchObject({ records: read(list).length, badRecords: 0, warnedRecords: 0 });
    }
  });

  it('names the record, the kind and the place, in the order of the list', async () => {
    writeFileSync(join(videos, 'noise.mp4'), 'no video');
    cpSync(join(videos, 'clip.webm'), join(videos, 'cut.webm'));
    writeFileSync(join(videos, 'cut.webm'), readFileSync(join(videos, 'clip.webm')).subarray(0, 200));
    const pair = (question: string, answer = 'So.') => [
      { from: 'human', value: question },
      { from: 'gpt', value: answer },
    ];
    const records = [
      { id: 'good', image: 'im0.png', conversations: pair('<image>\nWhat?') },
      { id: 'noise', video: 'noise.mp4', conversations: pair('<image>\nWhat?') },
      { id: 'noise', video: 'noise.mp4', conversations: pair('What?\n<image>') },
      { id: 'cut', video: 'cut.webm', conversations: pair('<image>\nWhat?') },
      { id: 'escape', image: '../list.json', conversations: pair('<image>\nWhat?') },
      { id: 'tags', image: 'im0.png', conversations: pair('What?') },
      { id: 'order', conversations: pair('What?').reverse() },
      { id: 'silent', conversations: pair('What?', '') },
      { id: 'empty', conversations: [] },
      'no record',
    ];
    const list = written('bad.json', records);
    const { findings, summary } = await check(list);
    expect(findings.map(({ index, id, kind }) => [index, id, kind])).toEqual([
      [1, 'noise', 'unreadable_video'],
      [2, 'noise', 'unreadable_video'],
      [3, 'cut', 'unreadable_video'],
      [4, 'escape', 'unsafe_path'],
      [5, 'tags', 'tag_mismatch'],
      [6, 'order', 'wrong_order'],
      [6, 'order', 'wrong_order'],
      [7, 'silent', 'empty_answer'],
      [8, 'empty', 'empty_conversation'],
      [9, '#9', 'not_a_record'],
    ]);
    for (const { message } of findings) expect(message).not.toBe('');
    expect(summary).toMatchObject({ records: 10, badRecords: 9, warnedRecords: 0 });
    const unopened = await check(list, { skipVideos: true });
    expect(unopened.findings.filter(({ kind }) => kind === 'unreadable_video')).toEqual([]);
    expect(unopened.summary.badRecords).toBe(6);
  });

  it('finds samples that a recipe cuts or learns nothing from', async () => {
    const records = read(lists[1]).slice(0, 3);
    const answer = (index: number) => records[index]?.conversations[1] as { value: string };
    answer(1).value = 'It is what the ASSISTANT: says.';
    answer(2).value = 'A boat. '.repeat(2000);
    const list = written('samples.json', records);
    const options = { recipe: 'video-7b-stage2', languageModel: join(oracle, 'llm') };
    const { findings, summary } = await check(list, options);
    expect(findings.map(({ index, kind, severity }) => [index, kind, severity])).toEqual([
      [1, 'fully_masked', 'warning'],
      [2, 'cut', 'warning'],
    ]);
    expect(summary).toMatchObject({ badRecords: 0, warnedRecords: 2 });
    expect((await check(list)).findings).toEqual([]);
    for (const half of [{ recipe: 'video-7b-stage2' }, { languageModel: join(oracle, 'llm') }]) {
      await expect(check(list, half)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    }
    const absent = { ...options, languageModel: join(folder, 'absent') };
    await expect(check(list, absent)).rejects.toMatchObject({ code: expect.stringMatching(/^MODEL_/) });
  });

  it('refuses what is no list, with the place', async () => {
    for (const [content, place] of [
      ['{"id": 1', 'byte 8 (line 1)'],
      ['[{"id": 1},\n {"id": 2}', 'byte 22 (line 2)'],
      ['[{"id": tru}]', 'byte 11 (line 1)'],
      ['<html>', 'byte 0 (line 1)'],
      ['[]', 'no records'],
    ] as const) {
      const list = written('broken.json', content);
      await expect(check(list), content).rejects.toMatchObject({
        code: 'DATA_INVALID',
        message: expect.stringContaining(place),
      });
    }
    await expect(check(join(folder, 'absent.json'))).rejects.toMatchObject({ code: 'DATA_INVALID' });
  });

  it('tells how far it is, and stops when it is told to', async () => {
    const records = Array.from({ length: 3000 }, (_, index) => ({ ...read(lists[0])[0], id: `${index}` }));
    const list = written('many.json', records);
    const told: number[] = [];
    await check(list, { onProgress: (done, total) => told.push(done / total) });
    expect(told.length).toBeGreaterThan(2);
    expect(told).toEqual([...told].sort((a, b) => a - b));
    const controller = new AbortController();
    const stopped = check(list, { signal: controller.signal, onProgress: () => controller.abort() });
    await expect(stopped).rejects.toMatchObject({ code: 'ABORTED' });
    const aborted = check(list, { signal: AbortSignal.abort() });
    await expect(aborted).rejects.toMatchObject({ code: 'ABORTED' });
    // Left half-way, it ends by itself.
    const records2 = records.map(({ image: _, ...record }) => record);
    for await (const finding of checkData(written('half.json', records2))) {
      expect(finding.kind).toBe('tag_mismatch');
      break;
    }
  });
});

describe('the published data', () => {
  it('is complete when all is there', async () => {
    const root = join(folder, 'root');
    const before = await publishedData(root);
    expect(before.complete).toBe(false);
    expect(before.lists.map(({ stage }) => stage)).toEqual([1, 1, 2, 2, 2, 3]);
    for (const { path, folders } of before.lists) {
      expect(path.startsWith(root)).toBe(true);
      mkdirSync(dirname(path), { recursive: true });
      writeFileSync(path, '[]');
      for (const folder of folders) {
        mkdirSync(folder.path, { recursive: true });
        writeFileSync(join(folder.path, 'x'), '');
      }
    }
    for (const { path } of before.weights) {
      mkdirSync(path.endsWith('.pth') ? dirname(path) : path, { recursive: true });
      writeFileSync(path.endsWith('.pth') ? path : join(path, 'config.json'), '{}');
    }
    const after = await publishedData(root);
    expect(after.complete, JSON.stringify(after)).toBe(true);
    expect(after.lists.every(({ path, found }) => found && existsSync(path))).toBe(true);
  });
});
