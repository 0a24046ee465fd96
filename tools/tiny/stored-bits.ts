// How many answers of the embedded model change when the features that they see were rounded in a store:
// `pnpm eval:stored <folder with qa.jsonl>`, a folder that `llamavid world render` wrote. Prints the table of
// docs/design/long-video.md.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { LlamaVid, type OpenOptions } from '../../packages/pipeline/dist/index.js';
import { byMedia, isRight, type Row, readRows } from './questions.ts';

const [folder] = process.argv.slice(2);
if (folder === undefined) {
  console.error('pnpm eval:stored <folder with qa.jsonl>');
  process.exit(2);
}
const store = mkdtempSync(join(tmpdir(), 'llamavid-stored-bits-'));
const ways: [name: string, options: OpenOptions][] = [
  ['f32, not stored', { store: 'none' }],
  ['16 bits', { store, storePrecision: '16bit' }],
  ['8 bits', { store, storePrecision: '8bit' }],
];
const rows = readRows(folder);
await using model = await LlamaVid.load('tiny', { dtype: 'f32' });

/** The answers to all questions, in the order of `rows`. */
async function answers(options: OpenOptions): Promise<Map<Row, string>> {
  const found = new Map<Row, string>();
  for (const group of byMedia(rows)) {
    const [{ media, subtitles } = { media: '', subtitles: undefined }] = group;
    await using clip = await model.open(media, { ...options, subtitles });
    const questions = group.map(({ question }) => question);
    const asked = model.askEach(clip, questions, { maxNewTokens: 200 });
    const results = await Promise.all(asked.map((answer) => answer.result()));
    for (const [index, row] of group.entries()) found.set(row, results[index]?.text ?? '');
  }
  return found;
}

try {
  console.log('| features | questions | answers as with f32 | right |\n| --- | --- | --- | --- |');
  let exact: Map<Row, string> | undefined;
  for (const [name, options] of ways) {
    const given = await answers(options);
    exact ??= given;
    const share = (holds: (row: Row) => boolean) =>
      `${((100 * rows.filter(holds).length) / rows.length).toFixed(1)} %`;
    const same = share((row) => given.get(row) === exact?.get(row));
    const right = share((row) => isRight(given.get(row) ?? '', row.answer));
    console.log(`| ${name} | ${rows.length} | ${same} | ${right} |`);
  }
} finally {
  rmSync(store, { recursive: true, force: true });
}
