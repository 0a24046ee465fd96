// Measures the embedded model (or another) on videos and questions of the toy world, from the files to the answers:
// `pnpm eval:tiny <folder with qa.jsonl> [options]`; `--help` lists them.
import { readFileSync, writeFileSync } from 'node:fs';
import { relative } from 'node:path';
import process from 'node:process';
import { parseArgs } from 'node:util';
import { type AskOptions, type Clip, LlamaVid } from '../../packages/pipeline/dist/index.js';
import { byMedia, isRight, namesNeverTrainedPair, type Row, readRows, scenesRight } from './questions.ts';

const HELP = `pnpm eval:tiny <folder with qa.jsonl> [options]

  --model <folder>   the model; default: the embedded one
  --json <file>      write all numbers
  --markdown <file>  write the table, which goes to stdout anyway
  --answers <file>   write each row with its answers, as JSON lines
  --wrong-question   also ask with another question in the query model
  --content-only     also ask with the context token of each frame set to zero
  --context-only     also ask with the content tokens of each frame set to zero
  --no-blind         do not ask without the video
  --limit <n>        only the first n files

Accuracies are shares of answers that are right to the letter (lower case, spaces collapsed). "seen" and "unseen" are
phrasings; rows that name a colour and shape never trained together count in their own column alone. Chance always gives the
most frequent answer of the type in training; blind is the model without a video.`;

/** Ways to ask: as it is meant, and what parts of the model are worth. */
type Way = 'whole' | 'wrong question' | 'content only' | 'context only' | 'blind';

interface Measured {
  row: Row;
  answers: Partial<Record<Way, string>>;
}

/** Right answers among questions; accuracy `null` without questions. */
interface Share {
  questions: number;
  accuracy: number | null;
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    model: { type: 'string', default: 'tiny' },
    json: { type: 'string' },
    markdown: { type: 'string' },
    answers: { type: 'string' },
    'wrong-question': { type: 'boolean', default: false },
    'content-only': { type: 'boolean', default: false },
    'context-only': { type: 'boolean', default: false },
    'no-blind': { type: 'boolean', default: false },
    limit: { type: 'string' },
    help: { type: 'boolean', default: false },
  },
});
const [folder] = positionals;
if (values.help || folder === undefined || positionals.length > 1) {
  console.log(HELP);
  process.exit(values.help ? 0 : 2);
}

const ways: Way[] = [
  'whole',
  ...(values['wrong-question'] ? ['wrong question' as const] : []),
  ...(values['content-only'] ? ['content only' as const] : []),
  ...(values['context-only'] ? ['context only' as const] : []),
  ...(values['no-blind'] ? [] : ['blind' as const]),
];
const frequent: Record<string, string> = JSON.parse(
  readFileSync(new URL('./frequent-answers.json', import.meta.url), 'utf8'),
);
const rows = readRows(folder);
const files = byMedia(rows).slice(0, values.limit === undefined ? undefined : Number(values.limit));

const began = performance.now();
await using model = await LlamaVid.load(values.model);
const blindAnswers = new Map<string, string>();
const measured: Measured[] = [];
let frames = 0;
for (const [index, group] of files.entries()) {
  const [{ media, subtitles } = { media: '', subtitles: undefined }] = group;
  await using clip = await model.open(media, { subtitles, store: 'none' });
  frames += (await clip.encode()).frames;
  for (const row of group) {
    const answers: Measured['answers'] = {};
    for (const way of ways) answers[way] = await ask(clip, row, way);
    measured.push({ row, answers });
  }
  const done = `${index + 1} of ${files.length} files, ${measured.length} questions`;
  if (process.stderr.isTTY) process.stderr.write(`\r${done}`);
  else if ((index + 1) % 50 === 0) process.stderr.write(`${done}\n`);
}
if (process.stderr.isTTY) process.stderr.write('\n');
const seconds = (performance.now() - began) / 1000;

async function ask(clip: Clip, row: Row, way: Way): Promise<string> {
  // A description of six scenes has about 100 tokens.
  const options: AskOptions = { maxNewTokens: 200 };
  switch (way) {
    case 'blind': {
      const known = blindAnswers.get(row.question);
      if (known !== undefined) return known;
      const { text } = await model.ask(undefined, row.question, options).result();
      blindAnswers.set(row.question, text);
      return text;
    }
    case 'wrong question':
      options.evaluation = { queryQuestion: otherQuestion(row) };
      break;
    case 'content only':
      options.evaluation = { ablate: 'context' };
      break;
    case 'context only':
      options.evaluation = { ablate: 'content' };
      break;
    case 'whole':
      break;
  }
  return (await model.ask(clip, row.question, options).result()).text;
}

