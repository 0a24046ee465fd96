// Measures how well a model's timeline finds what a question is about: videos of the toy world, of ten minutes each, of which one
// scene shows an object that no other does. `llamavid world render <folder> --kinds needle --count 40 --never-trained allow
// --phrasing unseen --seed 7001`, then `pnpm eval:timeline <folder> [options]`; `--help` lists them.
import { writeFileSync } from 'node:fs';
import { relative } from 'node:path';
import process from 'node:process';
import { parseArgs } from 'node:util';
import { LlamaVid, type Timeline } from '../../packages/pipeline/dist/index.js';
import { byMedia, readRows } from './questions.ts';

const HELP = `pnpm eval:timeline <folder with qa.jsonl> [options]

  --model <folder>   the model; default: the embedded one
  --limit <n>        only the first n questions
  --json <file>      write all numbers

A question is found when the best frame of its scene is in the most relevant 1 % of all frames, and hit when it is the most relevant of
all. A moment is right when it overlaps the scene.`;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    model: { type: 'string', default: 'tiny' },
    limit: { type: 'string' },
    json: { type: 'string' },
    help: { type: 'boolean', default: false },
  },
});
const [folder] = positionals;
if (values.help || folder === undefined || positionals.length > 1) {
  console.log(HELP);
  process.exit(values.help ? 0 : 2);
}

interface Measured {
  media: string;
  type: string;
  question: string;
  frames: number;
  /** Of the best frame of the scene among all frames, from 1. */
  rank: number;
  /** Whether the first moment overlaps the scene. */
  firstMoment: boolean;
}

const asked = readRows(folder).filter(({ evidence }) => evidence !== undefined);
const rows = asked.slice(0, values.limit === undefined ? undefined : Number(values.limit));
if (rows.length === 0)
  throw new Error(`${folder}: no question says when its answer is seen; render --kinds needle`);
await using model = await LlamaVid.load(values.model);
const measured: Measured[] = [];
for (const group of byMedia(rows)) {
  const [{ media } = { media: '' }] = group;
  await using clip = await model.open(media);
  for (const { type, question, evidence } of group) {
    if (evidence === undefined) continue;
    const timeline = await model.timeline(clip, question);
    const { frames, moments } = timeline;
    const [from, to] = evidence;
    const [first] = moments;
    measured.push({
      media: relative(folder, media),
      type,
      question,
      frames: frames.length,
      rank: rankOf(timeline, evidence),
      firstMoment: first !== undefined && first.start < to && first.end > from,
    });
  }
  if (process.stderr.isTTY) process.stderr.write(`\r${measured.length} of ${rows.length} questions`);
}
if (process.stderr.isTTY) process.stderr.write('\n');

/** One more than the frames outside the scene that are at least as relevant as its best one: equals count against it. */
function rankOf({ frames }: Timeline, [from, to]: readonly [number, number]): number {
  const isInside = (time: number) => time >= from && time < to;
  const best = Math.max(...frames.filter(({ time }) => isInside(time)).map(({ relevance }) => relevance));
  return 1 + frames.filter(({ time, relevance }) => !isInside(time) && relevance >= best).length;
}

const found = ({ rank, frames }: Measured) => rank <= Math.max(1, Math.floor(frames / 100));
const share = (of: readonly Measured[], holds: (each: Measured) => boolean) =>
  of.length === 0 ? 0 : of.filter(holds).length / of.length;
const summary = (of: readonly Measured[]) => ({
  questions: of.length,
  found: share(of, found),
  hit: share(of, ({ rank }) => rank === 1),
  firstMoment: share(of, ({ firstMoment }) => firstMoment),
  medianRank: of.map(({ rank }) => rank).sort((left, right) => left - right)[Math.floor(of.length / 2)] ?? 0,
});
const types = Object.fromEntries(
  [...Map.groupBy(measured, ({ type }) => type)].map(([type, of]) => [type, summary(of)]),
);
const all = summary(measured);
const percent = (value: number) => `${(value * 100).toFixed(1)}`;
const lines = Object.entries({ ...types, all }).map(
  ([name, each]) =>
    `| ${[name, each.questions, percent(each.found), percent(each.hit), percent(each.firstMoment), each.medianRank].join(' | ')} |`,
);
console.log(`| type | questions | in the top 1 % | first of all | in the first moment | median rank |
| --- | --- | --- | --- | --- | --- |
${lines.join('\n')}

${new Set(measured.map(({ media }) => media)).size} videos of ${Math.min(...measured.map(({ frames }) => frames))} frames or more.`);
if (values.json !== undefined) {
  writeFileSync(
    values.json,
    `${JSON.stringify({ model: model.model.name, all, types, measured }, null, 2)}\n`,
  );
}