/** A question of another type, the same in each run. */
function otherQuestion(row: Row): string {
  const others = rows.filter(({ type, kind }) => type !== row.type && kind === row.kind);
  const pool = others.length > 0 ? others : rows;
  return pool[(rows.indexOf(row) * 7919) % pool.length]?.question ?? row.question;
}

function share(of: readonly Measured[], answer: (each: Measured) => string | undefined): Share {
  const right = of.filter((each) => isRight(answer(each) ?? '', each.row.answer)).length;
  return { questions: of.length, accuracy: of.length === 0 ? null : right / of.length };
}

function summary(of: readonly Measured[]) {
  const trained = of.filter(({ row }) => !namesNeverTrainedPair(row));
  const whole = ({ answers }: Measured) => answers.whole;
  const descriptions = trained.filter(({ row }) => row.type === 'describe');
  const scenes = descriptions.reduce(
    (sum, { row, answers }) => sum + scenesRight(answers.whole ?? '', row.answer),
    0,
  );
  return {
    ...share(trained, whole),
    chance: share(trained, ({ row }) => frequent[row.type]).accuracy,
    blind: ways.includes('blind') ? share(trained, ({ answers }) => answers.blind).accuracy : null,
    seenPhrasing: share(
      trained.filter(({ row }) => !row.unseenPhrasing),
      whole,
    ),
    unseenPhrasing: share(
      trained.filter(({ row }) => row.unseenPhrasing),
      whole,
    ),
    neverTrainedPairs: share(
      of.filter(({ row }) => namesNeverTrainedPair(row)),
      whole,
    ),
    ...(descriptions.length > 0 && { scenes: scenes / descriptions.length }),
    ...Object.fromEntries(
      ways
        .filter((way) => way !== 'whole' && way !== 'blind')
        .map((way) => [way, share(trained, ({ answers }) => answers[way]).accuracy]),
    ),
  };
}

const grouped = (key: (row: Row) => string) =>
  Object.fromEntries(
    [...Map.groupBy(measured, ({ row }) => key(row))]
      .sort(([left], [right]) => (left < right ? -1 : 1))
      .map(([name, of]) => [name, summary(of)]),
  );
const types = Object.fromEntries(
  Object.entries(grouped(({ type }) => type)).map(([type, each]) => {
    const rows = measured.filter(({ row }) => row.type === type && !namesNeverTrainedPair(row));
    const shares = [...Map.groupBy(rows, ({ row }) => row.kind)].map(
      ([kind, of]) => [kind, share(of, ({ answers }) => answers.whole)] as const,
    );
    return [type, { ...each, kinds: Object.fromEntries(shares) }];
  }),
);
const kinds = grouped(({ kind }) => kind);
const all = summary(measured);

const percent = (value: number | null | undefined) =>
  value === null || value === undefined ? '–' : `${(value * 100).toFixed(1)}`;
const extra = ways.filter((way) => way !== 'whole' && way !== 'blind');
const header = [
  'type',
  'questions',
  'right %',
  'seen',
  'unseen',
  'never-trained pairs',
  'chance',
  'blind',
  ...extra,
];
const line = (name: string, each: ReturnType<typeof summary>) => {
  const share = ({ questions, accuracy }: Share) =>
    questions === 0 ? '–' : `${percent(accuracy)} (${questions})`;
  const spoilt = extra.map((way) => percent((each as unknown as Record<Way, number | null>)[way]));
  const cells = [share(each.seenPhrasing), share(each.unseenPhrasing), share(each.neverTrainedPairs)];
  return [name, each.questions, percent(each.accuracy), ...cells, percent(each.chance), percent(each.blind)]
    .concat(spoilt)
    .join(' | ');
};
const table = [
  header.join(' | '),
  header.map(() => '---').join(' | '),
  ...Object.entries(types).map(([name, each]) => line(name, each)),
  ...Object.entries(kinds).map(([name, each]) => line(`all of ${name}`, each)),
  line('all', all),
]
  .map((row) => `| ${row} |`)
  .join('\n');
const note = types['describe']?.scenes;
const text = `${table}

${files.length} files, ${frames} frames, ${measured.length} questions.${
  note === undefined ? '' : ` Scenes of descriptions told right: ${percent(note)} %.`
}
`;
console.log(text);
if (values.markdown !== undefined) writeFileSync(values.markdown, text);
if (values.json !== undefined) {
  const report = { model: model.model.name, files: files.length, frames, seconds, all, types, kinds };
  writeFileSync(values.json, `${JSON.stringify(report, null, 2)}\n`);
}
if (values.answers !== undefined) {
  const lines = measured.map(({ row, answers }) =>
    JSON.stringify({ ...row, media: relative(folder, row.media), answers }),
  );
  writeFileSync(values.answers, `${lines.join('\n')}\n`);
}
